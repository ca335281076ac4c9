"""Which rows training saw how often, by id: a file that says what the steps of a run did, also after a stop."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest

from shepherd.clients import cohort
from shepherd.experiment import rows_seen
from shepherd.experiment import run as experiment
from shepherd.rng import stream
from stopped_runs import after_round, stopped

ROUNDS = ("evaluation.arms=base,federated", "evaluation.generate=0", "federation.rounds=4")
FEW = ("federation.clients_per_round=3", "federation.over_select=1")
DIVERGES = ("training.learning_rate=1e30", "training.local_steps=3", "federation.on_too_few=skip")


def by_id(path) -> dict[str, Counter]:
    """The file, every row with its own number."""
    held = json.loads((path / "partition.json").read_text(encoding="utf-8"))["clients"]
    found = {}
    for line in (path / "evaluation/rows_seen.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        times = dict.fromkeys(held[entry["client"]], entry["otherwise"])
        times |= {id: int(n) for n, ids in entry["seen"].items() for id in ids}
        assert len(times) == entry["rows"] == len(held[entry["client"]]), "no id that the client does not hold"
        found[entry["client"]] = Counter(times)
    assert sorted(found) == sorted(held)
    return found


def recorded(path) -> list[dict]:
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def stepped(monkeypatch) -> dict[str, Counter]:
    """The rows of every optimizer step that is done, counted while they are trained on."""
    counts: dict[str, Counter] = {}
    step = cohort.Cohort._step

    def spy(self, active, number, *rest):
        step(self, active, number, *rest)
        for client, way in active.items():
            if client not in self.failures:
                counts.setdefault(client, Counter()).update(row.id for _, row in way.batches[number])

    monkeypatch.setattr(cohort.Cohort, "_step", spy)
    return counts


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ((), False),
        (FEW, True),
        (("federation.clients_per_round=3", "federation.deadline=1.1", "federation.on_too_few=skip"), False),
        (("federation.max_update_norm=1e-9", "federation.on_too_few=skip", "federation.quarantine_after=3"), True),
        (DIVERGES, True),
    ],
    ids=["all count", "late after enough others", "past the deadline", "rejected", "failed in step 2"],
)
def test_a_row_is_seen_as_often_as_a_step_was_done_with_it_whether_or_not_the_update_counted(
    settings, unused, run_small, stepped
):
    run = run_small(*ROUNDS, *settings)
    seen, lines = by_id(run.path), recorded(run.path)
    assert {client: +times for client, times in seen.items() if +times} == stepped
    rows = sum(sum({**line["examples"], **line["unused_examples"]}.values()) for line in lines)
    assert sum(times.total() for times in seen.values()) == rows > 0
    assert any(line["unused_examples"] for line in lines) == unused
    for client, times in seen.items():
        numbers = Counter(str(n) for n in times.values())
        assert run.summary["trained_rows"][client] == {"rows": len(times), "seen": dict(numbers)}
    assert run.summary["rows_seen"] == "evaluation/rows_seen.jsonl"
    assert "by its id, is in evaluation/rows_seen.jsonl" in (run.path / "report.html").read_text(encoding="utf-8")


def test_the_row_order_advances_after_work_that_counted_and_repeats_after_work_that_did_not():
    ids = [f"row {i}" for i in range(3)]

    def endless():
        for number in count():
            yield from (ids[i] for i in stream(7, "shuffle", "a", number).permutation(3))

    walk = list(islice(endless(), 20))
    lines = [
        {"examples": {"a": 2}, "unused_examples": {}},
        {"examples": {"b": 1}, "unused_examples": {"a": 4}},
        {"examples": {"a": 5}, "unused_examples": {"b": 1}},
        {"examples": {}},  # a round of an older Shepherd, which a forced resumption goes on from
        {"examples": {}, "unused_examples": {"a": 1}},
    ]
    seen = rows_seen.rows_seen(lines, {"b": 1, "a": 3}, 7)
    expected = Counter([*walk[0:2], *walk[2:6], *walk[2:7], *walk[7:8]])
    assert dict(zip(ids, seen["a"].tolist(), strict=True)) == expected and seen["b"].tolist() == [2]


def test_the_file_names_each_row_but_those_of_the_largest_group():
    rows = SimpleNamespace(clients={"a": [SimpleNamespace(id=name) for name in "pqrstu"]})
    seen = rows_seen.seen_by_id({"a": np.array([2, 1, 2, 0, 2, 1])}, rows)
    assert list(seen) == [{"client": "a", "rows": 6, "otherwise": 2, "seen": {"0": ["s"], "1": ["q", "u"]}}]


def test_a_run_that_was_stopped_ends_with_the_same_file(run_small, small_config, tmp_path):
    run = experiment.resume(stopped(small_config(*ROUNDS, *FEW), tmp_path, after_round(2)))
    whole = run_small(*ROUNDS, *FEW)
    for name in ("evaluation/rows_seen.jsonl", "partition.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert run.summary["trained_rows"] == whole.summary["trained_rows"]
    assert [line["unused_examples"] for line in recorded(run.path)] == [
        line["unused_examples"] for line in recorded(whole.path)
    ]


def test_worker_processes_report_failed_work_too(run_small):
    run, other = run_small(*ROUNDS, *DIVERGES), run_small(*ROUNDS, *DIVERGES, "run.workers=2")
    assert by_id(run.path) == by_id(other.path) and any(times.total() for times in by_id(run.path).values())


def test_rows_that_a_round_trains_two_adapters_on_are_seen_once(run_small):
    one, two = (run_small(*ROUNDS, *FEW, f"personalization.name={name}") for name in ("none", "ditto"))
    assert by_id(one.path) == by_id(two.path)
