"""The federated arm: rounds after a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shepherd.experiment.arms import Budget, Observe
from shepherd.round import Engine, Plan, run_round
from shepherd.store.records import RoundRecord
from shepherd.types import ServerState


def federated_rounds(
    state: ServerState, plan: Plan, engine: Engine, rounds: int, observe: Observe
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """The rounds after `state`, one by one."""
    while state.round < rounds:
        number = state.round + 1
        state, record = run_round(state, plan, engine, lambda report, n=number: observe(n, report))
        yield state, record


def federated_budget(lines: Sequence[Mapping[str, Any]], cohort_size: int, learning_rate: float) -> Budget:
    """What the federated arm spent, from the lines of rounds.jsonl."""
    steps, rows, tokens = (sum(sum(line[key].values()) for line in lines) for key in ("steps", "examples", "tokens"))
    return Budget(steps, steps / cohort_size, rows, tokens, learning_rate)
