"""A run that is killed goes on from its last committed round, to the bytes of one that never stopped."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from shepherd.errors import DataError, UsageError
from shepherd.experiment import federated
from shepherd.experiment import run as experiment
from shepherd.experiment.arms import load_arm
from shepherd.experiment.remeasure import evaluate_run
from shepherd.recipe import load
from shepherd.server.aggregators import aggregators
from shepherd.serving.tuned import load_tuned
from shepherd.store import RunDirectory
from shepherd.store.state import load_state
from shepherd.types import Message
from stopped_runs import Stop, after_round, checkpoint_digest, stop_at, stopped
from tiny import CHAT_TEMPLATE, tiny_model

HELPERS = Path(__file__).parents[1] / "helpers"
RUN = (
    "model.dtype=float32", "model.device=cpu", "run.threads=1", "run.name=tiny", "lora.r=2", "lora.alpha=4",
    "data.rows_per_category=6", "data.held_out_per_category=1", "data.max_length=96",
    "partition.name=iid", "partition.clients=4", "federation.rounds=6", "federation.clients_per_round=3",
    "training.local_steps=2", "training.batch_size=2", "training.learning_rate=1e-2",
    "objective.scaffold=true", "server.optimizer=fedavgm", "server.momentum=0.5",
    "evaluation.every=2", "evaluation.generate=1", "evaluation.max_new_tokens=2", "evaluation.local_clients=2",
)  # fmt: skip


def kill_runs(model: Path, folder: Path, kills: int, seed: int) -> dict:
    spec = {"overrides": [f"model.base={model}", *RUN], "folder": str(folder), "kills": kills, "seed": seed}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(HELPERS / "kill_runs.py"), json.dumps(spec)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_all_equal(result: dict, kills: int) -> None:
    assert sum(bool(killed["rounds"]) for killed in result["killed"]) == kills, "each was ended by SIGKILL"
    for killed in result["killed"]:
        assert killed["status"] == 0, killed
        assert killed["ending"] == result["whole"], killed["at"]
    stopped_at = {rounds for killed in result["killed"] for rounds in killed["rounds"]}
    assert len(stopped_at) > 1, "the kills all fell into the same place"


@pytest.mark.timeout(900)  # twenty-one processes, on whatever machine
def test_twenty_runs_killed_at_random_instants_end_with_the_same_bytes(tmp_path):
    model = tiny_model("llama", tmp_path, num_hidden_layers=1)
    assert_all_equal(kill_runs(model, tmp_path, 20, 0), 20)


@pytest.mark.slow
def test_a_hundred_runs_killed_at_random_instants_end_with_the_same_bytes(model_folder, tmp_path):
    assert_all_equal(kill_runs(model_folder(), tmp_path, 100, 1), 100)


@pytest.fixture(scope="module")
def config(small_config):
    return small_config("federation.rounds=3", "evaluation.local_clients=1")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return experiment.run(config, out_dir=tmp_path_factory.mktemp("whole"))


def test_a_resumed_run_announces_its_first_round_and_trains_only_what_is_left(config, whole, tmp_path):
    folder, events = stopped(config, tmp_path, after_round(2)), []
    run = experiment.resume(folder, observer=events.append)
    start = next(e for e in events if e["event"] == "start")
    assert start["round"] == 2
    assert [e["round"] for e in events if e["event"] == "round"] == [3]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [e for e in events if e["event"] == "committed"] == [{"event": "committed", **line} for line in lines[:2]]
    assert run.summary["adapter_sha256"] == whole.summary["adapter_sha256"]
    assert run.summary["arms"] == whole.summary["arms"] and run.summary["forced"] == []
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [line["what"] for line in journal].count("resumed") == 1
    fractions = [e["fraction"] for e in events if e["event"] == "step"]
    # One client alone trains on an eighth of the tokens of eight: 2 of 3 rounds are 2/3 of one in 1 + 1/8 + 1.
    assert start["fraction"] == pytest.approx(2 / 3 / 2.125, abs=0.02)
    assert (
        fractions[0] > start["fraction"]
        and fractions == sorted(fractions)
        and fractions[-1] == pytest.approx(1, abs=0.02)
    )


def test_a_run_resumed_after_all_training_announces_that_none_is_left(config, whole, tmp_path):
    folder, events = stopped(config, tmp_path, lambda event: event.get("phase") == "generate"), []
    run = experiment.resume(folder, observer=events.append)
    assert next(e for e in events if e["event"] == "start")["fraction"] == 1
    assert [e["round"] for e in events if e["event"] == "committed"] == [1, 2, 3]
    assert not [e for e in events if e["event"] in ("round", "step")]
    assert run.summary["arms"] == whole.summary["arms"]


@pytest.mark.parametrize(
    "selection",
    [
        ("selection.name=power_of_choice", "federation.clients_per_round=3"),
        ("selection.name=oort", "federation.clients_per_round=3", "federation.deadline=1.5"),
        ("selection.name=poisson", "federation.fraction=0.2"),
    ],
)
def test_the_cohorts_after_a_stop_are_those_of_a_run_that_never_stopped(small_config, tmp_path, selection):
    config = small_config("federation.rounds=6", "evaluation.arms=base,federated", "evaluation.generate=0", *selection)
    whole = experiment.run(config, out_dir=tmp_path / "whole")
    folder = stopped(config, tmp_path / "stopped", after_round(3))
    run = experiment.resume(folder)
    cohorts = [
        [
            (json.loads(line)["cohort"], json.loads(line)["late"])
            for line in (path / "rounds.jsonl").read_text().splitlines()
        ]
        for path in (whole.path, folder)
    ]
    assert cohorts[0] == cohorts[1] and len({str(asked) for asked in cohorts[0]}) > 3
    assert run.summary["adapter_sha256"] == whole.summary["adapter_sha256"]


ADAMW = ("server.optimizer=torch", "server.name=AdamW", "server.learning_rate=0.01")
KEPT = {
    "the moments and counts of torch's AdamW": ADAMW,
    "the velocity of torch's SGD": (
        "server.optimizer=torch", "server.name=SGD", "server.learning_rate=0.7", "server.momentum=0.9",
        "server.nesterov=true",
    ),
    "the steps of torch's Rprop, for one factor a round": (
        "server.optimizer=torch", "server.name=Rprop", "server.learning_rate=0.01", "federation.method=rolora",
    ),
    "the blocks at home beside AdamW": (*ADAMW, "federation.method=fedper_lora"),
    "the clusters of IFCA with AdamW for each": (
        *ADAMW, "personalization.name=ifca", "federation.clients_per_round=6",
    ),
    "the local adapters of FedDPA beside AdamW": (
        *ADAMW, "personalization.name=feddpa", "personalization.variant=T", "personalization.weight=0.9",
    ),
    "the median norm to which updates are clipped, beside AdamW": (*ADAMW, "federation.clip_update_norm=median"),
    "the second adapters of Ditto": ("personalization.name=ditto", "personalization.strength=0.5"),
    "the halves of FedSA-LoRA": ("federation.method=fedsa_lora",),
    "the moments of the slots of LoRA-A²": (*ADAMW, "federation.method=lora_a2", "lora.r=4", "lora.ranks=[1,4,2]"),
}  # fmt: skip


@pytest.mark.parametrize("kept", KEPT)
def test_what_a_server_or_a_client_keeps_between_rounds_goes_over_a_stop_to_the_same_bytes(
    small_config, tmp_path, kept
):
    settings = ("federation.rounds=3", "federation.clients_per_round=5", "training.local_steps=2")
    config = small_config(*settings, "evaluation.arms=base,federated", "evaluation.generate=0", *KEPT[kept])
    whole = experiment.run(config, out_dir=tmp_path / "whole").path
    folder = stopped(config, tmp_path / "stopped", after_round(2))
    last = folder / "checkpoints" / "round-0002"
    state = load_state(last)
    models = (state.model, *state.clusters)
    assert any(
        array.any() for kept in (*(m.memory for m in models), *state.clients.values()) for array in kept.values()
    )
    experiment.resume(folder)
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*.safetensors"))]
    assert [path.relative_to(folder) for path in sorted(folder.rglob("*.safetensors"))] == names
    assert {name.parts[0] for name in names} >= {"adapter", "checkpoints"}
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert checkpoint_digest(folder) == checkpoint_digest(whole)


def test_a_baseline_that_had_finished_is_not_trained_again(config, whole, tmp_path):
    generating = lambda event: event["event"] == "phase" and event["phase"] == "generate"  # noqa: E731
    folder, events = stopped(config, tmp_path, generating), []
    run = experiment.resume(folder, observer=events.append)
    assert not [e for e in events if e["event"] == "step"]
    assert run.summary["arms"] == whole.summary["arms"] and run.summary["budget"] == whole.summary["budget"]
    theirs = json.loads((whole.path / "evaluation/metrics.json").read_text())
    assert json.loads((folder / "evaluation/metrics.json").read_text()) == theirs


def test_a_baseline_with_a_flipped_bit_in_any_file_is_refused_by_the_name_of_the_file(whole, tmp_path):
    for arm in ("local", "centralised"):
        folder = tmp_path / arm
        shutil.copytree(whole.path / "arms" / arm, folder)
        load_arm(folder, per_client=arm == "local")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert {"MANIFEST.json", "arm.json", "losses.safetensors"} <= set(names)
        for name in names:
            data = (folder / name).read_bytes()
            at = len(data) - 3
            (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(DataError, match=rf"arms?.*is damaged: {re.escape(name)} is not what was written"):
                load_arm(folder, per_client=arm == "local")
            (folder / name).write_bytes(data)


def test_a_finished_run_is_returned_as_it_is(whole):
    before = (whole.path / "report.html").stat().st_mtime_ns
    again = experiment.resume(whole.path)
    assert again.summary["adapter_sha256"] == whole.summary["adapter_sha256"]
    assert (whole.path / "report.html").stat().st_mtime_ns == before


def test_a_run_that_ended_before_its_report_was_written_gets_it(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole.path, folder)
    (folder / "report.html").unlink()
    assert experiment.resume(folder).summary == whole.summary
    assert "</html>" in (folder / "report.html").read_text()


def test_a_damaged_round_is_named_and_the_one_before_it_is_taken(config, whole, tmp_path):
    folder, events = stopped(config, tmp_path, after_round(2)), []
    weights = folder / "checkpoints" / "round-0002" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run = experiment.resume(folder, observer=events.append)
    warnings = [e["message"] for e in events if e["event"] == "warning"]
    assert any("round-0002" in message and "adapter_model.safetensors" in message for message in warnings)
    assert [e["round"] for e in events if e["event"] == "round"] == [2, 3]
    line = "after round 1: round-0002: adapter_model.safetensors is not what was written (sha256)"
    assert line in run.summary["found"] and line in (folder / "report.html").read_text()
    assert run.summary["adapter_sha256"] == whole.summary["adapter_sha256"]


def test_other_settings_are_refused_with_the_difference_and_forced_only_with_a_note(config, tmp_path):
    folder = stopped(config, tmp_path, after_round(1))
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    with pytest.raises(UsageError) as caught:
        experiment.resume(folder)
    assert "config.training.learning_rate: 0.01 then, 0.02 now" in caught.value.message
    assert "--force" in caught.value.hint
    run = experiment.resume(folder, force=True)
    assert run.summary["forced"] == ["after round 1: config.training.learning_rate: 0.01 then, 0.02 now"]
    assert "after round 1: config.training.learning_rate: 0.01 then, 0.02 now" in (folder / "report.html").read_text()


def test_a_forced_resumption_is_named_though_the_settings_are_back_at_the_next(config, tmp_path):
    folder = stopped(config, tmp_path, after_round(1))
    path = folder / "config.toml"
    before = path.read_text()
    path.write_text(before.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    with pytest.raises(Stop):
        experiment.resume(folder, observer=stop_at(after_round(2)), force=True)
    path.write_text(before)
    line = "after round 1: config.training.learning_rate: 0.01 then, 0.02 now"
    assert experiment.resume(folder).summary["forced"] == [line]
    assert line in (folder / "report.html").read_text()


def test_a_changed_line_of_a_round_is_refused_and_forced_only_with_a_note(config, tmp_path):
    folder = stopped(config, tmp_path, after_round(1))
    file = folder / "rounds.jsonl"
    loss = json.loads(file.read_text())["held_out_loss"]
    file.write_text(file.read_text().replace(f'"held_out_loss": {loss}', f'"held_out_loss": 0{str(loss)[1:]}'))
    with pytest.raises(DataError, match=r"rounds\.jsonl was changed after it was written"):
        experiment.resume(folder)
    line = "after round 1: rounds.jsonl was changed after it was written"
    assert experiment.resume(folder, force=True).summary["forced"] == [line]
    assert line in (folder / "report.html").read_text()


def test_other_code_is_refused(config, tmp_path, monkeypatch):
    folder = stopped(config, tmp_path, after_round(1))
    monkeypatch.setattr("shepherd.experiment.identity.code_digest", lambda: "0" * 64)
    with pytest.raises(UsageError, match=r"code: .* then, 000000000000 now"):
        experiment.resume(folder)


def test_other_data_are_refused(small_config, tmp_path):
    rows = [{"instruction": f"Count to {n}", "response": f"{n}", "category": "ab"[n % 2]} for n in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(f"data.source={data}", "data.rows_per_category=0", "evaluation.arms=base,federated")
    folder = stopped(config, tmp_path / "runs", after_round(1))
    rows[0]["response"] = "zero"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=r"data: [0-9a-f]{12} then, [0-9a-f]{12} now"):
        experiment.resume(folder)


def test_another_end_token_in_the_tokenizer_s_settings_is_refused(small_config, model_folder, tmp_path):
    base = shutil.copytree(model_folder(), tmp_path / "llama")
    config = small_config(f"model.base={base}", "evaluation.arms=base,federated", "evaluation.generate=0")
    folder = stopped(config, tmp_path / "runs", after_round(1))
    settings = base / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    with pytest.raises(UsageError) as caught:
        experiment.resume(folder)
    (line,) = caught.value.message.splitlines()[1:]  # the base's digest does not know of it
    assert re.fullmatch(r"  tokenizer: [0-9a-f]{12} then, [0-9a-f]{12} now", line)


def test_a_template_with_a_date_gives_the_same_tokens_when_a_run_goes_on_on_another_day(tmp_path, monkeypatch):
    dated = "{{ '<|im_start|>system\\nToday: ' + strftime_now('%Y-%m-%d') + '<|im_end|>\\n' }}" + CHAT_TEMPLATE
    base = tiny_model("llama", tmp_path, chat_template=dated)
    few = ("evaluation.arms=base,federated", "evaluation.generate=1", "federation.rounds=2")
    config = load(None, [f"model.base={base}", *RUN, *few])
    whole = experiment.run(config, out_dir=tmp_path / "whole")
    folder = stopped(config, tmp_path / "stopped", after_round(1))

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    run = experiment.resume(folder)
    assert run.summary["adapter_sha256"] == whole.summary["adapter_sha256"]
    assert run.summary["arms"] == whole.summary["arms"]
    assert json.loads((folder / "identity.json").read_text())["day"] == "2025-01-01"
    said = "the chat template writes the date: it is 01 Jan 2025 in every prompt"
    assert said in run.summary["data"]["notes"] and said in (folder / "report.html").read_text(encoding="utf-8")
    assert evaluate_run(folder)["federated"]["loss"] == whole.summary["arms"]["federated"]["loss"]
    assert "2025-01-01" in load_tuned(folder).template.prompt([Message("user", "What day is it?")])


PLUGIN = """
from shepherd.clients.selection import everyone

def all_of_them():
    return everyone()
"""


REGISTERED = """
import shepherd

@shepherd.aggregators
def middle():
    return lambda stacked, weights: stacked.mean(axis=0)
"""


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("held.jsonl", "held_out"),
        ("trace.json", "trace"),
        ("mine_asked.py", "plugins.mine_asked"),
        ("mine_named.py", "plugins.mine_named"),
    ],
)
def test_a_file_beside_the_data_whose_contents_changed_is_refused(small_config, tmp_path, monkeypatch, file, key):
    rows = [{"instruction": f"Count to {n}", "response": f"{n}", "category": "ab"[n % 2]} for n in range(16)]
    for name, part in (("rows", rows[:12]), ("held", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "trace.json").write_text('{"*": [[1, 20]]}')
    (tmp_path / "mine_asked.py").write_text(PLUGIN)
    (tmp_path / "mine_named.py").write_text(REGISTERED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_asked", raising=False)
    monkeypatch.delitem(sys.modules, "mine_named", raising=False)
    monkeypatch.setattr(aggregators, "_factories", dict(aggregators._factories))
    importlib.import_module("mine_named")
    config = small_config(
        f"data.source={tmp_path / 'rows.jsonl'}", f"data.held_out_source={tmp_path / 'held.jsonl'}",
        "selection.name=availability", f"selection.trace={tmp_path / 'trace.json'}",
        "selection.then=mine_asked:all_of_them", "federation.aggregator=middle", "evaluation.arms=base,federated",
    )  # fmt: skip
    folder = stopped(config, tmp_path / "runs", after_round(1))
    changed = tmp_path / file
    changed.write_text(changed.read_text().replace("20", "21").replace("14", "15").replace("():", "():  # changed"))
    with pytest.raises(UsageError) as caught:
        experiment.resume(folder)
    (line,) = caught.value.message.splitlines()[1:]
    assert re.fullmatch(rf"  {key}: [0-9a-f]{{12}} then, [0-9a-f]{{12}} now", line)


KEYS = {
    "run", "config", "base", "tokenizer", "data", "held_out", "partition", "trace", "shepherd", "code", "plugins",
    "python", "numpy", "torch", "transformers", "peft", "tokenizers", "safetensors", "threads", "device", "processor",
}  # fmt: skip
FREE = {"run.out", "run.name", "run.patience", "checkpoints.keep", "federation.updates_in_memory_mib"}


def test_every_key_and_every_setting_is_held_to_but_those_that_move_no_number(config, tmp_path):
    folder = stopped(config, tmp_path, after_round(1))
    identity = json.loads((folder / "identity.json").read_text())
    assert identity.keys() == KEYS and identity["config"].keys() == type(config).model_fields.keys() - {
        *type(config).later
    }
    every = {key for key in KEYS - {"run", "config", "plugins"}} | {
        f"config.{table}.{key}" for table, values in identity["config"].items() for key in values
    }
    other = {key: "other" for key in KEYS} | {
        "plugins": {},
        "config": {table: dict.fromkeys([*values, "more"], "other") for table, values in identity["config"].items()},
    }
    (folder / "identity.json").write_text(json.dumps(other))
    with pytest.raises(UsageError) as caught:
        experiment.resume(folder)
    named = {line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]}
    more = {f"config.{table}.more" for table in identity["config"]}
    assert {key for key in every if key not in named} == {f"config.{key}" for key in FREE}
    assert named - every <= more | {"config.lora.ranks"} and more <= named
    assert len(experiment.resume(folder, force=True).summary["forced"]) == len(named)


def test_the_best_round_before_a_stop_is_kept_to_the_end(small_config, tmp_path, monkeypatch):
    config = small_config("federation.rounds=5", "checkpoints.keep=2", "evaluation.arms=base,federated")
    measure = federated.evaluate

    def first_is_best(arm, model, number, *rest):
        losses = measure(arm, model, number, *rest)
        return dataclasses.replace(losses, nll=losses.nll / 2) if number == 1 else losses

    monkeypatch.setattr(federated, "evaluate", first_is_best)
    folder = experiment.resume(stopped(config, tmp_path, after_round(3))).path
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["round-0001", "round-0004", "round-0005"]


def test_a_run_that_another_process_writes_is_not_touched(config, tmp_path):
    folder = stopped(config, tmp_path, after_round(1))
    with RunDirectory(folder).lock(), pytest.raises(UsageError, match="is being written by"):
        experiment.resume(folder)


def test_a_folder_without_a_run_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "demo").mkdir()
    with pytest.raises(UsageError, match=r"no run directory at .*dmo.*Did you mean 'demo'"):
        experiment.resume(tmp_path / "dmo")
    with pytest.raises(UsageError, match=r"has no identity\.json"):
        experiment.resume(tmp_path / "demo")


def test_a_run_made_with_relative_paths_goes_on_and_is_measured_from_anywhere(
    small_config, model_folder, tmp_path, monkeypatch
):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama").symlink_to(model_folder())
    rows = [{"instruction": f"Count to {n}", "response": f"{n}", "category": "ab"[n % 2]} for n in range(16)]
    for name, part in (("rows", rows[:12]), ("held", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "trace.json").write_text('{"*": [[1, null]]}')
    config = small_config(
        "model.base=models/llama", "data.source=rows.jsonl", "data.held_out_source=held.jsonl",
        "selection.name=availability", "selection.trace=trace.json", "evaluation.arms=base,federated",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    whole = experiment.run(config, out_dir=Path("whole"))
    folder = stopped(config, Path("stopped"), after_round(1)).absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert experiment.resume(folder).summary["adapter_sha256"] == whole.summary["adapter_sha256"]
    for file in ("adapter/adapter_config.json", "adapter/README.md", "config.toml"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / "tiny" / file).read_bytes()
    again = evaluate_run(folder)["federated"]["loss"]
    assert again == pytest.approx(whole.summary["arms"]["federated"]["loss"], abs=1e-4)
