"""The arms of a comparison at equal budget: federated, each client alone, and all data in one place.

- federated: the rounds of `round.py`.
- local: each client trains as it would in every round, for all rounds, and nothing is averaged.
- centralised: one client holds all rows; as many optimizer steps as a client takes, on as many rows a step as a
  whole cohort takes together, so rows and tokens are those of the federated arm.

The baselines keep their optimizer over the rounds: that is how anyone would train alone, and the stronger baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shepherd.clients.cohort import Cohort
from shepherd.config import Config
from shepherd.experiment.arms import POOLED, Arm, Budget, Measure, Observe
from shepherd.experiment.plan import peak_rate, rate_ratio, rates, share
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.trainer import Trainer
from shepherd.types import Adapter, ClientFailure, ClientId, ClientModel, Objective, Tokens, Work


def local_arm(
    config: Config, learner: Trainer, rows: FederatedData, names: Sequence[ClientId], observe: Observe, measure: Measure
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
    config: Config, learner: Trainer, rows: FederatedData, cohort: int, observe: Observe, measure: Measure
) -> Arm:
    """All rows at one place, with the rows of a cohort of `cohort` average clients per round."""
    shares = [share(len(held), config.training) for held in rows.clients.values()]
    count = round(cohort * float(np.mean([r for r, _ in shares])))
    steps = max(1, round(float(np.mean([s for _, s in shares]))))
    pooled = tuple(row for client in sorted(rows.clients) for row in rows.clients[client])
    return _train_alone(config, learner, "centralised", {POOLED: pooled}, {POOLED: (count, steps)}, observe, measure)


def _train_alone(
    config: Config,
    learner: Trainer,
    arm: str,
    data: Mapping[ClientId, Sequence[Tokens]],
    shares: Mapping[ClientId, tuple[int, int]],
    observe: Observe,
    measure: Measure,
) -> Arm:
    clients = tuple(data)
    lora = learner.make_lora()
    views = dict.fromkeys(clients, ClientModel(learner.adapter))
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
