"""Run directories with a file that is missing, broken or another thing: an error that names it, never a bug of ours."""

from __future__ import annotations

import io
import json
import shutil
from itertools import product
from pathlib import Path

import pytest

from console import Shell
from shepherd.errors import ModelError
from shepherd.experiment import run as experiment
from shepherd.experiment.remeasure import evaluate_run
from shepherd.model.adapter import fresh_adapter, save_adapter
from shepherd.store import RunDirectory
from shepherd.store.adapters import whole
from shepherd.store.manifest import encode

BROKEN = {"missing": None, "empty": b"", "garbage": b"\xff\x00{", "list": b"[]", "folder": ...}
READS = (("evaluate", "partition.json"), ("evaluate", "identity.json"), ("resume", "summary.json"))
STOPPED = (
    "identity.json", "rounds.jsonl", "arms/local/arm.json", "arms/local/losses.safetensors",
    "arms/centralised/arm.json",
)  # fmt: skip


@pytest.fixture
def broken(tiny_run, tmp_path):
    def copy(name, how, finished=True):
        folder = tmp_path / "run"
        shutil.copytree(tiny_run.path, folder)
        for end in ("summary.json", "report.html") if not finished else ():
            (folder / end).unlink()
        (folder / name).unlink()
        if BROKEN[how] is ...:
            (folder / name).mkdir()
        elif BROKEN[how] is not None:
            (folder / name).write_bytes(BROKEN[how])
        return folder

    return copy


@pytest.mark.parametrize(
    ("reads", "how"),
    # A run without its summary is one that was stopped.
    [(reads, how) for reads, how in product(READS, BROKEN) if (reads[0], how) != ("resume", "missing")],
)
def test_a_command_names_the_file_of_a_run_that_it_cannot_read(reads, how, broken, capsys, monkeypatch):
    command, file = reads
    outcome = Shell(capsys, monkeypatch)(command, broken(file, how))
    assert outcome.status == 3
    assert file in outcome.err
    assert "hint: restore" in outcome.err


def test_a_partition_without_a_digest_is_not_the_run_s_data(broken, capsys, monkeypatch):
    folder = broken("partition.json", "empty")
    (folder / "partition.json").write_text("{}")
    outcome = Shell(capsys, monkeypatch)("evaluate", folder)
    assert outcome.status == 8
    assert "then unknown" in outcome.err


@pytest.mark.parametrize(("name", "how"), list(product(STOPPED, BROKEN)))
def test_a_stopped_run_with_a_broken_file_says_which_it_is(name, how, broken, capsys, monkeypatch):
    folder = broken(name, how, finished=False)
    outcome = Shell(capsys, monkeypatch)("resume", folder, "--plain")
    known = name.rpartition("/")[0] or name
    assert known in outcome.err
    assert outcome.status in (2, 3, 5), outcome.err


def test_a_journal_that_is_a_folder_does_not_keep_the_other_runs_from_the_list(broken, capsys, monkeypatch):
    folder = broken("journal.jsonl", "folder")
    outcome = Shell(capsys, monkeypatch)("runs", "ls", "--out", folder.parent)
    assert outcome.status == 0
    assert "finished" in outcome.out


@pytest.fixture
def measured(small_config, tmp_path):
    """A run with held-out rows in a file of their own, held.jsonl."""
    rows = [{"instruction": f"Count to {n}", "response": f"{n}", "category": "ab"[n % 2]} for n in range(16)]
    for name, part in (("rows", rows[:12]), ("held", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = (f"data.source={tmp_path / 'rows.jsonl'}", f"data.held_out_source={tmp_path / 'held.jsonl'}")
    return experiment.run(small_config(*files, "evaluation.arms=base,federated"), out_dir=tmp_path / "runs")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace('"response": "12"', '"response": "dozen"'), *lines[1:]],
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[0].replace("12", "16")],
    ],
    ids=["another answer", "a row less", "a row more"],
)
def test_held_out_rows_that_changed_since_the_run_are_not_measured(change, measured, tmp_path, capsys, monkeypatch):
    loss = evaluate_run(measured.path)["federated"]["loss"]
    assert loss == pytest.approx(measured.summary["arms"]["federated"]["loss"], rel=1e-6)
    file = tmp_path / "held.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(change(lines)) + "\n")
    outcome = Shell(capsys, monkeypatch)("evaluate", measured.path)
    assert outcome.status == 8
    assert not outcome.out
    assert "the held-out rows are not those of the run: digest" in outcome.err
    assert f"hint: give back what {file} held" in outcome.err


def test_a_held_out_row_that_changed_places_with_one_that_was_trained_on_is_not_measured(
    measured, tmp_path, capsys, monkeypatch
):
    rows, held = (tmp_path / f"{name}.jsonl" for name in ("rows", "held"))
    (one, *others), (two, *rest) = (file.read_text().splitlines(keepends=True) for file in (rows, held))
    rows.write_text("".join([two, *others]))
    held.write_text("".join([one, *rest]))
    outcome = Shell(capsys, monkeypatch)("evaluate", measured.path)
    assert outcome.status == 8
    assert "the held-out rows are not those of the run" in outcome.err


def test_another_training_row_is_not_the_data_of_the_run(measured, tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text().replace('"response": "7"', '"response": "seven"'))
    outcome = Shell(capsys, monkeypatch)("evaluate", measured.path)
    assert outcome.status == 8
    assert "the data are not those of the run: digest" in outcome.err
    assert f"hint: give back what {file} held" in outcome.err


def test_rows_are_not_measured_with_another_end_token(small_config, model_folder, tmp_path, capsys, monkeypatch):
    base = shutil.copytree(model_folder(), tmp_path / "llama")
    settings = (f"model.base={base}", "evaluation.arms=base,federated", "federation.rounds=1")
    run = experiment.run(small_config(*settings), out_dir=tmp_path / "runs")
    file = base / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    outcome = Shell(capsys, monkeypatch)("evaluate", run.path)
    assert outcome.status == 8
    assert "the tokenizer is not that of the run: digest" in outcome.err
    assert f"hint: give back what {base} held" in outcome.err


def test_another_choice_of_held_out_rows_from_the_same_data_is_not_measured(tiny_run, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    config = (folder / "config.toml").read_text()
    assert "held_out_per_category = 2" in config
    (folder / "config.toml").write_text(config.replace("held_out_per_category = 2", "held_out_per_category = 1"))
    outcome = Shell(capsys, monkeypatch)("evaluate", folder)
    assert outcome.status == 8
    assert "the held-out rows are not those" in outcome.err


COMMANDS = {"evaluate": (), "chat": (), "export": ("--to", "peft", "--out", "out")}


@pytest.fixture
def command(tiny_run, tmp_path, capsys, monkeypatch):
    """command("chat") -> its outcome on a copy of a run, whose `adapter` it has as an attribute."""

    def outcome(name):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        return Shell(capsys, monkeypatch)(name, tmp_path / "run", *COMMANDS[name])

    monkeypatch.chdir(tmp_path)
    outcome.adapter = Path(shutil.copytree(tiny_run.path, tmp_path / "run")) / "adapter"
    return outcome


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flipped_bit_a_lost_byte_or_a_lost_file_of_the_adapter_is_an_error_that_names_the_file(name, command):
    weights = command.adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])  # of a weight: still a whole adapter
    flipped = command(name)
    assert flipped.status == 4
    assert "adapter is damaged: adapter_model.safetensors is not what was" in flipped.err
    assert "hint: restore it from a copy" in flipped.err
    assert "--round: 1, 2" in flipped.err
    assert not flipped.out
    weights.write_bytes(data[:-4])
    assert f"adapter_model.safetensors has {len(data) - 4} bytes, not {len(data)}" in command(name).err
    weights.write_bytes(data)
    for lost in ("adapter_config.json", "tokenizer.json"):
        (command.adapter / lost).rename(command.adapter / "away")
        assert f"{lost} is missing" in command(name).err
        (command.adapter / "away").rename(command.adapter / lost)
    assert command(name).status == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_an_adapter_without_a_manifest_is_used_as_it_is(name, command):
    (command.adapter / "MANIFEST.json").unlink()
    (command.adapter / "README.md").write_text("of another tool")
    outcome = command(name)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", *(encode(m) for m in ({}, {"files": 3}, {"files": {"a": 3}}))])
def test_a_manifest_that_is_none_is_named(manifest, command):
    (command.adapter / "MANIFEST.json").write_bytes(manifest)
    outcome = command("chat")
    assert outcome.status == 4
    assert "adapter is damaged: MANIFEST.json is not what was written" in outcome.err


def test_a_model_of_a_client_with_a_flipped_bit_is_named_with_its_client(tmp_path):
    run = RunDirectory.create(tmp_path, "run")
    with run.commit_folder("personal") as folder:
        save_adapter(folder / "anna", fresh_adapter({"q": (3, 2)}, 1, 1.0, 0), base_name="b")
    assert whole(run.path / "personal") == run.path / "personal"
    file = run.path / "personal" / "anna" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        ModelError, match=r"personal is damaged: anna/adapter_model\.safetensors is not what was written"
    ):
        whole(run.path / "personal")
