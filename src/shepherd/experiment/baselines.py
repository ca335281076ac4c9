"""The baselines: arms that are trained beside the federation, on its rows and at its budget.

What each of them trains on, and how much, stands in `arms/`. They keep their optimizer over the rounds: that is how
anyone would train alone, and the stronger baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from shepherd.arms import Arm
from shepherd.clients.cohort import Cohort
from shepherd.errors import ClientError, UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.evaluation.row_losses import RowLosses
from shepherd.experiment.arms import POOLED, Budget, Measure, Observe, TrainedArm, load_arm, save_arm
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.schedule import Schedule
from shepherd.experiment.session import Session
from shepherd.experiment.trainer import Trainer
from shepherd.model.lora import CohortLora
from shepherd.types import Adapter, ClientFailure, ClientId, ClientModel, Objective, Tokens, Work
from shepherd.updates.privacy.publication import place_of


@dataclass(frozen=True)
class Baseline:
    """The setup of one baseline: `arms.Setup`, and how its models are measured on the held-out rows.

    clients: the training rows of all clients. alone: the clients of the local arm. rate_ratio: η_B / η_A. observe: the
    observer of its rounds.
    """

    arm: Arm
    trainer: Trainer
    clients: Mapping[ClientId, Sequence[Tokens]]
    alone: Sequence[ClientId]
    cohort_size: int
    schedule: Schedule
    rate_ratio: float
    seed: int
    measure: Measure
    observe: Observe

    def share(self, rows: int) -> tuple[int, int]:
        """(rows, optimizer steps) in one round of a client that holds `rows`."""
        return self.schedule.share(rows)

    def train_one(self, rows: Sequence[Tokens], count: int, steps: int) -> TrainedArm:
        """One model on `rows`: `count` of them and `steps` optimizer steps in each round.

        Raises ClientError where its training fails: nothing can stand in for it.
        """
        self._check(per_client=False)
        trained = _train_alone(self, {POOLED: rows}, {POOLED: (count, steps)})
        if trained.failures:
            name = self.arm.name
            key = f"evaluation.{name}_" if name in self.schedule.own_rates else "training."
            raise ClientError(f"the {name} arm failed: {trained.failures[0].detail}", hint=f"lower {key}learning_rate")
        return trained

    def train_each(self, rows: Mapping[ClientId, Sequence[Tokens]]) -> TrainedArm:
        """One model per client, trained side by side in cohorts. Clients whose training failed are in `failures`."""
        self._check(per_client=True)
        found = TrainedArm({}, {}, {}, Budget(0, 0.0, 0, 0, self.schedule.peak(self.arm.name)), per_client=True)
        names, at_once = list(rows), self.trainer.settings.clients_at_once
        self.observe(1, dict.fromkeys(names, "waiting"))
        for start in range(0, len(names), at_once):
            data = {name: rows[name] for name in names[start : start + at_once]}
            shares = {name: self.share(len(held)) for name, held in data.items()}
            _merge(found, _train_alone(self, data, shares))
        return found

    def _check(self, per_client: bool) -> None:
        if self.arm.per_client != per_client:
            used, other = ("train_each", "train_one") if per_client else ("train_one", "train_each")
            raise UsageError(
                f"the {self.arm.name} arm calls setup.{used}, and has per_client = {self.arm.per_client}",
                hint=f"set per_client = {per_client}, or call setup.{other}",
            )


def train_baselines(inputs: Inputs, session: Session) -> tuple[dict[str, TrainedArm], list[str]]:
    """The baselines that the recipe names, and a warning for each client whose training failed.

    Raises ClientError where an arm of one model fails.
    """
    trainer, data = inputs.trainer, inputs.data

    def measure(lora: CohortLora) -> list[RowLosses]:
        with session.reporter.clock.on("evaluate"):
            return row_losses(trainer.packed, data.held_out, lora, trainer.settings.tokens_measured)

    def trained(arm: Arm) -> TrainedArm:
        setup = Baseline(
            arm=arm,
            trainer=trainer,
            clients=data.clients,
            alone=inputs.alone,
            cohort_size=inputs.plan.cohort_size,
            schedule=inputs.schedule,
            rate_ratio=inputs.composition.rate_ratio,
            seed=inputs.seed,
            measure=measure,
            observe=session.meter.steps(arm.name),
        )
        assert arm.train is not None
        return arm.train(setup)

    baselines = inputs.composition.baselines
    found = {arm.name: _kept_or_trained(arm, partial(trained, arm), inputs, session) for arm in baselines}
    failures = [failure for arm in found.values() for failure in arm.failures]
    return found, [f"{data.partition.label(f.client)}: {f.code}: {f.detail}" for f in failures]


def folder_of(name: str, run_dir: Path) -> Path:
    """Where a baseline is kept once it is trained."""
    return place_of(run_dir, f"arms/{name}")


def _kept_or_trained(arm: Arm, train: Callable[[], TrainedArm], inputs: Inputs, session: Session) -> TrainedArm:
    """A baseline, trained; or read back where an earlier process had finished it."""
    kept, trainer = folder_of(arm.name, session.store.path), inputs.trainer
    if kept.is_dir():
        return load_arm(kept, arm.per_client)
    with session.reporter.phase("train", arm.name):
        trained = train()
    with session.store.commit_folder(f"arms/{arm.name}") as pending:
        save_arm(pending, trained, base_name=trainer.base_name, conv1d=trainer.conv1d, keep=inputs.kept)
    session.store.journal("trained", arm=arm.name)
    return trained


def _train_alone(
    setup: Baseline, data: Mapping[ClientId, Sequence[Tokens]], shares: Mapping[ClientId, tuple[int, int]]
) -> TrainedArm:
    """A model for each entry of `data`, trained at once; shares: its (rows, optimizer steps) in each round."""
    trainer, schedule = setup.trainer, setup.schedule
    clients = tuple(data)
    lora = trainer.make_lora()
    views = dict.fromkeys(clients, ClientModel(trainer.adapter))
    # Of the objective only the rate of B holds: alone there is nobody to be pulled towards, or corrected by.
    objective = Objective(rate_ratio=setup.rate_ratio)
    cohort = Cohort(trainer.packed, lora, trainer.settings, views, data, setup.seed, objective)
    rounds, every = schedule.rounds, schedule.measured_every
    curves: dict[str, list[tuple[int, float]]] = {client: [] for client in clients}
    metrics: list[Mapping[str, Mapping[str, float]]] = []
    for number in range(1, rounds + 1):
        work = [
            Work(client, (number - 1) * count, count, schedule.rates(n, number, setup.arm.name))
            for client, (count, n) in shares.items()
        ]
        metrics.append(cohort.run(work, number, partial(setup.observe, number)))
        if every and number % every == 0 and number < rounds:
            for client, losses in zip(clients, setup.measure(lora), strict=True):
                curves[client].append((number, losses.stat.mean))
    final = dict(zip(clients, setup.measure(lora), strict=True))
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
            steps,
            steps / max(len(well), 1),
            rounds * sum(shares[c][0] for c in well),
            targets,
            schedule.peak(setup.arm.name),
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
