"""Run directories with a file that is missing, broken or another thing: an error that names it, never a bug of ours."""

from __future__ import annotations

import shutil
from itertools import product

import pytest

from console import Shell

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
