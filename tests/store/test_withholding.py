"""A run directory that withholds: what may be published at its usual place, the rest for its owner alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from shepherd.store import RunDirectory, read_journal
from shepherd.store.records import read_rounds
from shepherd.updates.privacy.publication import PRIVATE, place_of, withholds

LINE = {"round": 1, "held_out_loss": 2.5, "cohort": ["anna"], "train_loss": {"anna": 3.1}, "unknown": 1}


@pytest.fixture
def store(tmp_path: Path) -> RunDirectory:
    store = RunDirectory.create(tmp_path, "run")
    store.withhold()
    store.journal("started")
    return store


def public_files(run: Path) -> set[str]:
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(f"{PRIVATE}/")}


def modes(folder: Path) -> set[int]:
    """The modes of a folder and of all folders below it, or, of the files in them."""
    return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.is_dir()}


def commit(store: RunDirectory, number: int) -> None:
    with store.commit_round(number, {**LINE, "round": number}) as folder:
        (folder / "state.json").write_text("{}")


def test_withheld_files_lie_in_private_and_only_their_owner_reads_them(store):
    store.write_json("partition.json", {"clients": {"anna": ["row-1"]}})
    store.write_lines("evaluation/rows_seen.jsonl", [{"client": "anna"}])
    store.write_bytes("evaluation/losses.safetensors", b"x")
    store.write_text("what-is-new.txt", "x")
    store.write_text("config.toml", "x")
    with store.commit_folder("arms/local") as folder:
        (folder / "adapters" / "anna").mkdir(parents=True)
        (folder / "adapters" / "anna" / "adapter_model.safetensors").write_bytes(b"x")
    with store.commit_folder("adapter") as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"x")
    commit(store, 1)

    assert public_files(store.path) == {
        "config.toml",
        "rounds.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/MANIFEST.json",
    }
    private = store.path / PRIVATE
    assert modes(private) == {0o700}
    files = [path for path in private.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {path.relative_to(private).as_posix() for path in files} == {
        "journal.jsonl",
        "rounds.jsonl",
        "partition.json",
        "evaluation/rows_seen.jsonl",
        "evaluation/losses.safetensors",
        "what-is-new.txt",
        "arms/local/MANIFEST.json",
        "arms/local/adapters/anna/adapter_model.safetensors",
        "checkpoints/round-0001/MANIFEST.json",
        "checkpoints/round-0001/state.json",
    }
    assert place_of(store.path, "partition.json") == private / "partition.json"
    assert place_of(store.path, "config.toml") == store.path / "config.toml"


def test_a_record_is_whole_in_private_and_published_by_its_released_keys(store):
    summary = {"rounds": 3, "failed": [{"client": "anna"}], "data": {"name": "dolly", "rows": 12}, "new": 1}
    store.write_json("summary.json", summary)
    commit(store, 1)

    assert json.loads((store.path / "summary.json").read_text()) == {"rounds": 3, "data": {"name": "dolly"}}
    assert json.loads((store.path / PRIVATE / "summary.json").read_text()) == summary
    assert (store.path / "rounds.jsonl").read_text() == '{"round": 1, "held_out_loss": 2.5}\n'
    assert read_rounds(store.path) == [LINE]


def test_a_run_that_goes_on_finds_its_rounds_and_mends_what_it_published(store):
    commit(store, 1)
    commit(store, 2)
    (store.path / "rounds.jsonl").unlink()
    again = RunDirectory(store.path)

    assert again.withholds
    recovered = again.recover()
    assert recovered.checkpoint is not None
    assert recovered.checkpoint.round == 2
    assert not recovered.lines
    assert [json.loads(line)["round"] for line in (store.path / "rounds.jsonl").read_text().splitlines()] == [1, 2]
    commit(again, 3)
    assert [line["round"] for line in read_rounds(store.path)] == [1, 2, 3]
    assert len((store.path / "rounds.jsonl").read_text().splitlines()) == 3


def test_a_round_that_fails_publishes_no_line(store):
    with pytest.raises(ValueError, match="has no files"), store.commit_round(1, LINE):
        pass
    assert not (store.path / "rounds.jsonl").exists()
    assert not read_rounds(store.path)


def test_unfinished_work_in_private_is_swept(store):
    (store.path / PRIVATE / ".tmp-partition.json-1").write_text("half")
    store.write_text("evaluation/left_out.jsonl", "")
    (store.path / PRIVATE / "evaluation" / ".tmp-x-1").write_text("half")
    notes = RunDirectory(store.path).recover().notes
    assert notes == ("unfinished .tmp-partition.json-1 was removed", "unfinished .tmp-x-1 was removed")


def test_any_run_keeps_a_private_file_and_does_not_withhold_for_it(tmp_path):
    store = RunDirectory.create(tmp_path, "run")
    file = store.write_private("canaries.json", b"{}")
    store.journal("started")
    store.write_json("partition.json", {})

    assert file == store.path / PRIVATE / "canaries.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert modes(file.parent) == {0o700}
    assert not withholds(store.path)
    assert place_of(store.path, "partition.json").is_file()
    assert len(read_journal(store.path / "journal.jsonl").rows) == 1
