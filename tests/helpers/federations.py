"""Federations made of numbers: random updates, clients that descend on a quadratic, and dense float64 oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shepherd.server.method import Method
from shepherd.types import Adapter, ClientModel, ClientUpdate, Factors, GlobalModel

SHAPES = {"o": (40, 40), "q": (64, 56)}  # module: (in, out); a square one, where a transposed matrix passes unseen
BLOCKS = {f"layers.{n}.{name}": size for n, (name, size) in enumerate(SHAPES.items())}  # for methods that ask
R, ALPHA, SEED = 4, 10.0, 7  # scale 2.5: a missing one shows
WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.3}


def fresh(shapes=SHAPES, r=R, dtype=np.float64, seed=SEED, alpha=ALPHA) -> Adapter:
    rng = np.random.default_rng(seed)
    factors = {
        name: Factors((rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)).astype(dtype), np.zeros((n_out, r), dtype))
        for name, (n_in, n_out) in shapes.items()
    }
    return Adapter(factors, r, alpha)


def base_weights(shapes=SHAPES, seed=SEED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n_out, n_in)) for name, (n_in, n_out) in shapes.items()}


def shapes_for(method: Method):
    """SHAPES, in blocks where the method has to know them."""
    return BLOCKS if method.pieces.home.name == "last_blocks" else SHAPES


def begin(method: Method, shapes=None, r=R, dtype=np.float64, alpha=ALPHA) -> GlobalModel:
    shapes = shapes or shapes_for(method)
    base = base_weights(shapes) if method.needs_base else None
    return method.start(fresh(shapes, r, dtype, alpha=alpha), SEED, base)


def random_update(view: ClientModel, client: str, round_number: int, rng, size=0.3, steps=1) -> ClientUpdate:
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
    """What an update says of the tensor `name`, slot by slot: zeros where the client did not own it."""
    module, part = name.removesuffix(".control").rsplit(".", 1)
    slots = update.slots or view.slots
    sent = update.delta[name]
    if slots is None:
        return sent
    if part == "core":
        size = sent.shape[1]
        shape, axis = (len(slots[module]) // size, size, size), 0
        owned = [h for h in range(shape[0]) if slots[module][h * size]]
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


def in_dense_form(done: Round) -> Round:
    """The same round where every client sent all slots, those that it could not move as zeros."""
    views = {c: replace(view, slots=None, choice=None) for c, view in done.views.items()}
    updates = tuple(
        replace(u, slots={}, delta={n: whole(done.views[u.client], u, n) for n in u.delta}) for u in done.updates
    )
    return replace(done, views=views, updates=updates)


@dataclass(frozen=True)
class Round:
    """One round as it went: before, what the clients did, after."""

    method: Method
    before: GlobalModel
    views: Mapping[str, ClientModel]
    updates: tuple[ClientUpdate, ...]
    weights: Mapping[str, float]

    @property
    def after(self) -> GlobalModel:
        return self.method.combine(self.before, self.views, self.updates, self.weights)


def a_round(
    method: Method,
    model: GlobalModel,
    number: int,
    weights: Mapping[str, float] = WEIGHTS,
    ranks: Mapping[str, int] | None = None,
    size: float = 0.3,
    change: Callable[[ClientUpdate], ClientUpdate] = lambda update: update,
    steps: Mapping[str, int] | None = None,
) -> Round:
    """Round `number` with random updates, the same for the same number."""
    rng = np.random.default_rng(number)
    ranks, steps = ranks or {}, steps or {}
    views = {c: method.view(model, c, ranks.get(c, model.adapter.r), number, SEED) for c in weights}
    updates = [change(random_update(views[c], c, number, rng, size, steps.get(c, 1))) for c in sorted(weights)]
    return Round(method, model, views, tuple(updates), weights)


def after_rounds(method: Method, count: int, **options) -> GlobalModel:
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
    """A client's effective increment, E_k, after its update (or, with None, as it began)."""
    A, B = (factor.astype(np.float64) for factor in view.adapter.factors[module])
    if view.core is not None:
        core = view.core.values[module].astype(np.float64)
        core = core + whole(view, update, f"{module}.core") if update else core
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
    """What the exactness law says: E + Σ c_k (E_k − E)."""
    E = dense(done.before, module)
    c = coefficients or done.weights
    return E + sum(c[u.client] * (local(done.before, done.views[u.client], u, module) - E) for u in done.updates)


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Relative to the norm of what is expected."""
    error = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error <= tolerance, f"relative error {error:.3g}, allowed {tolerance:.3g}"


def assert_far(got: np.ndarray, expected: np.ndarray, least: float) -> None:
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error >= least, f"relative error {error:.3g}, expected at least {least:.3g}"


def to_bfloat16(update: ClientUpdate) -> ClientUpdate:
    """The update with its values rounded to bfloat16, as it may come over a wire."""
    return replace(update, delta={name: bfloat16(value) for name, value in update.delta.items()})


def bfloat16(value: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(value.dtype)


def in_another_gauge(view: ClientModel, update: ClientUpdate, rng) -> ClientUpdate:
    """The same increment by other factors: B_kQ and QᵀA_k with a random rotation Q."""
    delta = dict(update.delta)
    for module, (A, B) in view.adapter.factors.items():
        Q, _ = np.linalg.qr(rng.normal(size=(len(A), len(A))))
        Q[:, 0] *= np.sign(np.linalg.det(Q))
        delta[f"{module}.A"] = Q.T @ (A + delta[f"{module}.A"]) - A
        delta[f"{module}.B"] = (B + delta[f"{module}.B"]) @ Q - B
    return replace(update, delta=delta)


def descend(
    model: GlobalModel,
    view: ClientModel,
    client: str,
    round_number: int,
    gradient: Callable[[str, np.ndarray], np.ndarray],
    rate: float,
    steps: int,
) -> ClientUpdate:
    """A client that takes SGD steps on the loss whose gradient at an increment E is gradient(module, E)."""
    if view.choice is not None:
        free = replace(view, choice=None)
        probe = descend(model, free, client, round_number, gradient, rate, steps)
        slots = dense_choice(free, probe.delta, view.choice.budget)
        return replace(
            descend(model, replace(free, slots=slots), client, round_number, gradient, rate, steps), slots=slots
        )
    slots, view = view.slots, replace(view, slots=None)
    start = view.tensors()
    now = {name: tensor.astype(np.float64) for name, tensor in start.items()}
    factors = {m: [f.astype(np.float64) for f in pair] for m, pair in view.adapter.factors.items()}
    for step in range(steps):
        moving = view.trains[step % len(view.trains)]
        for module, (A, B) in factors.items():
            update = ClientUpdate(client, round_number, {n: now[n] - start[n] for n in now}, 1, 1, 1)
            G = view.adapter.scale * gradient(module, local(model, view, update, module))
            A, B = now.get(f"{module}.A", A), now.get(f"{module}.B", B)
            moves = np.ones(len(A), bool) if slots is None else slots[module]
            if view.core is not None:
                core = now[f"{module}.core"]
                heads, size, _ = core.shape
                inner = view.core.basis[module].T @ (G @ A.T)
                blocks = np.stack([inner[h * size : (h + 1) * size, h * size : (h + 1) * size] for h in range(heads)])
                now[f"{module}.core"] = core - rate * blocks * moves[::size, None, None]
                continue
            gradients = {"A": (B.T @ G) * moves[:, None], "B": (G @ A.T) * moves}
            for part in moving:
                now[f"{module}.{part}"] = now[f"{module}.{part}"] - rate * gradients[part]
    delta = {name: (now[name] - start[name]).astype(start[name].dtype) for name in start}
    delta = replace(view, slots=slots).gather(delta)
    return ClientUpdate(client, round_number, delta, 1, 1, steps, {"loss": 1.0})


def dense_choice(view: ClientModel, delta: Mapping[str, np.ndarray], budget: int) -> dict[str, np.ndarray]:
    """LoRA-A²'s choice after a probe of this whole delta, by dense matrices of each slot and plain sorting."""
    scores = []
    for place, (module, (A, B)) in enumerate(view.adapter.factors.items()):
        A_after, B_after = A + delta.get(f"{module}.A", 0.0), B + delta.get(f"{module}.B", 0.0)
        for i in range(view.adapter.r):
            change = np.outer(B_after[:, i], A_after[i]).astype(np.float64) - np.outer(B[:, i], A[i])
            scores.append((-np.linalg.norm(change), place, i, module))
    slots = {module: np.zeros(view.adapter.r, bool) for module in view.adapter.factors}
    for _, _, i, module in sorted(scores)[:budget]:
        slots[module][i] = True
    return slots


def train(
    method: Method,
    targets: Mapping[str, Mapping[str, np.ndarray]],
    rounds: int,
    rate: float,
    steps: int,
    model: GlobalModel,
    ranks: Mapping[str, int] | None = None,
) -> tuple[GlobalModel, list[float]]:
    """Rounds in which client k descends on ½‖E − T_k‖²; the mean loss after each."""
    weights = {client: 1 / len(targets) for client in targets}
    losses = []
    for number in range(1, rounds + 1):
        views = {c: method.view(model, c, (ranks or {}).get(c, model.adapter.r), number, SEED) for c in targets}
        updates = [
            descend(model, views[c], c, number, lambda module, E, c=c: E - targets[c][module], rate, steps)
            for c in sorted(targets)
        ]
        model = method.combine(model, views, updates, weights)
        losses.append(
            sum(
                weights[c] * 0.5 * np.sum((dense(model, module) - target) ** 2)
                for c, modules in targets.items()
                for module, target in modules.items()
            )
        )
    return model, losses
