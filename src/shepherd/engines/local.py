"""The in-process engine: holds the base once and trains the cohort in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from shepherd.clients.facts import facts_of
from shepherd.clients.personal.ifca import train_in_clusters
from shepherd.clients.progress import Observe, ignore
from shepherd.clients.training import TrainingHost, train
from shepherd.engines.isolation import isolated
from shepherd.evaluation.losses import row_losses
from shepherd.evaluation.row_losses import RowLosses
from shepherd.types import (
    ClientFailure,
    ClientId,
    ClientUpdate,
    GlobalModel,
    SiteFacts,
    Stat,
    Tensors,
    Tokens,
    TrainTask,
)


class LocalEngine:
    """All clients in this process, as one cohort on one base. What one client raises costs that client only."""

    def __init__(self, site: TrainingHost) -> None:
        self.site = site
        self._private: Mapping[ClientId, Tensors] = {}

    def describe(self) -> Mapping[ClientId, SiteFacts]:
        """The rows of each client, counted and digested."""
        return facts_of(self.site.data)

    def restore(self, private: Mapping[ClientId, Tensors]) -> None:
        """Set the private state from which each client goes on; without one, a client starts afresh."""
        self._private = private

    def train(
        self,
        task: TrainTask,
        deadline: float = math.inf,
        enough: Callable[[], bool] = lambda: False,
        observe: Observe = ignore,
    ) -> Iterable[ClientUpdate | ClientFailure]:
        """An update or a failure for every client of the task, sorted by name."""
        del deadline, enough  # simulated clients arrive by the plan's virtual clock, not in this process's time
        # By DP-SGD each client is trained alone: a repeated chunk would enter all of its steps in the ledger again.
        at_once = self.site.settings.clients_at_once if task.privacy is None else 1
        return isolated(task, at_once, self._train_part, observe)

    def measure(self, model: GlobalModel | None, cohort: Iterable[ClientId]) -> Mapping[ClientId, Stat]:
        """The loss of each client's training rows, in nats per target token."""
        return {client: self.evaluate(model, self.site.data[client]).stat for client in sorted(cohort)}

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of these rows under a model or the bare base."""
        lora = self.site.make_lora().load(model) if model is not None else None
        return row_losses(self.site.packed, rows, lora, self.site.settings.tokens_measured)[0]

    def _train_part(self, task: TrainTask, divisor: int, observe: Observe) -> Iterable[ClientUpdate | ClientFailure]:
        """Train some clients of a task in passes of a `divisor`-th of the tokens."""
        settings = self.site.settings
        smaller = replace(settings, tokens_per_pass=max(1, settings.tokens_per_pass // divisor))
        train_clients = train_in_clusters if task.clusters else train
        return train_clients(task, self._private, replace(self.site, settings=smaller), observe)
