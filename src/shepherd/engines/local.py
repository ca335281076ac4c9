"""The in-process engine: holds the base once and trains the cohort in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from shepherd.clients.clusters import train_in_clusters
from shepherd.clients.reports import StepReport
from shepherd.clients.training import LocalTraining, train
from shepherd.engines.isolation import isolated
from shepherd.evaluation.losses import RowLosses, row_losses
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientFailure, ClientId, ClientUpdate, GlobalModel, Tensors, Tokens, TrainTask


class LocalEngine:
    """All clients in this process, as one cohort on one base. What one client raises costs that client only."""

    def __init__(
        self,
        packed: PackedModel,
        make_lora: Callable[[], CohortLora],
        settings: LocalTraining,
        data: Mapping[ClientId, Sequence[Tokens]],
    ) -> None:
        self.packed, self.make_lora, self.settings, self.data = packed, make_lora, settings, data

    def train(
        self,
        task: TrainTask,
        private: Mapping[ClientId, Tensors],
        observe: Callable[[StepReport], None] = lambda report: None,
    ) -> Iterable[ClientUpdate | ClientFailure]:
        def some(
            task: TrainTask, divisor: int, observe: Callable[[StepReport], None]
        ) -> Iterable[ClientUpdate | ClientFailure]:
            settings = replace(self.settings, tokens_per_pass=max(1, self.settings.tokens_per_pass // divisor))
            held = (self.packed, self.make_lora, settings, self.data)
            if not task.clusters:
                return train(task, private, *held, observe)
            return train_in_clusters(task, partial(train, task, private, *held), *held, observe)

        return isolated(task, self.settings.clients_at_once, some, observe)

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        lora = self.make_lora().load(model) if model is not None else None
        return row_losses(self.packed, rows, lora, 2 * self.settings.tokens_per_pass)[0]
