"""The local work of a site as its loop sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shepherd.clients.progress import Observe
from shepherd.federation.cards import RunCard
from shepherd.federation.groups import Group
from shepherd.types import ClientFailure, ClientUpdate, GlobalModel, SiteFacts, Tensors, TrainTask


class SiteTrainer(Protocol):
    """Local work on the rows of a site. An exception costs one answer."""

    def load_rows(self, card: RunCard) -> SiteFacts:
        """Read and tokenise the rows: how many can be used, and their digest."""

    def train(self, task: TrainTask, private: Tensors, observe: Observe) -> ClientUpdate | ClientFailure:
        """Train the one client of a task from its private state."""

    def measure(self, model: GlobalModel | None, rows_of: str) -> Mapping[str, Group]:
        """Losses of the rows for "training", or of those "held-out", by category, under a model or the bare base."""

    def finish(self, task: TrainTask, private: Tensors) -> Mapping[str, Group]:
        """Make, keep and measure the site's own model, from the last models and its private state."""
