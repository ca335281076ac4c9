"""Everything that a run computes with, built once: `load_inputs` is where the config stops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from shepherd.arms import Arm
from shepherd.config import Config
from shepherd.data.prompts import Template
from shepherd.evaluation.answers import Generation
from shepherd.evaluation.metrics import Metric
from shepherd.evaluation.scoring import build_metrics
from shepherd.experiment.capacity import MARGIN, fits_here
from shepherd.experiment.checks import Checked, from_anywhere
from shepherd.experiment.estimate import Estimate, estimate
from shepherd.experiment.method import Composition, doubts
from shepherd.experiment.named_clients import kept_names, local_names
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.privacy_account import privacy_warnings
from shepherd.experiment.progress import Reporter
from shepherd.experiment.rows import FederatedData, prepare_generation, prepare_rows
from shepherd.experiment.schedule import Schedule, prepare_schedule
from shepherd.experiment.trainer import Trainer, base_weights, prepare_trainer
from shepherd.model.base import Base, check_folder, load_base, load_tokenizer
from shepherd.model.fetch import resolve
from shepherd.model.threads import use_threads
from shepherd.round import Plan
from shepherd.types import ClientId, ServerState


@dataclass(frozen=True)
class Inputs:
    """The values of a run.

    config: as given, with absolute paths. resolved: with what was measured too, as config.toml has it and as a worker
    process builds from it. Stages take the values beside them. alone: the clients of the local arm; kept: those whose
    adapters stay in the run directory. start: the server's state before the first round. updates_in_memory: the most
    bytes of a round's updates that stay in memory. warnings: for a person to read before the first round.
    """

    config: Config
    resolved: Config
    composition: Composition
    data: FederatedData
    template: Template
    base: Base
    trainer: Trainer
    schedule: Schedule
    plan: Plan
    alone: tuple[ClientId, ...]
    kept: tuple[ClientId, ...]
    generation: Generation
    metrics: Mapping[str, Metric]
    start: ServerState
    estimate: Estimate
    seed: int
    checkpoints_kept: int
    updates_in_memory: int
    warnings: tuple[str, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of the comparison, as the recipe names them."""
        return self.composition.arms


def load_inputs(checked: Checked, place: Path | None, reporter: Reporter) -> Inputs:
    """Rows, base, trainer and plan of a recipe. `place`: where its run directory is, or will be; None where
    nothing is written.

    Raises DataError, ModelError and UsageError for what a person can mend, ResourceError where memory or disk would
    not do.
    """
    config, composition = from_anywhere(checked.config), checked.composition
    with reporter.phase("prepare data"):
        use_threads(config.run.threads)
        folder = resolve(config.model.base, config.model.revision)
        check_folder(folder)
        tokenizer = load_tokenizer(folder)

        def reading(line: str) -> None:
            reporter.detail("prepare data", line)

        data, template = prepare_rows(config, tokenizer, reading, checked.sources)
        alone = local_names(config, tuple(data.clients), data.partition.labels)
        schedule = prepare_schedule(config)
        plan = prepare_plan(config, composition, data.sizes, schedule, data.partition.labels)
        expected = estimate(config, composition, folder, data, schedule, plan, timed=False)
        fits_here(dataclasses.asdict(expected), place, MARGIN)
    with reporter.phase("load model"):
        base = load_base(**config.model.model_dump())
    with reporter.phase("prepare model"):
        trainer = prepare_trainer(config, composition, base)
        weights = base_weights(base, list(trainer.adapter.factors)) if plan.method.needs_base else None
        start = ServerState(0, plan.method.start(trainer.adapter, config.run.seed, weights))
    return Inputs(
        config=config,
        resolved=resolved(config, composition.rate_ratio, base, trainer),
        composition=composition,
        data=data,
        template=template,
        base=base,
        trainer=trainer,
        schedule=schedule,
        plan=plan,
        alone=alone,
        kept=kept_names(config, composition.baselines, tuple(data.clients), data.partition.labels),
        generation=prepare_generation(config),
        metrics=build_metrics(config.evaluation.metrics),
        start=start,
        estimate=expected,
        seed=config.run.seed,
        checkpoints_kept=config.checkpoints.keep,
        updates_in_memory=config.federation.updates_in_memory_mib * 2**20,
        warnings=(*doubts(config), *privacy_warnings(plan, schedule.rounds), *expected.warnings, *data.warnings),
    )


def resolved(config: Config, rate_ratio: float, base: Base, trainer: Trainer) -> Config:
    """The config with what was measured, picked by memory or left to the method written down, so that it repeats."""
    settings = trainer.settings
    picked = {"tokens_per_pass": settings.tokens_per_pass, "clients_at_once": settings.clients_at_once}
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"threads": torch.get_num_threads()}),
            "model": config.model.model_copy(update={"dtype": str(base.dtype).removeprefix("torch.")}),
            "training": config.training.model_copy(update=picked),
            "objective": config.objective.model_copy(update={"rate_ratio": rate_ratio}),
        }
    )
