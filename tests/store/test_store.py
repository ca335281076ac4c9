"""The run directory: files appear whole or not at all, and nothing that exists is overwritten."""

from __future__ import annotations

import json
import os

import pytest

from shepherd.errors import ResourceError, UsageError
from shepherd.store import RunDirectory, check_sealed, checkpoint_name, open_run, read_json


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "demo")


def files(run: RunDirectory) -> list[str]:
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())


def lines(run: RunDirectory, name: str) -> list:
    text = (run.path / name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def test_a_second_run_of_a_name_gets_a_number_and_the_first_stays(tmp_path):
    out = tmp_path / "deep" / "runs"
    made = [RunDirectory.create(out, "demo").path.name for _ in range(3)]
    assert made == ["demo", "demo-2", "demo-3"]
    (out / "demo-2").rmdir()
    assert RunDirectory.create(out, "demo").path.name == "demo-2"
    (out / "other").write_text("a file of that name")
    assert RunDirectory.create(out, "other").path.name == "other-2"
    assert (out / "other").read_text() == "a file of that name"


def test_a_place_that_cannot_hold_runs_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ResourceError) as caught:
            RunDirectory.create(out, "demo")
        assert str(out) in caught.value.message
        assert "--out" in caught.value.hint
        assert caught.value.exit_code == 5


def test_text_and_json_come_back_as_they_were_written(run):
    run.write_text("evaluation/deep/notes.txt", "Käse\nmore\r\n")
    assert (run.path / "evaluation/deep/notes.txt").read_bytes() == "Käse\nmore\r\n".encode()
    value = {"name": "Käse", "list": [1, 2.5, None, True]}
    run.write_json("a.json", value)
    assert read_json(run.path / "a.json") == value
    assert "Käse" in (run.path / "a.json").read_text(encoding="utf-8")
    run.write_json("a.json", {})
    assert read_json(run.path / "a.json") == {}
    assert files(run) == ["a.json", "evaluation/deep/notes.txt"]


def test_lines_are_one_json_object_each_and_appending_keeps_those_before(run):
    run.write_lines("rows.jsonl", [{"text": "two\nlines\u2028"}, {"b": 2}])
    run.append("rows.jsonl", {"c": 3})
    assert lines(run, "rows.jsonl") == [{"text": "two\nlines\u2028"}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_refused_and_leave_what_was_there(run, value):
    run.write_json("a.json", {"ok": 1})
    run.append("rows.jsonl", {"ok": 1})
    for write in (
        lambda: run.write_json("a.json", {"loss": value}),
        lambda: run.append("rows.jsonl", {"loss": value}),
    ):
        with pytest.raises(ValueError, match="Out of range float values"):
            write()
    assert read_json(run.path / "a.json") == {"ok": 1}
    assert lines(run, "rows.jsonl") == [{"ok": 1}]


@pytest.mark.parametrize("moment", ["write", "sync", "rename"])
def test_a_write_that_is_cut_off_leaves_the_old_file_whole(moment, run, monkeypatch):
    run.write_text("a.txt", "old")

    def power_cut(*_):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(type(run.disk), moment, power_cut)
        with pytest.raises(OSError, match="power cut"):
            run.write_text("a.txt", "new and longer")
    assert (run.path / "a.txt").read_text() == "old"
    assert files(run) == ["a.txt"]


def test_the_journal_tells_what_happened_in_order(run):
    run.journal("started", model="abc")
    run.journal("committed", round=1)
    rows = lines(run, "journal.jsonl")
    assert [(row["what"], row.get("model"), row.get("round")) for row in rows] == [
        ("started", "abc", None),
        ("committed", None, 1),
    ]
    assert 1.7e9 < rows[0]["at"] <= rows[1]["at"]


def test_a_folder_appears_whole_when_its_block_ends(run):
    with run.commit_folder("checkpoints/round-0001") as folder:
        (folder / "a").write_text("1")
        assert not (run.path / "checkpoints/round-0001").exists()
    assert files(run) == ["checkpoints/round-0001/MANIFEST.json", "checkpoints/round-0001/a"]


def test_a_flipped_bit_a_lost_byte_and_a_lost_file_of_a_committed_folder_are_named(run):
    with run.commit_folder("personal") as folder:
        (folder / "anna").mkdir()
        (folder / "anna" / "weights").write_bytes(b"w" * 9)
        (folder / "list.json").write_bytes(b"{}")
    folder = run.path / "personal"
    check_sealed(folder)
    for name in ("anna/weights", "list.json", "MANIFEST.json"):
        data = (folder / name).read_bytes()
        for at in range(len(data)):
            (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(ValueError, match=rf"^{name} is not what was written"):
                check_sealed(folder)
        (folder / name).write_bytes(data[:-1])
        with pytest.raises(ValueError, match=rf"^{name} "):
            check_sealed(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"^{name} is missing"):
            check_sealed(folder)
        (folder / name).write_bytes(data)


def test_a_folder_whose_block_fails_leaves_no_trace_and_the_old_one_stays(run):
    with run.commit_folder("adapter") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError, match="mine"), run.commit_folder("adapter") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError("mine")
    assert files(run) == ["adapter/MANIFEST.json", "adapter/a"]
    assert (run.path / "adapter/a").read_text() == "old"
    assert [p.name for p in run.path.iterdir()] == ["adapter"]


def test_committing_again_replaces_the_folder_and_what_a_killed_process_left_beside_it(run):
    pending = run.path / f".tmp-adapter-{os.getpid()}"
    pending.mkdir()
    (pending / "half").write_text("x")
    for name in ("first", "second"):
        with run.commit_folder("adapter") as folder:
            (folder / name).write_text("x")
    (run.path / ".old-adapter").mkdir()
    (run.path / ".old-adapter" / "former").write_text("x")
    with run.commit_folder("adapter") as folder:
        (folder / "third").write_text("x")
    assert files(run) == ["adapter/MANIFEST.json", "adapter/third"]


def test_a_folder_whose_replacement_was_killed_half_way_comes_back(run):
    (run.path / ".old-adapter").mkdir()
    (run.path / ".old-adapter" / "former").write_text("x")
    (run.path / ".tmp-adapter-1").mkdir()
    (run.path / ".tmp-adapter-1" / "half").write_text("x")
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation" / ".tmp-metrics.json-1").write_text("{")
    recovered = run.recover()
    assert files(run) == ["adapter/former"]
    assert recovered.notes == ("unfinished .tmp-adapter-1 was removed", "unfinished .tmp-metrics.json-1 was removed")


@pytest.mark.parametrize(
    ("rounds", "keep", "best", "left"),
    [
        (5, 2, 5, [4, 5]),
        (5, 2, 2, [2, 4, 5]),
        (5, 1, 1, [1, 4, 5]),  # one alone might turn out to be damaged
        (5, 0, 0, [4, 5]),
        (5, 9, 1, [1, 2, 3, 4, 5]),
        (3, 2, 0, [2, 3]),  # none was measured
        (1, 1, 1, [1]),
    ],
)
def test_the_last_checkpoints_and_the_best_are_kept(run, rounds, keep, best, left):
    for number in range(1, rounds + 1):
        with run.commit_folder(f"checkpoints/{checkpoint_name(number)}") as folder:
            (folder / "x").write_text("x")
    run.prune_checkpoints(keep, best)
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [checkpoint_name(n) for n in left]


def test_checkpoints_beyond_ten_thousand_rounds_are_still_in_order(run):
    for number in (9998, 9999, 10_000, 10_001):
        (run.path / "checkpoints" / checkpoint_name(number)).mkdir(parents=True)
    run.prune_checkpoints(2, 0)
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {"round-10000", "round-10001"}


def test_opening_a_run_gives_its_folder_or_says_what_is_wrong(run):
    with pytest.raises(UsageError, match=r"demo has no config\.toml"):
        open_run(run.path)
    run.write_text("config.toml", "")
    assert open_run(run.path) == run.path == open_run(str(run.path))
    with pytest.raises(UsageError, match="did not get that far") as caught:
        open_run(run.path, needs="summary.json")
    assert f"shepherd resume {run.path}" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        open_run(run.path.with_name("demmo"))
    assert "Did you mean 'demo'?" in caught.value.message
    assert caught.value.hint
