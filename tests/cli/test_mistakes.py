"""Mistakes that people make: each is answered with what, where, why and how to mend it, and with its exit status.

The numbers are those of the list of twenty that the project keeps. 17 (port in use), 18 (server unreachable) and 20
(judge) concern parts that do not exist yet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from console import Outcome, Shell
from shepherd.experiment import estimate
from tiny import tiny_model, tiny_tokenizer

ROWS = [
    {"instruction": f"Name colour {i}.", "response": f"It is {name}.", "category": name}
    for i in range(12)
    for name in ("red", "blue")
]


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))
    return Shell(capsys, monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return name


def explains(outcome: Outcome, status: int, *parts: str) -> None:
    """The outcome has this status, all these words on stderr, nothing on stdout, a hint, and no traceback."""
    assert outcome.status == status, outcome.err
    assert [part for part in parts if part not in outcome.err] == [], outcome.err
    error, hint = outcome.err.index("error: "), outcome.err.index("hint: ")
    assert error < hint and "Traceback" not in outcome.err
    assert outcome.out == ""


def test_1_a_file_that_is_not_there_is_answered_with_the_nearest_name(shell):
    write("clinic.jsonl", ROWS)
    explains(shell("run", "--data", "clinci.jsonl"), 3, "data not found: clinci.jsonl", "Did you mean 'clinic.jsonl'?")


def test_2_malformed_jsonl_is_answered_with_file_line_column_and_the_row(shell):
    Path("x.jsonl").write_text('{"instruction": "a", "response": "b"}\n{"instruction": "a", response: "b"}\n')
    explains(shell("run", "--data", "x.jsonl"), 3, "x.jsonl:2:22", '{"instruction": "a", response: "b"}')


def test_3_unknown_columns_are_answered_with_those_found_those_accepted_and_the_flag(shell):
    write("x.jsonl", [{"ask": "a", "tell": "b"}])
    explains(shell("run", "--data", "x.jsonl"), 3, "ask, tell", "instruction, response", "--columns instruction=ask")


def test_3_a_column_that_is_not_in_the_file_is_named(shell):
    write("x.jsonl", [{"question": "a", "answer": "b"}])
    outcome = shell("run", "--data", "x.jsonl", "--columns", "instruction=quesion,response=answer")
    explains(outcome, 3, "quesion", "question")


def test_4_rows_that_are_all_dropped_are_counted_per_reason(shell):
    write("x.jsonl", [{"instruction": "a", "response": ""}] * 3 + [{"instruction": "", "response": "b"}] * 2)
    explains(shell("run", "--data", "x.jsonl"), 3, "none of the 5 rows can be used", "3 rows: empty answer", "2 rows: ")


def test_5_prompts_longer_than_the_limit_lose_their_start_and_never_their_answer(shell, model):
    # Other tools mask every label here and train on nothing; the answer is kept, so there is something to learn.
    write("x.jsonl", [{"instruction": "sheep " * 200, "response": "yes"}] * 3)
    outcome = shell("data", "inspect", "x.jsonl", "--model", model, "--set", "data.max_length=16", "--json")
    seen = json.loads(outcome.out)
    assert (outcome.status, seen["rows"], seen["cut_rows"], seen["refused"]) == (0, 3, 3, {})
    assert "yes" in "".join(text for text, learned in seen["examples"][0]["pieces"] if learned)


def test_6_an_unknown_key_is_answered_with_the_nearest_or_its_own_table(shell):
    outcome = shell("run", "--set", "training.rounds=3", "--set", "lora.rnak=4", "--set", "training.batchsize=2")
    explains(
        outcome, 2, "3 problems in the settings", "unknown key 'training.rounds'. Did you mean 'federation.rounds'?",
        "unknown key 'lora.rnak'", "Did you mean 'training.batch_size'?",
    )  # fmt: skip


def test_6_an_option_that_the_partitioner_does_not_have_is_refused(shell):
    explains(shell("run", "--set", "partition.alpa=3"), 2, "partitioner 'by_key' has no option 'alpa'", "key")
    explains(shell("run", "--set", "partition.client=3"), 2, "unknown key 'partition.client'", "'partition.clients'?")


def test_6_a_format_and_a_template_that_are_not_known_are_answered_together_with_everything_else(shell):
    outcome = shell("check", "--set", "data.format=doly", "--set", "data.template=chatml", "--set", "lora.r=0")
    explains(
        outcome, 2, "3 problems", "unknown format: 'doly'. Did you mean 'dolly'?", "Did you mean 'chat'?", "lora.r",
    )  # fmt: skip
    outcome = shell("check", "--set", "data.template=Q: {instrucion} A: {response}")
    explains(outcome, 2, "data.template: template 'Q: {instrucion} A: {response}': {instruction} is required")


def test_6_a_name_that_no_registry_knows_is_answered_with_the_nearest_together_with_everything_else(shell):
    outcome = shell("run", "--set", "partition.name=shard", "--set", "federation.method=fedot", "--set", "lora.r=0")
    explains(outcome, 2, "3 problems", "Did you mean 'shards'?", "Did you mean 'fedit'?", "lora.r: must be at least 1")


def test_7_values_of_the_wrong_type_or_range_are_named_with_what_was_given(shell):
    outcome = shell(
        "run", "--set", "partition.clients=-1", "--set", "federation.fraction=1.5", "--set", "lora.r=eight",
        "--set", "evaluation.arms=bse",
    )  # fmt: skip
    explains(
        outcome, 2, "4 problems", "partition.clients: must be at least 0, got -1",
        "federation.fraction: must be at most 1.0, got 1.5", "lora.r: must be a whole number, got 'eight'",
        "Did you mean 'base'?",
    )  # fmt: skip


def test_7_partitioner_options_of_the_wrong_type_are_named_together_with_everything_else(shell):
    def refused(*options: str) -> str:
        outcome = shell("run", *(part for option in options for part in ("--set", option)))
        explains(outcome, 2, "in the settings")
        return outcome.err

    printed = refused("partition.name=shards", "partition.per_client=two", "lora.r=0")
    assert "2 problems" in printed and "per_client must be a whole number, got 'two'" in printed
    assert "per_client must be a whole number, got 2.5" in refused("partition.name=shards", "partition.per_client=2.5")
    printed = refused("partition.name=dirichlet", "partition.alpha=x", "partition.balanced=no")
    assert "alpha must be a number, got 'x'; balanced must be true or false, got 'no'" in printed


def test_8_more_clients_than_rows_is_answered_with_the_most_there_can_be(shell):
    data = write("x.jsonl", ROWS)
    explains(
        shell("data", "partition", data, "--set", "partition.clients=90"),
        3,
        "90 clients",
        "partition.clients to at most 12",
    )


@pytest.mark.parametrize("command", ["check", "run"])
def test_8_more_clients_a_round_than_there_are_is_refused_and_not_silently_fewer(command, shell, model):
    data = write("x.jsonl", ROWS)
    by_category = ["--set", "partition.name=by_key", "--set", "partition.clients=0"]
    outcome = shell(command, "--data", data, "--model", model, *by_category, "--set", "federation.clients_per_round=3")
    explains(outcome, 2, "federation.clients_per_round = 3 is more than the 2 clients", "at most 2")
    outcome = shell(command, "--data", data, "--model", model, *by_category, "--set", "federation.min_updates=3")
    explains(outcome, 2, "federation.min_updates = 3 can never come from 2 clients", "at most 2")
    both = ["--set", "federation.clients_per_round=4", "--set", "federation.min_updates=3"]
    outcome = shell(command, "--data", data, "--model", model, *by_category, *both)
    explains(outcome, 2, "federation.clients_per_round = 4 is more", "federation.min_updates = 3 can never")


def test_9_a_folder_that_is_no_model_or_has_no_tokenizer_is_named_with_what_is_missing(shell, model, tmp_path):
    data = write("x.jsonl", ROWS)
    (tmp_path / "empty").mkdir()
    explains(shell("run", "--data", data, "--model", tmp_path / "empty"), 4, "is not a model", "config.json")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if "token" not in file.name and "jinja" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    explains(shell("run", "--data", data, "--model", bare), 4, "tokenizer", str(bare))


def test_10_a_model_that_is_not_here_is_answered_with_the_line_that_fetches_it(shell):
    data = write("x.jsonl", ROWS)
    explains(
        shell("run", "--data", data, "--model", "org/name"),
        4,
        "nor a model in the cache",
        "shepherd model pull org/name",
    )
    explains(shell("data", "inspect", "demo"), 4, "smollm2-135m", "shepherd model pull smollm2-135m")


def test_10_a_built_in_model_that_cannot_be_fetched_ends_with_the_network_status(shell, monkeypatch):
    from shepherd.errors import NetworkError
    from shepherd.model import fetch

    def no_network(name, progress=None, **options):
        raise NetworkError("no route", hint=f"shepherd model pull {name}")

    monkeypatch.setattr(fetch, "pull", no_network)
    explains(shell("run", "demo"), 7, "fetching smollm2-135m once", "no route", "shepherd model pull smollm2-135m")


def test_11_a_tokenizer_without_a_chat_template_is_answered_with_the_templates_there_are(shell, tmp_path):
    data, plain = write("x.jsonl", ROWS), tiny_model("llama", tmp_path / "plain", chat_template=None)
    outcome = shell("run", "--data", data, "--model", plain, "--set", "data.template=chat")
    explains(outcome, 4, "has no chat template", 'data.template = "alpaca"')


@pytest.mark.parametrize("flag", ["--data", "--model", "--out", "--name"])
def test_an_empty_flag_is_refused_and_does_not_mean_the_folder_one_is_in(flag, shell):
    explains(shell("run", flag, ""), 2, f"{flag} is empty")


@pytest.mark.parametrize("command", ["check", "run"])
def test_14_a_place_that_cannot_hold_a_run_is_refused_before_the_model_loads(command, shell, model):
    Path("file").touch()
    outcome = shell(command, "--data", write("x.jsonl", ROWS), "--model", model, "--out", "file/runs")
    assert outcome.status == 5 and "no run directory can be made in file/runs" in outcome.err
    assert "hint: choose another place with --out" in outcome.err and "load model" not in outcome.err


def test_12_target_modules_that_the_model_lacks_are_answered_with_its_linear_names(shell, model):
    outcome = shell("run", "--data", write("x.jsonl", ROWS), "--model", model, "--set", "lora.targets=q_prj,v_proj")
    explains(outcome, 4, "no linear layer 'q_prj'", "Did you mean 'q_proj'?", "gate_proj")


def test_13_an_adapter_of_another_base_is_refused_with_both_digests(shell, tmp_path):
    base = tiny_model("llama", tmp_path / "model")
    small = [
        "--set",
        "training.local_steps=1",
        "--set",
        "evaluation.arms=base,federated",
        "--set",
        "federation.rounds=1",
    ]
    small += ["--set", "data.held_out_per_category=2", "--set", "evaluation.generate=0"]
    assert shell("run", "--data", write("x.jsonl", ROWS), "--model", base, *small).status == 0
    assert "all rows" in shell("evaluate", "own-data").out
    tiny_model("llama", tmp_path / "model", seed=1)
    explains(shell("evaluate", "own-data"), 4, "belongs to another base", "digest")


def test_check_finds_a_weight_that_the_files_of_the_model_lack(shell, tmp_path):
    from safetensors.numpy import load_file, save_file

    base = tiny_model("llama", tmp_path / "model")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    outcome = shell("check", "--data", write("x.jsonl", ROWS), "--model", base)
    explains(outcome, 4, "is not whole: 1 weight in no file, e.g. model.layers.1.self_attn.v_proj.weight", "again")


def test_14_a_plan_that_does_not_fit_is_refused_with_its_numbers_and_what_is_smaller(shell, model, monkeypatch):

    def refused(**needs: int) -> str:
        monkeypatch.setattr(estimate, "plan_checked", lambda checked, progress=None: {"device": "cpu", **needs})
        outcome = shell("check", "--data", data, "--model", model)
        assert outcome.status == 5 and "Traceback" not in outcome.err
        return outcome.err

    data = write("x.jsonl", ROWS)
    assert "takes about 9,000 TB of memory" in (printed := refused(memory_bytes=9 * 10**15)) and "--quick" in printed
    assert (
        "takes about 9,000 TB on the disk of runs" in (printed := refused(disk_bytes=9 * 10**15)) and "--out" in printed
    )


def test_15_a_gpu_that_is_not_there_is_said_with_the_setting_that_uses_what_is(shell, model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    outcome = shell("run", "--data", write("x.jsonl", ROWS), "--model", model, "--set", "model.device=cuda")
    explains(outcome, 5, "'cuda'", 'model.device = "auto"')


def test_16_a_missing_extra_is_answered_with_its_install_line(shell, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    explains(shell("data", "partition", "hub:org/rows"), 2, "'datasets'", "pip install 'shepherd-fedit[hub]'")


def test_19_a_client_whose_update_is_not_finite_is_named_with_round_and_reason(shell, model):
    data = write("x.jsonl", ROWS)
    outcome = shell("run", "--data", data, "--model", model, "--set", "training.learning_rate=1e38")
    explains(outcome, 6, "round 1", "0 usable updates, 1 needed", "client-000", "not finite", "training.learning_rate")


def test_6_a_selection_and_its_options_are_checked_with_everything_else(shell, tmp_path):
    explains(shell("check", "--set", "selection.name=posson"), 2, "unknown selection: 'posson'", "'poisson'?", "oort")
    outcome = shell("check", "--set", "selection.name=poisson", "--set", "selection.p=0.1", "--set", "lora.r=0")
    explains(outcome, 2, "2 problems", "selection 'poisson' has no option 'p'", "Its options: q", "lora.r")
    explains(shell("run", "--set", "federation.selection=poisson"), 2, "Did you mean 'selection.name'?")
    explains(shell("check", "--set", "selection.name=availability", "--set", f"selection.trace={tmp_path / 'x'}"), 2,
          "availability trace not found")  # fmt: skip


def test_7_settings_that_make_no_sense_with_a_selection_are_all_named_with_what_would(shell):
    outcome = shell(
        "check", "--set", "selection.name=poisson", "--set", "federation.weights=tokens",
        "--set", "federation.over_select=0.5", "--set", "federation.method=hetlora",
    )  # fmt: skip
    explains(
        outcome, 2, "3 problems", 'selection.name = "poisson" and federation.weights = "tokens" do not fit',
        'set federation.weights = "examples" or "uniform"', "federation.over_select = 0.5 do not fit",
        'method.weigh = "product_norm" do not fit', 'set method.weigh = "given"',
    )  # fmt: skip


def test_rows_that_all_ask_the_same_are_told_why_none_is_held_out(shell):
    data = write("x.jsonl", [{"instruction": "Say hello.", "response": f"Hello {i}."} for i in range(30)])
    outcome = shell("data", "partition", data)
    explains(outcome, 3, "no held-out rows", "rows that ask the same stay together", "held_out_source")
    assert "at least 1" not in outcome.err  # it is 10
    outcome = shell("data", "partition", data, "--set", "data.held_out_per_category=0")
    explains(outcome, 3, "no held-out rows", "data.held_out_per_category to at least 1")


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_check_finds_the_weights_and_the_device_that_a_run_would_stumble_over(command, shell, tmp_path):
    model = tiny_model("llama", tmp_path / "cut")
    bits = shell(command, "--model", model, "--set", "model.quantize=4bit", "--set", "model.device=cpu")
    assert bits.status == 5 and "needs a CUDA device" in bits.err
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["baa"])
    tokenizer.save_pretrained(model)
    other = shell(command, "--model", model)
    assert other.status == 4 and "'baa', are beyond the 384 embeddings" in other.err
    tiny_tokenizer().save_pretrained(model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cut = shell(command, "--model", model)
    assert cut.status == 4 and f"{weights} cannot be read whole" in cut.err
    weights.write_bytes(b"")
    assert shell(command, "--model", model).status == 4


def test_a_path_into_another_folder_is_not_answered_with_a_name_from_here(shell, tmp_path):
    (tmp_path / "other").mkdir()
    write("x.jsonl", ROWS)
    for command in (["run", "other/demo.toml"], ["data", "partition", "other/demo"], ["chat", "other/demo"]):
        said = shell(*command)
        assert said.status in (2, 3) and "Did you mean" not in said.err, said.err
    assert "Did you mean 'demo'?" in shell("run", "demoo").err
