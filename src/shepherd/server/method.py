"""A federated method: what a client starts from, and what becomes of the updates of a round.

Pure functions of the global model; all state is in it. The methods by name are in methods.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shepherd.errors import ClientError, UsageError
from shepherd.server.composition import Pieces, build_pieces, check_optimizer
from shepherd.server.optimizer import Optimizer, ServerStep, control_step, fedavg
from shepherd.server.pieces.remainder import accumulate
from shepherd.server.pieces.split import Place
from shepherd.server.uploads import Uploads
from shepherd.types import Adapter, ClientId, ClientModel, ClientUpdate, Factors, GlobalModel

FEDAVG = replace(fedavg(), name="fedavg")


@dataclass(frozen=True)
class Method:
    """Nine pieces and a server optimizer.

    The effective increment of a module is E = remainder + scale · B @ A. The next one is E + Σ c_k (E_k − E) where
    `exact`; else what the pieces lose of it is lost. population: p_k of every client of the federation, what it weighs
    where all take part, for SCAFFOLD; empty takes the weights of the round. rate_ratio: the clients' η_B / η_A, where
    the recipe sets no other.
    """

    name: str
    pieces: Pieces
    specs: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    experimental: str = ""
    optimizer: Optimizer = FEDAVG
    population: Mapping[ClientId, float] = field(default_factory=dict)
    rate_ratio: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the exactness law holds, with the coefficients c of the weighing and the server's learning rate."""
        return self.pieces.exact and self.optimizer.memoryless

    @property
    def sum_only(self) -> bool:
        """Whether the server needs no more than sums over clients, as secure aggregation gives them."""
        return self.pieces.merge.sum_only

    @property
    def mixed_ranks(self) -> bool:
        return self.pieces.view.mixed_ranks and self.pieces.start.heads != 1

    @property
    def needs_base(self) -> bool:
        """Whether `start` wants the base weights."""
        return self.pieces.start.needs_base

    def changed(self, specs: Mapping[str, Any]) -> Method:
        """The same with other pieces. Raises UsageError for unknown pieces and for those that do not fit."""
        both = {**self.specs, **specs}
        method = replace(self, pieces=build_pieces(both), specs=both)
        check_optimizer(method.pieces, method.optimizer)
        return method

    def with_optimizer(self, optimizer: Optimizer) -> Method:
        """The same with a server optimizer. Raises UsageError where its moments would lose their meaning."""
        check_optimizer(self.pieces, optimizer)
        return replace(self, optimizer=optimizer)

    def start(self, adapter: Adapter, seed: int, base: Mapping[str, np.ndarray] | None = None) -> GlobalModel:
        """The model before the first round, from an adapter that changes nothing; base weights by module if needed."""
        self.home(adapter.factors)  # what cannot be kept at home is refused before anything is trained
        return self.pieces.start.make(adapter, seed, base)

    def home(self, modules: Iterable[str]) -> frozenset[str]:
        """Of these modules, in the order of the model, those that stay with the clients."""
        return self.pieces.home.of(tuple(modules))

    def view(self, model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        """What a client of this rank starts round `round_number` (from 1) from."""
        trains, sends = self.pieces.train.of(round_number)
        view = self.pieces.view.make(model, client, rank, round_number, seed)
        return replace(view, trains=trains, sends=sends, home=self.home(model.adapter.factors))

    def views(
        self, model: GlobalModel, ranks: Mapping[ClientId, int], round_number: int, seed: int
    ) -> dict[ClientId, ClientModel]:
        """The views of these clients. Where nothing but the rank matters, clients of one rank share theirs."""
        made: dict[int | ClientId, ClientModel] = {}
        views = {}
        for client, rank in ranks.items():
            key = rank if self.pieces.view.by_rank else client
            if key not in made:
                made[key] = self.view(model, client, rank, round_number, seed)
            views[client] = made[key]
        return views

    @np.errstate(over="ignore", invalid="ignore")  # an error that names the tensor says it better
    def combine(
        self,
        model: GlobalModel,
        views: Mapping[ClientId, ClientModel],
        updates: Sequence[ClientUpdate],
        weights: Mapping[ClientId, float],
        effective_steps: Mapping[ClientId, float] | None = None,
    ) -> GlobalModel:
        """The next model, in the dtype of this one; sums run in float64, by client. What is at home stays as it is.

        effective_steps: FedNova's τ_k, in any one unit; without them the number of local steps of each client.
        Raises ClientError for updates that are not what was asked for and where the next model or the server's memory
        would not be finite in its dtype, NumericalError where an SVD has no result.
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
            A, B, rest = p.split.of(merged, Place(module, uploads.round, server.memory))
            factors[module] = Factors(A.astype(before.A.dtype), B.astype(before.B.dtype))
            _check_finite(module, "the merged factors", *factors[module])
            # Where the next adapter holds nothing that was learned, the rest is all there is to keep a share of.
            whole = rest if p.split.resets else merged.total
            squared_norm = whole.norm() ** 2 if p.remainder.energy < 1 else 0.0
            more = p.remainder.of(rest, squared_norm, module)
            kept = accumulate(model.remainder.get(module), more, before.A.dtype, module)
            if kept is not None:
                _check_finite(module, "the remainder", kept.L, kept.R)
                remainder[module] = kept
        all_of_it = self.population or {u.client: w for u, w in zip(uploads.updates, given / given.sum(), strict=True)}
        population = [all_of_it[update.client] for update in uploads.updates]
        memory = control_step(server.memory, uploads.control_changes(), population)
        for name, array in memory.items():
            _check_finite(name, "the server's memory", array)
        return GlobalModel(replace(model.adapter, factors=factors), remainder, memory)


def compose(name: str, *, citation: str = "", experimental: str = "", rate_ratio: float = 1.0, **specs: Any) -> Method:
    """A method from the pieces in which it differs from FedIT. Raises UsageError where pieces do not fit."""
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
    """On what is kept, after the cast to its dtype: float64 has room for numbers that float32 has not."""
    bad = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    if bad:
        raise ClientError(
            f"{name}: {bad} values of {what} are not finite; the round is not committed",
            hint="lower training.learning_rate or server.learning_rate",
        )
