"""The arms of a comparison at equal budget: federated, each client alone, and all data in one place.

- federated: the rounds of `round.py`.
- local: each client trains as it would in every round, for all rounds, and nothing is averaged.
- centralised: one client holds all rows; as many optimizer steps as a client takes, on as many rows a step as a
  whole cohort takes together, so rows and tokens are those of the federated arm.

The baselines keep their optimizer over the rounds: that is how anyone would train alone, and the stronger baseline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from shepherd.clients.cohort import Cohort
from shepherd.clients.progress import StepReport
from shepherd.config import Config
from shepherd.errors import DataError, ModelError
from shepherd.evaluation.losses import RowLosses
from shepherd.model.adapter import load_adapter, save_adapter
from shepherd.model.arrays import from_file, to_bytes
from shepherd.model.lora import CohortLora
from shepherd.prepare import Learner, Rows, peak_rate, rate_ratio, rates, share
from shepherd.round import Engine, Plan, run_round
from shepherd.store import check_sealed
from shepherd.store.records import RoundRecord
from shepherd.types import Adapter, ClientFailure, ClientId, Objective, ServerState, Tokens, View, Work

Observe = Callable[[int, StepReport], None]
Measure = Callable[[CohortLora], list[RowLosses]]
"""The adapters that are laid in -> the losses of each on all held-out rows."""
POOLED = "pooled"


@dataclass(frozen=True)
class Budget:
    """What an arm spent, clients that failed left out. `optimizer_steps` is of all its clients together.

    `optimizer_steps_per_client` counts steps in sequence: those of a client that takes part in every round.
    `learning_rate` is the peak of its schedule.
    """

    optimizer_steps: int
    optimizer_steps_per_client: float
    rows: int
    target_tokens: int
    learning_rate: float


@dataclass
class Arm:
    """An arm's outcome: adapters by client (or under the arm's name), their held-out losses, the curves, the budget."""

    adapters: dict[str, Adapter]
    losses: dict[str, RowLosses]
    curves: dict[str, list[tuple[int, float]]]
    budget: Budget
    failures: tuple[ClientFailure, ...] = ()


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


def save_arm(folder: Path, arm: Arm, *, base_name: str, conv1d: bool = False) -> None:
    """Write a finished baseline: losses, curves, budget, failures; and the adapter where there is one, not many."""
    arrays = {
        f"{number}/{part}": getattr(losses, part)
        for number, losses in enumerate(arm.losses.values())
        for part in ("nll", "tokens", "hits")
    }
    (folder / "losses.safetensors").write_bytes(to_bytes(arrays))
    rest = {
        "names": list(arm.losses),
        "curves": arm.curves,
        "budget": asdict(arm.budget),
        "failures": [asdict(failure) for failure in arm.failures],
    }
    (folder / "arm.json").write_text(json.dumps(rest, ensure_ascii=True) + "\n", encoding="utf-8")
    if set(arm.adapters) == {POOLED}:
        save_adapter(folder, arm.adapters[POOLED], base_name=base_name, conv1d=conv1d)


def load_arm(folder: Path) -> Arm:
    """A baseline as `save_arm` wrote it; of many clients' adapters none were kept. Raises DataError for damage."""
    try:
        check_sealed(folder)
        rest = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
        arrays, _ = from_file(folder / "losses.safetensors")
        return Arm(
            adapters={POOLED: load_adapter(folder)} if rest["names"] == [POOLED] else {},
            losses={
                name: RowLosses(*(arrays[f"{number}/{part}"] for part in ("nll", "tokens", "hits")))
                for number, name in enumerate(rest["names"])
            },
            curves={name: [(number, loss) for number, loss in curve] for name, curve in rest["curves"].items()},
            budget=Budget(**rest["budget"]),
            failures=tuple(ClientFailure(**failure) for failure in rest["failures"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ModelError) as error:
        raise DataError(
            f"the arm that was trained before the run stopped, {folder}, is damaged: {error}",
            hint="delete that folder: shepherd resume trains the arm again",
        ) from None


def local_arm(
    config: Config, learner: Learner, rows: Rows, names: Sequence[ClientId], observe: Observe, measure: Measure
) -> Arm:
    """Every named client alone, trained side by side in cohorts."""
    arm = Arm({}, {}, {}, Budget(0, 0.0, 0, 0, peak_rate(config, "local")))
    at_once = learner.settings.clients_at_once
    observe(1, dict.fromkeys(names, "waiting"))
    for start in range(0, len(names), at_once):
        chunk = tuple(names[start : start + at_once])
        data = {name: rows.clients[name] for name in chunk}
        shares = {name: share(len(data[name]), config.training) for name in chunk}
        _merge(arm, _train_alone(config, learner, "local", data, shares, observe, measure))
    return arm


def centralised_arm(
    config: Config, learner: Learner, rows: Rows, cohort: int, observe: Observe, measure: Measure
) -> Arm:
    """All rows at one place, with the rows of a cohort of `cohort` average clients per round."""
    shares = [share(len(held), config.training) for held in rows.clients.values()]
    count = round(cohort * float(np.mean([r for r, _ in shares])))
    steps = max(1, round(float(np.mean([s for _, s in shares]))))
    pooled = tuple(row for client in sorted(rows.clients) for row in rows.clients[client])
    return _train_alone(config, learner, "centralised", {POOLED: pooled}, {POOLED: (count, steps)}, observe, measure)


def _train_alone(
    config: Config,
    learner: Learner,
    arm: str,
    data: Mapping[ClientId, Sequence[Tokens]],
    shares: Mapping[ClientId, tuple[int, int]],
    observe: Observe,
    measure: Measure,
) -> Arm:
    clients = tuple(data)
    lora = learner.make_lora()
    views = dict.fromkeys(clients, View(learner.adapter))
    # Of the objective only the rate of B holds: alone there is nobody to be pulled towards, or corrected by.
    objective = Objective(rate_ratio=rate_ratio(config))
    cohort = Cohort(learner.packed, lora, learner.settings, views, data, config.run.seed, objective)
    rounds, every = config.federation.rounds, config.evaluation.every
    curves: dict[str, list[tuple[int, float]]] = {client: [] for client in clients}
    metrics: list[Mapping[str, Mapping[str, float]]] = []
    for number in range(1, rounds + 1):
        work = [
            Work(client, (number - 1) * count, count, rates(config, n, number, arm))
            for client, (count, n) in shares.items()
        ]
        metrics.append(cohort.run(work, number, lambda report, n=number: observe(n, report)))
        if every and number % every == 0 and number < rounds:
            for client, losses in zip(clients, measure(lora), strict=True):
                curves[client].append((number, losses.stat.mean))
    final = dict(zip(clients, measure(lora), strict=True))
    for client, losses in final.items():
        if client not in cohort.failures and not np.isfinite(losses.stat.mean):
            detail = f"the held-out loss became {losses.stat.mean}"
            cohort.failures[client] = ClientFailure(client, rounds, "non-finite", detail)
    well = [client for client in clients if client not in cohort.failures]
    targets, steps = (sum(int(m[c][what]) for m in metrics for c in well) for what in ("targets", "steps"))
    a = learner.adapter
    return Arm(
        adapters={c: Adapter(lora.read(clients.index(c)), a.r, a.alpha, a.rslora, a.base_digest) for c in well},
        losses={c: final[c] for c in well},
        curves={c: [*curves[c], (rounds, final[c].stat.mean)] for c in well},
        budget=Budget(
            steps, steps / max(len(well), 1), rounds * sum(shares[c][0] for c in well), targets, peak_rate(config, arm)
        ),
        failures=tuple(cohort.failures.values()),
    )


def _merge(arm: Arm, more: Arm) -> None:
    clients = max(1, len(arm.adapters) + len(more.adapters))
    arm.adapters |= more.adapters
    arm.losses |= more.losses
    arm.curves |= more.curves
    arm.failures += more.failures
    steps = arm.budget.optimizer_steps + more.budget.optimizer_steps
    arm.budget = replace(
        arm.budget,
        optimizer_steps=steps,
        optimizer_steps_per_client=steps / clients,
        rows=arm.budget.rows + more.budget.rows,
        target_tokens=arm.budget.target_tokens + more.budget.target_tokens,
    )
