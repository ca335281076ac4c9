"""Faults of every kind, by the hundred, in whole simulated runs: no run is lost, every fault is named with its reason.

The faults are drawn by seed. After each round the model is computed again, here, from the updates that were in order:
what a faulty client sent must not have moved it by one bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from number_engine import NumberEngine
from shepherd.clients.pool import selections
from shepherd.config import FederationTable
from shepherd.engines.isolation import isolated
from shepherd.engines.local import LocalEngine
from shepherd.experiment import run as experiment
from shepherd.rng import stream
from shepherd.round import Plan, Policy, run_round
from shepherd.server.methods import build_method
from shepherd.store.records import RoundRecord
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientUpdate,
    Factors,
    GlobalModel,
    Objective,
    ServerState,
    TrainTask,
    Work,
)
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.wire import Envelope, Sealed, pack

CLIENTS = tuple(f"client-{i:02d}" for i in range(12))
SHAPES = {"q.A": (2, 5), "q.B": (7, 2), "v.A": (2, 4), "v.B": (3, 2)}
Rng = np.random.Generator


class Hang(Exception):
    """Stands for a client that never answers."""


def with_first(update: ClientUpdate, change: Callable[[np.ndarray], Any]) -> ClientUpdate:
    name = min(update.delta)
    return replace(update, delta={**update.delta, name: change(update.delta[name].copy())})


def spoilt(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return spoil


def message(update: ClientUpdate, **changes: Any) -> bytes:
    usual = {"run": "chaos", "nonce": "n", "base": "", "tokenizer": "", "rank": 2, "scale": 1.0}
    return pack(update, Envelope(**{**usual, **changes}))


# What a client does wrong -> where the record names it, and with which code. A fault makes answers of a good update.
FAULTS: dict[str, tuple[str, str, Callable[[ClientUpdate, Rng], list[Any]]]] = {
    "nothing": ("", "", lambda u, rng: [u]),
    "nothing, as bytes": ("", "", lambda u, rng: [Sealed(u.client, message(u))]),
    "an exception": ("rejected", "error:ValueError", lambda u, rng: [ValueError(f"row {u.client}")]),
    "another exception": ("rejected", "error:ZeroDivisionError", lambda u, rng: [ZeroDivisionError()]),
    "no memory": ("rejected", "out-of-memory", lambda u, rng: [MemoryError()]),
    "no answer": ("missing", "", lambda u, rng: []),
    "NaN": ("rejected", "non-finite", lambda u, rng: [with_first(u, spoilt(np.nan))]),
    "infinity": ("rejected", "non-finite", lambda u, rng: [with_first(u, spoilt(-np.inf))]),
    "a NaN loss": ("rejected", "non-finite", lambda u, rng: [replace(u, metrics={"loss": float("nan")})]),
    "1e30, which is finite": ("rejected", "non-finite", lambda u, rng: [with_first(u, spoilt(1e30))]),
    "1e12, which has a square": ("rejected", "norm", lambda u, rng: [with_first(u, spoilt(1e12))]),
    "too long": ("rejected", "norm", lambda u, rng: [with_first(u, lambda a: a + 1e6)]),
    "transposed": ("rejected", "shape", lambda u, rng: [with_first(u, lambda a: a.T.copy())]),
    "float64": ("rejected", "shape", lambda u, rng: [with_first(u, lambda a: a.astype(np.float64))]),
    "a tensor lost": ("rejected", "tensors", lambda u, rng: [replace(u, delta=dict(list(u.delta.items())[1:]))]),
    "the round before": ("rejected", "stale-round", lambda u, rng: [replace(u, round=u.round - 1)]),
    "no examples": ("rejected", "count", lambda u, rng: [replace(u, num_examples=0)]),
    "a bool of examples": ("rejected", "fields", lambda u, rng: [replace(u, num_examples=True)]),
    "twice": ("ignored", "duplicate", lambda u, rng: [u, u]),
    "twice, the second another": ("ignored", "duplicate", lambda u, rng: [u, with_first(u, lambda a: a + 1)]),
    "damaged, then sent again": ("ignored", "damaged", lambda u, rng: [flipped(u, rng), Sealed(u.client, message(u))]),
    "truncated": ("rejected", "format", lambda u, rng: [Sealed(u.client, message(u)[: int(rng.integers(500))])]),
    "damaged": ("rejected", "damaged", lambda u, rng: [flipped(u, rng)]),
    "another run": ("rejected", "other-run", lambda u, rng: [Sealed(u.client, message(u, run="other"))]),
    "another base": ("rejected", "base", lambda u, rng: [Sealed(u.client, message(u, base="f" * 64))]),
    "another rank": ("rejected", "rank", lambda u, rng: [Sealed(u.client, message(u, rank=4))]),
    "another client's": ("rejected", "impostor", lambda u, rng: [Sealed(u.client, message(replace(u, client="x")))]),
    "slow": ("late", "", lambda u, rng: [u]),
}  # fmt: skip


def flipped(update: ClientUpdate, rng: Rng) -> Sealed:
    data = bytearray(message(update))
    data[-1 - int(rng.integers(100))] ^= 1 << int(rng.integers(8))
    return Sealed(update.client, bytes(data))


def fault_of(seed: int, client: str, number: int) -> str:
    """Two of five answers are in order."""
    rng = stream(seed, "fault", client, number)
    kinds = sorted(FAULTS)
    return "nothing" if rng.random() < 0.4 else kinds[int(rng.integers(len(kinds)))]


def good_update(task: TrainTask, client: str) -> ClientUpdate:
    rng = stream(task.seed, "delta", client, task.round)
    delta = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    return ClientUpdate(client, task.round, delta, int(rng.integers(1, 50)), 10, 2, {"loss": float(rng.uniform(1, 2))})


@dataclass
class Chaos(NumberEngine):
    """An engine of numbers whose clients do wrong. `asked` notes who was asked in which round."""

    seed: int
    asked: list[TrainTask] = field(default_factory=list)

    def train(self, task: TrainTask, deadline: float, enough: Any, observe: Any) -> list[Any]:
        self.asked.append(task)

        def some(part: TrainTask, divisor: int, observe: Any) -> Iterator[Any]:
            for client in part.work:
                rng = stream(self.seed, "fault details", client, task.round)
                for answer in FAULTS[fault_of(self.seed, client, task.round)][2](good_update(task, client), rng):
                    if isinstance(answer, Exception):
                        raise answer
                    yield answer

        answers = list(isolated(task, 5, some, observe))
        # Clients arrive in any order, what one client sends in its own.
        order = stream(self.seed, "arrival", task.round).permutation(sorted(task.work))
        return [answer for client in order for answer in answers if answer.client == client]


def a_plan(seed: int, **changes: Any) -> Plan:
    def clock(work: Work, number: int) -> float:
        return 100.0 if fault_of(seed, work.client, number) == "slow" else 1.0

    usual = Plan(
        seed=seed,
        clients=CLIENTS,
        cohort_size=8,
        select=selections.build("uniform"),
        method=build_method("fedit"),
        weights="examples",
        min_updates=2,
        work=lambda client, number, first: Work(client, first, 4, (0.1, 0.05)),
        rank=lambda client: 2,
        objective=Objective(),
        policy=Policy(on_too_few="skip", deadline=10.0, clock=clock),
        gate=lambda: Gate(Limits(norm=FederationTable().max_update_norm), run="chaos"),
    )
    return replace(usual, **changes)


def beginning() -> ServerState:
    pairs = {
        name: Factors(np.zeros(SHAPES[f"{name}.A"], np.float32), np.zeros(SHAPES[f"{name}.B"], np.float32))
        for name in ("q", "v")
    }
    return ServerState(0, GlobalModel(Adapter(pairs, 2, 2.0)))


def expected_model(before: ServerState, updates: list[ClientUpdate]) -> dict[str, np.ndarray]:
    """before + Σ n_k Δ_k / Σ n_k, in float64 and in the order of the names, without the package's arithmetic."""
    total = float(sum(u.num_examples for u in updates))
    after = {}
    for module, pair in before.model.adapter.factors.items():
        for part in "AB":
            name = f"{module}.{part}"
            mean = np.zeros(SHAPES[name])
            for update in sorted(updates, key=lambda u: u.client):
                mean = mean + update.num_examples / total * update.delta[name].astype(np.float64)
            after[name] = getattr(pair, part) + mean.astype(np.float32)
    return after


@dataclass
class Only(NumberEngine):
    """An engine that yields these updates and nothing else."""

    updates: list[ClientUpdate]

    def train(self, task: TrainTask, deadline: float, enough: Any, observe: Any) -> list[ClientUpdate]:
        return self.updates


def matrices(state: ServerState) -> bytes:
    return b"".join(m.tobytes() for pair in state.model.adapter.factors.values() for m in pair)


def check(seed: int, before: ServerState, after: ServerState, record: RoundRecord, task: TrainTask) -> Counter:
    """Every fault of the round is named where and as it should be, nothing else is, and only good updates counted."""
    faults = Counter()
    named = {
        "rejected": {r["client"]: r["code"] for r in record.rejected},
        "ignored": {r["client"]: r["code"] for r in record.ignored},
        "missing": dict.fromkeys(record.missing, ""),
        "late": dict.fromkeys(record.late, ""),
    }
    expected: dict[str, dict[str, str]] = {place: {} for place in named}
    good = []
    for client in record.cohort:
        kind = fault_of(seed, client, record.round)
        place, code, _ = FAULTS[kind]
        if place:
            expected[place][client] = code
            faults[kind] += 1
        if place in ("", "ignored"):
            good.append(good_update(task, client))
    assert named == expected
    if record.skipped:
        assert len(good) < 2 and after.model is before.model
    else:
        assert sorted(record.weights) == [u.client for u in good]
        for name, array in expected_model(before, good).items():
            module, part = name.rsplit(".", 1)
            np.testing.assert_allclose(getattr(after.model.adapter.factors[module], part), array, rtol=1e-5, atol=1e-7)
        without, _ = run_round(before, a_plan(seed), Only(good))
        assert matrices(after) == matrices(without)
    return faults


@pytest.mark.parametrize("at_least", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_run_is_lost_and_every_fault_is_named_with_its_reason(at_least):
    faults, runs, skipped = Counter(), 0, 0
    while faults.total() < at_least or runs < 5:
        runs += 1
        state, engine, plan = beginning(), Chaos(runs), a_plan(runs)
        for number in range(1, 11):
            before = state
            state, record = run_round(state, plan, engine)
            assert state.round == number
            task = engine.asked[-1]
            faults += check(runs, before, state, record, task)
            skipped += record.skipped
        assert all(np.isfinite(m).all() for pair in state.model.adapter.factors.values() for m in pair)
    assert len(faults) >= len(FAULTS) - 4, f"of {len(FAULTS)} kinds only {sorted(faults)}"
    print(f"{faults.total()} faults of {len(faults)} kinds in {runs} runs of 10 rounds, {skipped} rounds skipped")


def test_the_same_chaos_gives_the_same_bytes():
    def last() -> bytes:
        state, engine = beginning(), Chaos(3)
        for _ in range(10):
            state, _ = run_round(state, a_plan(3), engine)
        return matrices(state)

    assert last() == last()


def test_clients_in_quarantine_are_asked_no_more_and_the_rest_goes_on():
    seed = 7  # in which a late answer comes between two bad ones of a client, and forgives the first
    state, engine = beginning(), Chaos(seed)
    plan = a_plan(seed, policy=replace(a_plan(seed).policy, quarantine_after=2))
    strikes: Counter = Counter()
    for _ in range(15):
        before = state
        state, record = run_round(state, plan, engine)
        assert not set(record.cohort) & set(before.quarantined)
        for client in record.cohort:
            where = FAULTS[fault_of(seed, client, record.round)][0]
            if where == "rejected":
                strikes[client] += 1
            elif where in ("", "ignored", "late"):
                strikes[client] = 0
        assert set(record.quarantined) == {c for c in strikes if strikes[c] >= 2} - set(before.quarantined)
    assert state.quarantined and len(state.quarantined) < len(CLIENTS)


# The tiny model


CHAOTIC = {
    "an exception": lambda u: ClientFailure(u.client, u.round, "error:ValueError", "raised while training"),
    "NaN": lambda u: with_first(u, spoilt(np.nan)),
    "1e30": lambda u: with_first(u, spoilt(1e30)),
    "1e12": lambda u: with_first(u, spoilt(1e12)),
    "transposed": lambda u: with_first(u, lambda a: a.T.copy()),
    "the round before": lambda u: replace(u, round=u.round - 1),
    "no answer": lambda u: None,
    "twice": lambda u: (u, u),
}
EXPECTED = {
    "an exception": ("rejected", "error:ValueError"), "NaN": ("rejected", "non-finite"),
    "1e30": ("rejected", "non-finite"), "1e12": ("rejected", "norm"),
    "transposed": ("rejected", "shape"), "the round before": ("rejected", "stale-round"), "no answer": ("missing", ""),
    "twice": ("ignored", "duplicate"),
}  # fmt: skip


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_of_the_tiny_model_goes_through_chaos_to_its_report(small_config, tmp_path, monkeypatch, rounds):
    planted: dict[tuple[int, str], str] = {}
    train = LocalEngine.train

    def chaotic(self, task, *rest):
        for answer in train(self, task, *rest):
            rng = stream(7, "tiny chaos", answer.client, task.round)
            if rng.random() < 0.4:
                kind = sorted(CHAOTIC)[int(rng.integers(len(CHAOTIC)))]
                planted[task.round, answer.client] = kind
                changed = CHAOTIC[kind](answer)
                yield from changed if isinstance(changed, tuple) else () if changed is None else (changed,)
            else:
                yield answer

    monkeypatch.setattr(LocalEngine, "train", chaotic)
    config = small_config(
        f"federation.rounds={rounds}", "evaluation.arms=base,federated", "evaluation.generate=0", "evaluation.every=0",
        "federation.on_too_few=skip", "federation.quarantine_after=0",
    )  # fmt: skip
    run = experiment.run(config, out_dir=tmp_path)
    lines = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == rounds and (run.path / "report.html").exists() and (run.path / "summary.json").exists()
    assert np.isfinite(run.summary["arms"]["federated"]["loss"])
    told = {}
    for line in lines:
        told |= {(line["round"], c): ("missing", "") for c in line["missing"]}
        for place in ("rejected", "ignored"):
            told |= {(line["round"], r["client"]): (place, r["code"]) for r in line[place]}
    assert told == {key: EXPECTED[kind] for key, kind in planted.items()} and len(planted) >= 2 * rounds
    journal = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    text = json.dumps(journal)
    assert all(client in text for _, client in planted) and "did not count" in text
