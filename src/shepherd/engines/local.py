"""The in-process engine: holds the base once and trains the cohort in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from shepherd.clients.personal.ifca import train_in_clusters
from shepherd.clients.progress import StepReport
from shepherd.clients.training import TrainingHost, train
from shepherd.engines.isolation import isolated
from shepherd.evaluation.losses import RowLosses, row_losses
from shepherd.types import ClientFailure, ClientId, ClientUpdate, GlobalModel, Tensors, Tokens, TrainTask


class LocalEngine:
    """All clients in this process, as one cohort on one base. What one client raises costs that client only."""

    def __init__(self, site: TrainingHost) -> None:
        self.site = site

    def train(
        self,
        task: TrainTask,
        private: Mapping[ClientId, Tensors],
        observe: Callable[[StepReport], None] = lambda report: None,
    ) -> Iterable[ClientUpdate | ClientFailure]:
        def some(
            task: TrainTask, divisor: int, observe: Callable[[StepReport], None]
        ) -> Iterable[ClientUpdate | ClientFailure]:
            less = replace(settings, tokens_per_pass=max(1, settings.tokens_per_pass // divisor))
            whole = train_in_clusters if task.clusters else train
            return whole(task, private, replace(self.site, settings=less), observe)

        settings = self.site.settings
        return isolated(task, settings.clients_at_once, some, observe)

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        lora = self.site.make_lora().load(model) if model is not None else None
        return row_losses(self.site.packed, rows, lora, self.site.settings.tokens_measured)[0]
