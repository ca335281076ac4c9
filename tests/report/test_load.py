"""Reading a run directory: what is there is read, what is broken is named."""

from __future__ import annotations

import json

import pytest

from report_runs import change, write_run
from shepherd.errors import DataError
from shepherd.report import load_run


def test_a_finished_run_is_read_whole(tmp_path):
    record = load_run(write_run(tmp_path / "demo"))
    assert record.state == "finished"
    assert record.name == "demo"
    assert [line["round"] for line in record.rounds] == [1, 2, 3]
    assert set(record.metrics["arms"]) == {"base", "federated", "local", "centralised"}
    assert len(record.generations) == 4
    assert record.setting("lora", "r") == 8
    assert record.environment["python"]


def test_a_run_without_summary_is_unfinished_and_still_read(tmp_path):
    record = load_run(write_run(tmp_path / "demo", finished=False))
    assert record.state == "unfinished"
    assert len(record.rounds) == 2
    assert record.metrics == {}
    assert record.generations == ()


def test_a_folder_that_does_not_exist_is_a_data_error_that_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="does not exist") as caught:
        load_run(tmp_path / "nothing")
    assert "shepherd run" in caught.value.hint


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(DataError, match="is a file"):
        load_run(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["config.toml", "partition.json", "rounds.jsonl", "evaluation/metrics.json"])
def test_each_file_that_a_finished_run_must_have_is_named_when_it_is_missing(tmp_path, name):
    run = write_run(tmp_path / "demo")
    (run / name).unlink()
    with pytest.raises(DataError, match=name.split("/")[-1]) as caught:
        load_run(run)
    assert "missing" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["config.toml", "partition.json", "rounds.jsonl", "summary.json", "env.json", "evaluation/metrics.json",
     "evaluation/generations.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("content", [b'{"half": ', b"\xff\xfe\x00", b"[" * 100_000, b"[1, 2]\n"])
def test_a_broken_file_is_a_data_error_that_names_it(tmp_path, name, content):
    run = write_run(tmp_path / "demo")
    (run / name).write_bytes(content)
    with pytest.raises(DataError, match=name.split("/")[-1]) as caught:
        load_run(run)
    assert caught.value.hint


def test_a_broken_line_is_named_by_its_number(tmp_path):
    run = write_run(tmp_path / "demo")
    lines = (run / "rounds.jsonl").read_text().split("\n")
    lines[1] = lines[1][:40]
    (run / "rounds.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 2"):
        load_run(run)


def test_a_last_line_that_is_still_being_written_is_left_out_with_a_note_only_while_the_run_goes_on(tmp_path):
    run = write_run(tmp_path / "demo", finished=False)
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "coh')
    record = load_run(run)
    assert len(record.rounds) == 2
    assert any("rounds.jsonl" in note for note in record.notes)
    (write_run(tmp_path / "done") / "rounds.jsonl").write_text('{"round": 1, "coh')
    with pytest.raises(DataError):
        load_run(tmp_path / "done")


@pytest.mark.parametrize(
    ("name", "edit", "place"),
    [
        ("evaluation/metrics.json", lambda m: m.update(arms=[]), "arms"),
        ("evaluation/metrics.json", lambda m: m["arms"].update(local={"a": 3}), "arms.local.a"),
        ("evaluation/metrics.json", lambda m: m["curves"].update(federated=[1, 2]), "curves.federated.0"),
        ("evaluation/metrics.json", lambda m: m.pop("arms"), "arms"),
        ("partition.json", lambda p: p["clients"].update(x=5), "clients.x"),
        ("partition.json", lambda p: p["table"].update(counts=[["many"]]), "table.counts.0.0"),
        ("summary.json", lambda s: s.update(seconds=12.0), "seconds"),
    ],
)
def test_a_value_of_the_wrong_shape_is_named_with_its_place(tmp_path, name, edit, place):
    run = write_run(tmp_path / "demo")
    change(run / name, edit)
    with pytest.raises(DataError) as caught:
        load_run(run)
    assert place in caught.value.message


def test_a_line_separator_inside_an_answer_does_not_cut_the_line(tmp_path):
    run = write_run(tmp_path / "demo")
    entry = {"id": "x", "category": "c", "prompt": [], "reference": "a", "answers": {"base": "one\u2028two\x85three"}}
    (run / "evaluation/generations.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_run(run).generations[0]["answers"]["base"].startswith("one\u2028two")
