"""Clients are shown by the names that the data give them, and kept by ids that are safe for paths."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from report_runs import write_run
from shepherd.cli import data_tables, live_table, progress
from shepherd.data.names import look_alikes, safe_names
from shepherd.data.partition import divide, load_partition, partition_document, save_partition
from shepherd.experiment.named_clients import client_ranks, local_names
from shepherd.recipe import resolve
from shepherd.report import load_run, write_report
from shepherd.report.wording import cells, clean, isolated, shorten
from shepherd.store.records import notes
from shepherd.types import Example, Message

ARABIC, START, END = "مستشفى دمشق", "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
LONG = "The Hospital of " + "many " * 30 + "wards"


def examples(*sources: str, each: int = 2) -> list[Example]:
    turns = (Message("user", "q"), Message("assistant", "a"))
    return [Example(f"x:{n}:{i}", turns, source=s) for n, s in enumerate(sources) for i in range(each)]


def test_names_are_kept_as_written_beside_ids_in_partition_json(tmp_path):
    sites = ("North", "north", "Üniversität", ARABIC, LONG, "a/b")
    partition = divide(examples(*sites), "by_key", {"key": "source"}, 0, 0)
    assert set(partition.labels.values()) == set(sites)
    ids = {label: client for client, label in partition.labels.items()}
    assert ids["North"] == "North" and ids["north"].startswith("north.") and ids["Üniversität"] == "Universitat"
    assert ids[ARABIC].startswith("client-") and len(ids[LONG]) == 64 and ids["a/b"] == "a-b"
    path = tmp_path / "partition.json"
    save_partition(path, partition)
    assert load_partition(path) == partition
    document = partition_document(partition)
    assert document["labels"] == partition.labels
    del document["labels"]  # as runs of before have it
    path.write_text(json.dumps(document))
    old = load_partition(path)
    assert old.clients == partition.clients and old.label(ids[ARABIC]) == ids[ARABIC]


def test_a_part_of_a_split_key_is_never_taken_for_another_key():
    partition = divide(examples("b-1", "b", "b-1-of-2", "b (1 of 2)", each=3), "by_key", {"key": "source"}, 5, 0)
    split = [label for label in partition.labels.values() if label.endswith("(2 of 2)")]
    assert len(partition.clients) == len(set(partition.labels.values())) == 5 and len(split) == 1
    # Two rows of "b (1 of 2)" and six of "b", which is split: its first part may not take the name of the other key.
    rows = [*examples("b (1 of 2)"), *(replace(e, id=f"b:{e.id}") for e in examples("b", each=6))]
    assert sorted(divide(rows, "by_key", {"key": "source"}, 3, 0).labels.values()) == [
        "b (1 of 2)", "b (1 of 2)\N{PRIME}", "b (2 of 2)",
    ]  # fmt: skip


def test_an_id_depends_on_its_own_name_and_not_on_those_before_it():
    first = dict(zip(("A", "a", "á"), safe_names(("A", "a", "á")), strict=True))
    assert len({name.casefold() for name in first.values()}) == 3
    assert len({name.casefold() for name in safe_names(("a", "A"))}) == 2
    again = dict(zip(("á", "A", "b", "a"), safe_names(("á", "A", "b", "a")), strict=True))
    assert again["á"] == first["á"] and {first["A"], first["a"]} >= {"A"} and again["b"] == "b"


@pytest.mark.parametrize(
    ("one", "other"),
    [("North", "NORTH "), ("Nоrth", "North"), ("Ｎorth", "North"), ("ward 1", "ward\u20131"), ("ward_1", "Ward-1"),
     ("a b", "a\u00a0b"), ("ab", "a\u200bb"), ("é", "e\u0301")],
)  # fmt: skip
def test_names_that_look_alike_are_found(one, other):
    assert look_alikes([one, "else", other, "ward 11"]) == [(one, other)]


def test_the_report_shows_names_in_tables_figures_and_sentences_and_no_id(tmp_path):
    run = write_run(tmp_path / "demo", clients=("client-000", "b", "c"), categories=("client-000", "y"))
    document = json.loads((run / "partition.json").read_text())
    document["labels"] = {"client-000": ARABIC, "b": "Üniversität <b>", "c": "c"}
    (run / "partition.json").write_text(json.dumps(document))
    record = load_run(run)
    names = {ARABIC, "Üniversität <b>", "c"}
    assert set(record.partition["clients"]) == set(record.metrics["arms"]["local"]) == names
    assert set(record.summary["arms"]["local"]) == set(record.partition["table"]["clients"]) == names
    assert all(set(line["cohort"]) <= names and set(line["train_loss"]) <= names for line in record.rounds)
    assert set(record.metrics["arms"]["federated"]["per_client"]) <= names
    assert "client-000" in record.metrics["arms"]["federated"]["per_category"], "a category, not the client"
    page = Path(write_report(run)).read_text(encoding="utf-8")
    assert page.count(ARABIC) > 5 and f">{START}{ARABIC}{END}</text>" in page and "Üniversität &lt;b&gt;" in page
    assert "Üniversität <b>" not in page


def test_a_name_from_right_to_left_does_not_reorder_what_stands_beside_it(capsys):
    assert isolated(ARABIC) == f"{START}{ARABIC}{END}" == shorten(ARABIC, 40) == clean(isolated(ARABIC))
    assert isolated("Üniversität") == "Üniversität" and sum(map(cells, isolated(ARABIC))) == len(ARABIC)
    assert shorten(ARABIC * 9, 12, middle=True).count(START) == 1
    assert clean(f"a{START}b\nc{END}d") == "ab\ncd", "what is not closed on its line would reorder the next"
    assert clean("\u202eevil\u2067") == "evil"
    data_tables.print_partition([ARABIC, LONG], ["x"], np.array([[3], [4]]))
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{START}{ARABIC}{END}") and "…" in second
    shown = [sum(map(cells, line.split("█")[0].split("▓")[0])) for line in (first, second)]
    assert shown[0] == shown[1] and len(head) < 80


def test_the_live_table_and_the_lines_show_names():
    labels = {"client-000": ARABIC}
    start = {"event": "start", "run": "r", "model": "m", "clients": ["a", "client-000"], "labels": labels, "arms": [],
             "rounds": 1, "round": 0, "fraction": 0.0}  # fmt: skip
    row = {"state": "done", "step": 1, "steps": 1, "loss": 2.0, "tokens_per_second": None}
    step = {"event": "step", "arm": "federated", "round": 1, "rounds": 1, "clients": {"client-000": row, "a": row},
            "tokens_per_second": 0.0, "fraction": 1.0, "eta_seconds": None}  # fmt: skip
    lost = {"event": "round", "round": 1, "cohort": ["a", "client-000"], "missing": ["client-000"], "rejected": [
        {"client": "client-000", "code": "x", "detail": "y"}]}  # fmt: skip
    live = live_table.LiveTable(Console(width=100, height=40, file=io.StringIO(), force_terminal=True))
    with live:
        live(start)
        live(step)
        console = Console(width=100, height=40, file=io.StringIO())
        console.print(live.render())
        assert ARABIC in console.file.getvalue() and "client-000" not in console.file.getvalue()
    line = progress.describe(progress.named(lost, labels), start)
    assert f"rejected {isolated(ARABIC)} (x: y)" in line and "client-000" not in line
    beside = {"quarantined": ("client-000",), "round": 2, "skipped": False, "cohort": ()}
    record = SimpleNamespace(rejected=[{"client": "client-000", "code": "x"}], **beside)
    assert notes(record, labels.get) == [f"{ARABIC} is quarantined, it is asked no more: x in round 2"]


def test_settings_may_name_a_client_by_its_name_or_its_id():
    labels = {"client-000": ARABIC, "b": "b"}
    for name in (ARABIC, "client-000"):
        config = resolve({"lora": {"ranks": {name: 2}, "r": 4}, "evaluation": {"local_clients": [name]}})
        assert client_ranks(config.lora, ["b", "client-000"], labels) == {"b": 4, "client-000": 2}
        assert local_names(config, ["b", "client-000"], labels) == ("client-000",)
