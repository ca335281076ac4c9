"""A site's trainer around an engine for its one client: what `federation.site.Site` asks for.

In: the engine with the site's rows, in this process or with a worker. Out: updates, measures by category, and the
site's own model. Nothing here sees a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shepherd.clients.facts import facts_of
from shepherd.clients.progress import Observe
from shepherd.engines.local import LocalEngine
from shepherd.errors import UsageError
from shepherd.evaluation.row_losses import RowLosses
from shepherd.federation.cards import RunCard
from shepherd.federation.groups import Group
from shepherd.types import ClientFailure, ClientId, ClientUpdate, GlobalModel, SiteFacts, Tensors, Tokens, TrainTask

Finish = Callable[[TrainTask, Tensors], Mapping[str, Group]]
"""(the last models as a task, private state) -> the measures of the site's own model, which it has kept."""


class EngineTrainer:
    """Trains and measures one client by a local engine. load(card): the engine with its rows, and rows held out.
    keep: takes each global model that the site is sent whole."""

    def __init__(
        self,
        client: ClientId,
        load: Callable[[RunCard], tuple[LocalEngine, Sequence[Tokens]]],
        finish: Finish | None = None,
        keep: Callable[[GlobalModel], None] = lambda model: None,
    ) -> None:
        self.client, self._load, self._finish, self._keep = client, load, finish, keep

    def load_rows(self, card: RunCard) -> SiteFacts:
        """Load the rows and what trains on them."""
        self._engine, self._held_out = self._load(card)
        return facts_of({self.client: self._rows})[self.client]

    def train(self, task: TrainTask, private: Tensors, observe: Observe) -> ClientUpdate | ClientFailure:
        """Train the client from its private state."""
        self._engine.restore({self.client: private} if private else {})
        (reply,) = self._engine.train(task, observe=observe)
        return reply

    def measure(self, model: GlobalModel | None, rows_of: str) -> Mapping[str, Group]:
        """Losses by category of the rows for "training" or of those "held-out"; of "none", the model is only kept."""
        if model is not None:
            self._keep(model)
        if rows_of == "none":
            return {}
        rows = self._rows if rows_of == "training" else self._held_out
        return by_category(self._engine.evaluate(model, rows), rows)

    def finish(self, task: TrainTask, private: Tensors) -> Mapping[str, Group]:
        """Make, keep and measure the site's own model."""
        if self._finish is None:
            raise UsageError("the run makes no models of single sites")
        return self._finish(task, private)

    @property
    def _rows(self) -> Sequence[Tokens]:
        return self._engine.site.data[self.client]


def by_category(losses: RowLosses, rows: Sequence[Tokens]) -> dict[str, Group]:
    """The losses of some rows by their category."""
    counts = Counter(row.category for row in rows)
    of = np.array([row.category for row in rows])
    return {name: Group(losses.select(of == name).stat, counts[name]) for name in sorted(counts)}
