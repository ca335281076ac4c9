"""Rounds made of numbers: random updates of three clients, and dense float64 matrices to compare a method with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shepherd.server.method import Method
from shepherd.types import Adapter, ClientModel, ClientUpdate, Factors, GlobalModel

SHAPES = {"o": (40, 40), "q": (64, 56)}  # module: (in, out); a square one, where a transposed matrix passes unseen
BLOCKS = {f"layers.{n}.{name}": size for n, (name, size) in enumerate(SHAPES.items())}  # for methods that ask
R, ALPHA, SEED = 4, 10.0, 7  # scale 2.5: a missing one shows
WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.3}
Sizes = Mapping[str, tuple[int, int]]


def fresh(
    shapes: Sizes = SHAPES, r: int = R, dtype: Any = np.float64, seed: int = SEED, alpha: float = ALPHA
) -> Adapter:
    """An adapter with random A, B = 0, as at the start of a run."""
    rng = np.random.default_rng(seed)
    factors = {
        name: Factors((rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)).astype(dtype), np.zeros((n_out, r), dtype))
        for name, (n_in, n_out) in shapes.items()
    }
    return Adapter(factors, r, alpha)


def base_weights(shapes: Sizes = SHAPES, seed: int = SEED) -> dict[str, np.ndarray]:
    """Random base weights [out, in] by module."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n_out, n_in)) for name, (n_in, n_out) in shapes.items()}


def begin(
    method: Method, shapes: Sizes | None = None, r: int = R, dtype: Any = np.float64, alpha: float = ALPHA
) -> GlobalModel:
    """The model before the first round; by default of SHAPES, in blocks where the method has to know them."""
    shapes = shapes or (BLOCKS if method.pieces.home.name == "last_blocks" else SHAPES)
    base = base_weights(shapes) if method.needs_base else None
    return method.start(fresh(shapes, r, dtype, alpha=alpha), SEED, base)


def random_update(
    view: ClientModel, client: str, round_number: int, rng: np.random.Generator, size: float = 0.3, steps: int = 1
) -> ClientUpdate:
    """A change of about `size` in all that may move; slots that the client is to choose are drawn."""
    slots = {}
    if view.choice is not None:
        r = view.adapter.r
        drawn = np.zeros(r * len(view.adapter.factors), bool)
        drawn[rng.permutation(len(drawn))[: view.choice.budget]] = True
        slots = {module: drawn[i * r : (i + 1) * r] for i, module in enumerate(view.adapter.factors)}
        view = replace(view, slots=slots, choice=None)
    delta = {
        name: (size * rng.normal(size=tensor.shape)).astype(tensor.dtype) for name, tensor in view.tensors().items()
    }
    return ClientUpdate(client, round_number, delta, 1, 1, steps, {"loss": 1.0}, slots=slots)


def whole(view: ClientModel, update: ClientUpdate, name: str) -> np.ndarray:
    """The delta of the tensor `name` at full size: zeros in the slots that the client did not own."""
    module, part = name.removesuffix(".control").rsplit(".", 1)
    slots = update.slots or view.slots
    sent = update.delta[name]
    if slots is None:
        return sent
    if part == "core":
        size = sent.shape[1]
        axis, heads = 0, len(slots[module]) // size
        shape: tuple[int, ...] = (heads, size, size)
        owned = [h for h in range(heads) if slots[module][h * size]]
    else:
        r, (A, B) = view.adapter.r, view.adapter.factors[module]
        shape, axis = ((r, A.shape[1]), 0) if part == "A" else ((len(B), r), 1)
        owned = [i for i in range(r) if slots[module][i]]
    found = np.zeros(shape, sent.dtype)
    for place, slot in enumerate(owned):
        if axis:
            found[:, slot] = sent[:, place]
        else:
            found[slot] = sent[place]
    assert sent.shape[axis] == len(owned)
    return found


@dataclass(frozen=True)
class Round:
    """One round: the model before, the updates, and the model after."""

    method: Method
    before: GlobalModel
    views: Mapping[str, ClientModel]
    updates: tuple[ClientUpdate, ...]
    weights: Mapping[str, float]

    @property
    def after(self) -> GlobalModel:
        """The next model, combined anew at each access."""
        return self.method.combine(self.before, self.views, self.updates, self.weights)


def a_round(
    method: Method,
    model: GlobalModel,
    number: int,
    weights: Mapping[str, float] = WEIGHTS,
    ranks: Mapping[str, int] | None = None,
    steps: Mapping[str, int] | None = None,
    size: float = 0.3,
) -> Round:
    """Round `number` with random updates, the same for the same number."""
    rng = np.random.default_rng(number)
    ranks, steps = ranks or {}, steps or {}
    views = {c: method.view(model, c, ranks.get(c, model.adapter.r), number, SEED) for c in weights}
    updates = [random_update(views[c], c, number, rng, size, steps.get(c, 1)) for c in sorted(weights)]
    return Round(method, model, views, tuple(updates), weights)


def after_rounds(method: Method, count: int, **options: Any) -> GlobalModel:
    """The model after `count` rounds of random updates."""
    start = {key: options.pop(key) for key in ("shapes", "r", "dtype", "alpha") if key in options}
    model = begin(method, **start)
    for number in range(1, count + 1):
        model = a_round(method, model, number, **options).after
    return model


def dense(model: GlobalModel, module: str) -> np.ndarray:
    """The effective increment, remainder + s·BA, in float64."""
    A, B = (factor.astype(np.float64) for factor in model.adapter.factors[module])
    rest = model.remainder.get(module)
    return model.adapter.scale * B @ A + (rest.astype(np.float64).dense() if rest is not None else 0.0)


def local(model: GlobalModel, view: ClientModel, update: ClientUpdate | None, module: str) -> np.ndarray:
    """A client's effective increment, E_k, after its update, or before local training with None."""
    A, B = (factor.astype(np.float64) for factor in view.adapter.factors[module])
    if view.core is not None:
        core = view.core.values[module].astype(np.float64)
        core = core + (whole(view, update, f"{module}.core") if update else 0.0)
        heads, size, _ = core.shape
        block = np.zeros((heads * size, heads * size))
        for h in range(heads):
            block[h * size : (h + 1) * size, h * size : (h + 1) * size] = core[h]
        B = view.core.basis[module].astype(np.float64) @ block
    elif update is not None:
        A = A + whole(view, update, f"{module}.A") if f"{module}.A" in update.delta else A
        B = B + whole(view, update, f"{module}.B") if f"{module}.B" in update.delta else B
    rest = model.remainder.get(module)
    return view.adapter.scale * B @ A + (rest.astype(np.float64).dense() if rest is not None else 0.0)


def law(done: Round, module: str, coefficients: Mapping[str, float] | None = None) -> np.ndarray:
    """The next increment by the exactness law: E + Σ c_k (E_k − E)."""
    E = dense(done.before, module)
    c = coefficients or done.weights
    return E + sum(c[u.client] * (local(done.before, done.views[u.client], u, module) - E) for u in done.updates)
