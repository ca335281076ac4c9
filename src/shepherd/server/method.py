"""A federated method: the client models of a round, and the aggregation of the updates.

Pure functions of the global model, which holds all state. The named methods are in methods.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shepherd.errors import ClientError, UsageError
from shepherd.server.aggregators import Aggregator, aggregated
from shepherd.server.composition import Pieces, aggregator_conflicts, build_pieces, check_optimizer
from shepherd.server.optimizer import Optimizer, ServerStep, control_step, fedavg
from shepherd.server.pieces.remainder import accumulate
from shepherd.server.pieces.split import SplitContext
from shepherd.server.uploads import Uploads
from shepherd.types import Adapter, ClientId, ClientModel, ClientUpdate, Factors, GlobalModel

FEDAVG = replace(fedavg(), name="fedavg")


@dataclass(frozen=True)
class Method:
    """A federated method: nine pieces and a server optimizer.

    The effective increment of a module is E = remainder + scale · B @ A. The next one is E + Σ c_k (E_k − E) where
    `exact`, otherwise an approximation. population: p_k of every client, its weight under full participation, for
    SCAFFOLD; empty uses the weights of the round. rate_ratio: the clients' η_B / η_A unless the recipe sets one.
    aggregator: the rule in place of the merge, if any.
    """

    name: str
    pieces: Pieces
    specs: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    experimental: str = ""
    optimizer: Optimizer = FEDAVG
    population: Mapping[ClientId, float] = field(default_factory=dict)
    rate_ratio: float = 1.0
    aggregator: Aggregator | None = None

    @property
    def exact(self) -> bool:
        """Whether the exactness law holds, with the coefficients c of the weighing and the server's learning rate."""
        return self.pieces.exact and self.optimizer.memoryless

    @property
    def linear(self) -> bool:
        """Whether Σ w_k Δ_k alone determines the next model where all ranks are equal: the sum law.

        w_k are the weights of the round, so a server optimizer that weighs by local steps is not linear. Secure
        aggregation and noise on the sum need it.
        """
        return self.pieces.linear and not self.optimizer.by_steps

    @property
    def mixed_ranks(self) -> bool:
        """Whether clients may have different ranks."""
        return self.pieces.view.mixed_ranks and self.pieces.start.heads != 1 and self.aggregator is None

    @property
    def needs_base(self) -> bool:
        """Whether `start` needs the base weights."""
        return self.pieces.start.needs_base

    def changed(self, specs: Mapping[str, Any]) -> Method:
        """The method with other pieces. Raises UsageError for unknown and for conflicting pieces."""
        both = {**self.specs, **specs}
        method = replace(self, pieces=build_pieces(both), specs=both)
        check_optimizer(method.pieces, method.optimizer)
        return method if self.aggregator is None else method.with_aggregator(self.aggregator)

    def with_optimizer(self, optimizer: Optimizer) -> Method:
        """The method with a server optimizer. Raises UsageError where it conflicts with the pieces."""
        check_optimizer(self.pieces, optimizer)
        return replace(self, optimizer=optimizer)

    def with_aggregator(self, aggregator: Aggregator) -> Method:
        """The method with a rule in place of its merge. Raises UsageError, with all reasons, where that cannot work."""
        reasons = list(aggregator_conflicts(self.pieces))
        if reasons:
            raise UsageError(
                f'federation.aggregator = "{aggregator.name}" and federation.method = "{self.name}" do not fit: '
                + "; ".join(reasons),
                hint='set federation.method = "fedit", "ffa_lora" or another that averages the factors',
            )
        pieces = replace(self.pieces, merge=aggregated(aggregator))
        check_optimizer(pieces, self.optimizer)
        return replace(self, pieces=pieces, aggregator=aggregator)

    def start(self, adapter: Adapter, seed: int, base: Mapping[str, np.ndarray] | None = None) -> GlobalModel:
        """The model before the first round, from an adapter with B = 0 and, if needed, base weights by module."""
        self.local_modules(adapter.factors)  # raises before training
        return self.pieces.start.make(adapter, seed, base)

    def local_modules(self, modules: Iterable[str]) -> frozenset[str]:
        """The local modules among these, which are in the order of the model."""
        return self.pieces.home.of(tuple(modules))

    def view(self, model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        """The client model from which a client of this rank starts round `round_number` (from 1)."""
        trains, sends = self.pieces.train.of(round_number)
        view = self.pieces.view.make(model, client, rank, round_number, seed)
        return replace(view, trains=trains, sends=sends, local_modules=self.local_modules(model.adapter.factors))

    def views(
        self, model: GlobalModel, ranks: Mapping[ClientId, int], round_number: int, seed: int
    ) -> dict[ClientId, ClientModel]:
        """The client models of these clients. Where they depend on the rank alone, clients of one rank share one."""
        made: dict[int | ClientId, ClientModel] = {}
        views = {}
        for client, rank in ranks.items():
            key = rank if self.pieces.view.by_rank else client
            if key not in made:
                made[key] = self.view(model, client, rank, round_number, seed)
            views[client] = made[key]
        return views

    @np.errstate(over="ignore", invalid="ignore")  # `_check_finite` names the tensor
    def combine(
        self,
        model: GlobalModel,
        views: Mapping[ClientId, ClientModel],
        updates: Sequence[ClientUpdate],
        weights: Mapping[ClientId, float],
        effective_steps: Mapping[ClientId, float] | None = None,
    ) -> GlobalModel:
        """The next global model, in the dtype of this one; sums run in float64, by client. Local modules do not change.

        effective_steps: FedNova's τ_k, in any one unit; without them the number of local steps of each client.
        Raises ClientError for updates of other tensors or shapes, and where the next model or the server's memory
        would not be finite in its dtype; NumericalError where an SVD fails.
        """
        p = self.pieces
        uploads = Uploads(model, views, updates, p.payload.transform)
        given = _weights(uploads, weights)
        shares = p.weigh.of(uploads, given)
        local = effective_steps or {update.client: update.steps for update in uploads.updates}
        steps = np.array([local[update.client] for update in uploads.updates], np.float64)
        server = ServerStep(self.optimizer, model.memory, next(iter(model.adapter.factors.values())).A.dtype)
        factors, remainder = dict(model.adapter.factors), dict(model.remainder)
        for module in uploads.modules:
            before = factors[module]
            coefficients = self.optimizer.coefficients(shares(module), steps)
            merged = p.merge.of(uploads, module, coefficients, server)
            A, B, rest = p.split.of(merged, SplitContext(module, uploads.round, server.memory))
            factors[module] = Factors(A.astype(before.A.dtype), B.astype(before.B.dtype))
            _check_finite(module, "the merged factors", *factors[module])
            # If the refactorisation resets the adapter, all of the update is in the rest, to which the share refers.
            reference = rest if p.split.resets else merged.total
            squared_norm = reference.norm() ** 2 if p.remainder.energy < 1 else 0.0
            more = p.remainder.of(rest, squared_norm, module)
            kept = accumulate(model.remainder.get(module), more, before.A.dtype, module)
            if kept is not None:
                _check_finite(module, "the remainder", kept.L, kept.R)
                remainder[module] = kept
        population = self.population or {u.client: w for u, w in zip(uploads.updates, given / given.sum(), strict=True)}
        cohort = [
            population.get(update.client, 0.0) for update in uploads.updates
        ]  # a pseudo-update belongs to no client
        memory = control_step(server.memory, uploads.control_changes(), cohort)
        for name, array in memory.items():
            _check_finite(name, "the server's memory", array)
        return GlobalModel(replace(model.adapter, factors=factors), remainder, memory)


def compose(name: str, *, citation: str = "", experimental: str = "", rate_ratio: float = 1.0, **specs: Any) -> Method:
    """Compose a method from the pieces in which it differs from FedIT. Raises UsageError where pieces conflict."""
    return Method(name, build_pieces(specs), specs, citation, experimental, rate_ratio=rate_ratio)


def _weights(uploads: Uploads, weights: Mapping[ClientId, float]) -> np.ndarray:
    missing = [u.client for u in uploads.updates if u.client not in weights]
    if missing:
        raise UsageError(f"{missing[0]} sent an update but has no weight")
    array = np.array([weights[u.client] for u in uploads.updates], np.float64)
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise UsageError(f"weights must be finite, at least 0 and not all 0, got {array.tolist()}")
    return array


def _check_finite(name: str, what: str, *arrays: np.ndarray) -> None:
    """Raise ClientError for values that are not finite after the cast to the stored dtype."""
    bad = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    if bad:
        raise ClientError(
            f"{name}: {bad} values of {what} are not finite; the round is not committed",
            hint="lower training.learning_rate or server.learning_rate",
        )
