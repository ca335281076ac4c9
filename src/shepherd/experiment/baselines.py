"""The arms of a comparison at equal budget: federated, each client alone, and all data in one place.

- federated: the rounds of `round.py`.
- local: each client trains as it would in every round, for all rounds, and nothing is averaged.
- centralised: one client holds all rows; as many optimizer steps as a client takes, on as many rows a step as a
  whole cohort takes together, so rows and tokens are those of the federated arm.

The baselines keep their optimizer over the rounds: that is how anyone would train alone, and the stronger baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from shepherd.clients.cohort import Cohort
from shepherd.errors import ClientError
from shepherd.evaluation.losses import RowLosses, row_losses
from shepherd.experiment.arms import POOLED, Budget, Measure, Observe, TrainedArm, load_arm, save_arm
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.schedule import Schedule
from shepherd.experiment.session import Session
from shepherd.experiment.trainer import Trainer
from shepherd.model.lora import CohortLora
from shepherd.types import Adapter, ClientFailure, ClientId, ClientModel, Objective, Tokens, Work


@dataclass(frozen=True)
class Alone:
    """What the baselines train with, and how their models are measured on the held-out rows."""

    trainer: Trainer
    data: FederatedData
    schedule: Schedule
    rate_ratio: float
    seed: int
    measure: Measure


def train_baselines(inputs: Inputs, session: Session) -> tuple[dict[str, TrainedArm], list[str]]:
    """The baselines that the recipe names, and a warning for each client whose training failed.

    Raises ClientError when the centralised arm fails: nothing can stand in for it.
    """
    trainer, data = inputs.trainer, inputs.data

    def measure(lora: CohortLora) -> list[RowLosses]:
        with session.reporter.clock.on("evaluate"):
            return row_losses(trainer.packed, data.held_out, lora, trainer.settings.tokens_measured)

    alone = Alone(trainer, data, inputs.schedule, inputs.composition.rate_ratio, inputs.seed, measure)
    train = {
        "local": partial(local_arm, alone, inputs.alone),
        "centralised": partial(_centralised, alone, inputs.plan.cohort_size),
    }
    found = {name: _kept_or_trained(name, train[name], trainer, session) for name in train if name in inputs.arms}
    failures = [failure for arm in found.values() for failure in arm.failures]
    return found, [f"{data.partition.label(f.client)}: {f.code}: {f.detail}" for f in failures]


def folder_of(name: str, run_dir: Path) -> Path:
    """Where a baseline is kept once it is trained."""
    return run_dir / "arms" / name


def local_arm(alone: Alone, names: Sequence[ClientId], observe: Observe) -> TrainedArm:
    """Every named client alone, trained side by side in cohorts."""
    arm = TrainedArm({}, {}, {}, Budget(0, 0.0, 0, 0, alone.schedule.peak("local")))
    at_once = alone.trainer.settings.clients_at_once
    observe(1, dict.fromkeys(names, "waiting"))
    for start in range(0, len(names), at_once):
        data = {name: alone.data.clients[name] for name in names[start : start + at_once]}
        shares = {name: alone.schedule.share(len(rows)) for name, rows in data.items()}
        _merge(arm, _train_alone(alone, "local", data, shares, observe))
    return arm


def centralised_arm(alone: Alone, cohort: int, observe: Observe) -> TrainedArm:
    """All rows at one place, with the rows of a cohort of `cohort` average clients per round."""
    clients = alone.data.clients
    shares = [alone.schedule.share(len(rows)) for rows in clients.values()]
    count = round(cohort * float(np.mean([r for r, _ in shares])))
    steps = max(1, round(float(np.mean([s for _, s in shares]))))
    pooled = tuple(row for client in sorted(clients) for row in clients[client])
    return _train_alone(alone, "centralised", {POOLED: pooled}, {POOLED: (count, steps)}, observe)


def _centralised(alone: Alone, cohort: int, observe: Observe) -> TrainedArm:
    arm = centralised_arm(alone, cohort, observe)
    if arm.failures:
        key = "evaluation.centralised_" if "centralised" in alone.schedule.own_rates else "training."
        raise ClientError(f"the centralised arm failed: {arm.failures[0].detail}", hint=f"lower {key}learning_rate")
    return arm


def _kept_or_trained(
    name: str, train: Callable[[Observe], TrainedArm], trainer: Trainer, session: Session
) -> TrainedArm:
    """A baseline, trained; or read back where an earlier process had finished it."""
    kept = folder_of(name, session.store.path)
    if kept.is_dir():
        return load_arm(kept)
    with session.reporter.phase("train", name):
        arm = train(session.meter.steps(name))
    with session.store.commit_folder(f"arms/{name}") as pending:
        save_arm(pending, arm, base_name=trainer.base_name, conv1d=trainer.conv1d)
    session.store.journal("trained", arm=name)
    return arm


def _train_alone(
    alone: Alone,
    arm: str,
    data: Mapping[ClientId, Sequence[Tokens]],
    shares: Mapping[ClientId, tuple[int, int]],
    observe: Observe,
) -> TrainedArm:
    trainer, schedule = alone.trainer, alone.schedule
    clients = tuple(data)
    lora = trainer.make_lora()
    views = dict.fromkeys(clients, ClientModel(trainer.adapter))
    # Of the objective only the rate of B holds: alone there is nobody to be pulled towards, or corrected by.
    objective = Objective(rate_ratio=alone.rate_ratio)
    cohort = Cohort(trainer.packed, lora, trainer.settings, views, data, alone.seed, objective)
    rounds, every = schedule.rounds, schedule.measured_every
    curves: dict[str, list[tuple[int, float]]] = {client: [] for client in clients}
    metrics: list[Mapping[str, Mapping[str, float]]] = []
    for number in range(1, rounds + 1):
        work = [
            Work(client, (number - 1) * count, count, schedule.rates(n, number, arm))
            for client, (count, n) in shares.items()
        ]
        metrics.append(cohort.run(work, number, partial(observe, number)))
        if every and number % every == 0 and number < rounds:
            for client, losses in zip(clients, alone.measure(lora), strict=True):
                curves[client].append((number, losses.stat.mean))
    final = dict(zip(clients, alone.measure(lora), strict=True))
    for client, losses in final.items():
        if client not in cohort.failures and not np.isfinite(losses.stat.mean):
            detail = f"the held-out loss became {losses.stat.mean}"
            cohort.failures[client] = ClientFailure(client, rounds, "diverged", detail)
    well = [client for client in clients if client not in cohort.failures]
    targets, steps = (sum(int(m[c][what]) for m in metrics for c in well) for what in ("targets", "steps"))
    a = trainer.adapter
    return TrainedArm(
        adapters={c: Adapter(lora.read(clients.index(c)), a.r, a.alpha, a.rslora, a.base_digest) for c in well},
        losses={c: final[c] for c in well},
        curves={c: [*curves[c], (rounds, final[c].stat.mean)] for c in well},
        budget=Budget(
            steps, steps / max(len(well), 1), rounds * sum(shares[c][0] for c in well), targets, schedule.peak(arm)
        ),
        failures=tuple(cohort.failures.values()),
    )


def _merge(arm: TrainedArm, more: TrainedArm) -> None:
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
