"""A federated method: what a client starts from, and what becomes of the updates of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shepherd.server.aggregation import Aggregator, step
from shepherd.types import Adapter, ClientId, ClientUpdate, GlobalModel, View


class Method(Protocol):
    """Pure functions of the global model; see algorithms by name in `shepherd list methods`."""

    def start(self, adapter: Adapter, seed: int) -> GlobalModel:
        """The model before the first round, from an adapter that changes nothing."""
        ...

    def view(self, model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> View:
        """What a client of this rank starts round `round_number` (from 1) from."""
        ...

    def combine(
        self,
        model: GlobalModel,
        views: Mapping[ClientId, View],
        updates: Sequence[ClientUpdate],
        weights: Mapping[ClientId, float],
    ) -> GlobalModel:
        """The next model. Updates come sorted by client, weights sum to one."""
        ...


class FactorMean:
    """Everyone trains A and B of the same rank; the deltas of each factor are aggregated on their own (FedIT)."""

    def __init__(self, aggregate: Aggregator) -> None:
        self.aggregate = aggregate

    def start(self, adapter: Adapter, seed: int) -> GlobalModel:
        return GlobalModel(adapter)

    def view(self, model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> View:
        return View(model.adapter)

    def combine(self, model, views, updates, weights) -> GlobalModel:
        delta = self.aggregate(updates, [weights[u.client] for u in updates])
        return GlobalModel(step(model.adapter, delta), model.remainder, model.memory)
