"""`shepherd runs`: what is listed is what lies there, and only what was meant is deleted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from broken_disks import QuickDisk
from console import Shell
from report_runs import change, write_run
from shepherd.store import RunDirectory


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


@pytest.fixture
def runs(shell) -> Path:
    """runs/done with three rounds of 3, runs/stopped with one of 3."""
    for name, finished, rounds in (("done", True, 3), ("stopped", False, 1)):
        run = RunDirectory(write_run(Path("runs") / name, finished=finished), QuickDisk())
        (run.path / "rounds.jsonl").unlink()
        for number in range(1, rounds + 1):
            with run.commit_round(number, {"round": number}) as folder:
                (folder / "state.json").write_text("x" * 1000)
        run.prune_checkpoints(2, 0)
        run.journal("started")
    return Path("runs")


def test_runs_are_listed_with_state_rounds_losses_size_and_date(shell, runs):
    outcome = shell("runs", "ls")
    head, done, stopped = outcome.out.splitlines()
    assert head.split() == ["run", "state", "rounds", "base", "federated", "local", "centralised", "size", "started"]
    summary = json.loads((runs / "done" / "summary.json").read_text())["arms"]
    assert done.split()[:5] == ["done", "finished", "3/3", f"{summary['base']['loss']:.3f}",
                                f"{summary['federated']['loss']:.3f}"]  # fmt: skip
    assert stopped.split()[:3] == ["stopped", "interrupted", "1/3"] and "kB" in stopped
    assert outcome.err == "resume an interrupted run: shepherd resume runs/stopped\n"
    found = {entry["name"]: entry for entry in json.loads(shell("runs", "ls", "--json").out)}
    local = [arm["loss"] for arm in summary["local"].values()]
    assert found["done"]["losses"]["local"] == pytest.approx(sum(local) / len(local))
    assert found["done"]["bytes"] == sum(p.stat().st_size for p in (runs / "done").rglob("*") if p.is_file())
    assert found["stopped"]["losses"] == {} and found["stopped"]["planned"] == 3


def test_the_list_says_of_how_many_clients_the_loss_alone_is_where_it_is_not_all(shell, runs):
    def three(summary: dict) -> None:
        summary["arms"]["local"] = dict(list(summary["arms"]["local"].items())[:3])

    assert "(of" not in shell("runs", "ls").out
    change(runs / "done" / "summary.json", three)
    assert " (of 3 clients) " in shell("runs", "ls").out
    assert [entry["alone"] for entry in json.loads(shell("runs", "ls", "--json").out)] == [3, None]


def test_a_run_that_is_being_written_is_running_and_is_not_deleted(shell, runs):
    with RunDirectory(runs / "stopped").lock():
        assert "stopped  running" in shell("runs", "ls").out
        outcome = shell("runs", "rm", "--yes", "done", "stopped")
        assert outcome.status == 2 and "runs/stopped is being written by process" in outcome.err
        assert (runs / "done").exists() and (runs / "stopped" / "config.toml").exists()
    assert "stopped  interrupted" in shell("runs", "ls").out


def test_folders_that_cannot_be_read_are_listed_all_the_same(shell, runs):
    (runs / "done" / "summary.json").write_text("{")
    (runs / "stopped" / "config.toml").write_text("[")
    (runs / "stopped" / "journal.jsonl").write_bytes(b"\xff\n\xfe")
    (runs / "stopped" / "checkpoints" / "round-x").mkdir()
    (runs / "notes").mkdir()
    found = {entry["name"]: entry for entry in json.loads(shell("runs", "ls", "--json").out)}
    assert found.keys() == {"done", "stopped"} and found["done"]["losses"] == {}
    assert found["stopped"]["planned"] is None and "1/?" in shell("runs", "ls").out


def test_no_runs_are_said_to_be_none(shell):
    for command in ("ls", "du"):
        outcome = shell("runs", command, "--out", "elsewhere")
        assert (outcome.status, outcome.out) == (0, "") and "no runs in elsewhere" in outcome.err
        assert json.loads(shell("runs", command, "--json").out) == []


def test_the_parts_of_a_run_add_up_to_its_size(shell, runs):
    (runs / "done" / "checkpoints" / "rejected-round-0009").mkdir()
    (runs / "done" / "checkpoints" / "rejected-round-0009" / "x").write_text("x" * 500)
    (runs / "done" / ".tmp-summary.json-1").write_text("x" * 30)
    size = sum(p.stat().st_size for p in (runs / "done").rglob("*") if p.is_file())
    Path("elsewhere").write_text("x" * 10_000)
    (runs / "done" / "link").symlink_to(Path("elsewhere").resolve())
    (done,) = json.loads(shell("runs", "du", "done", "--json").out)
    assert done["unused"] == 530 and 2000 < done["checkpoints"] < 4000
    assert done["total"] == size
    parts = ("checkpoints", "adapter", "evaluation", "report.html", "unused", "other")
    assert done["total"] == sum(done[part] for part in parts) and done["other"] > 0
    lines = shell("runs", "du").out.splitlines()
    assert lines[0].split() == ["run", *parts, "total"]
    assert [line.split()[0] for line in lines[1:]] == ["done", "stopped", "all"]


def test_a_run_is_deleted_when_one_says_yes_and_kept_otherwise(shell, runs, monkeypatch):
    monkeypatch.setattr("sys.stdin", Typed("n\n"))
    outcome = shell("runs", "rm", "done")
    assert outcome.status == 0 and outcome.out == "" and (runs / "done").exists()
    assert "delete runs/done (finished, 3 rounds, " in outcome.err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    outcome = shell("runs", "rm", "done")
    assert outcome.status == 2 and "--yes" in outcome.err and (runs / "done").exists()
    monkeypatch.setattr("sys.stdin", Typed("y\nn\n"))
    outcome = shell("runs", "rm", "done", "stopped")
    assert outcome.status == 0 and outcome.out.startswith("deleted runs/done, ")
    assert sorted(path.name for path in runs.iterdir()) == ["stopped"]
    weight = json.loads(shell("runs", "ls", "--json").out)[0]["bytes"]
    (gone,) = json.loads(shell("runs", "rm", "--yes", "--json", "stopped", "runs/stopped").out)
    assert gone == {"name": "stopped", "path": "runs/stopped", "bytes": weight} and list(runs.iterdir()) == []


def test_a_folder_that_only_has_a_config_and_the_one_where_one_is_are_not_deleted(shell, runs, monkeypatch):
    project = Path("project")
    project.mkdir()
    (project / "config.toml").write_text("mine")
    outcome = shell("runs", "rm", "--yes", "project")
    assert outcome.status == 2 and "may not be a run" in outcome.err and (project / "config.toml").exists()
    monkeypatch.chdir(runs / "done" / "evaluation")
    outcome = shell("runs", "rm", "--yes", Path("..").resolve())
    assert outcome.status == 2 and "is where you are" in outcome.err and Path("../config.toml").exists()


def test_a_link_to_a_run_is_deleted_without_what_it_leads_to(shell, runs):
    (runs / "done").rename("kept")
    (runs / "done").symlink_to(Path("kept").resolve())
    assert shell("runs", "rm", "--yes", "done").status == 0
    assert not (runs / "done").is_symlink() and Path("kept/config.toml").exists()


def test_names_cannot_drive_the_terminal(shell, runs):
    (runs / "done").rename(runs / "a\x1b[31m")
    for command in (("ls",), ("du",), ("rm", "--yes", "runs/a\x1b[31m")):
        assert "\x1b" not in shell("runs", *command).out
