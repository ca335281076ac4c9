"""Run directories with a file that is missing, broken or another thing: an error that names it, never a bug of ours."""

from __future__ import annotations

import io
import shutil
from itertools import product
from pathlib import Path

import pytest

from console import Shell
from shepherd.errors import ModelError
from shepherd.model.adapter import fresh_adapter, save_adapter
from shepherd.store import RunDirectory
from shepherd.store.rounds import _encode
from shepherd.tuned import whole

BROKEN = {"missing": None, "empty": b"", "garbage": b"\xff\x00{", "list": b"[]", "folder": ...}
READS = {"evaluate": "partition.json", "resume": "summary.json"}
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


@pytest.mark.parametrize(("command", "how"), list(product(READS, BROKEN)))
def test_a_command_names_the_file_of_a_run_that_it_cannot_read(command, how, broken, capsys, monkeypatch):
    if (command, how) == ("resume", "missing"):
        return  # then the run is one that was stopped
    outcome = Shell(capsys, monkeypatch)(command, broken(READS[command], how))
    assert outcome.status == 3 and READS[command] in outcome.err and "hint: restore" in outcome.err


def test_a_partition_without_a_digest_is_not_the_run_s_data(broken, capsys, monkeypatch):
    folder = broken("partition.json", "empty")
    (folder / "partition.json").write_text("{}")
    outcome = Shell(capsys, monkeypatch)("evaluate", folder)
    assert outcome.status == 8 and "then unknown" in outcome.err


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
    assert outcome.status == 0 and "finished" in outcome.out


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
    assert flipped.status == 4 and "adapter is damaged: adapter_model.safetensors is not what was" in flipped.err
    assert "hint: restore it from a copy" in flipped.err and "--round: 1, 2" in flipped.err and not flipped.out
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


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", *(_encode(m) for m in ({}, {"files": 3}, {"files": {"a": 3}}))]
)
def test_a_manifest_that_is_none_is_named(manifest, command):
    (command.adapter / "MANIFEST.json").write_bytes(manifest)
    outcome = command("chat")
    assert outcome.status == 4 and "adapter is damaged: MANIFEST.json is not what was written" in outcome.err


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
