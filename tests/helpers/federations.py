"""Rounds made of numbers for the tests of methods: in other forms, and of clients that descend on a quadratic.

The rounds themselves, and the dense matrices to compare with, are those of `shepherd.testing.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from shepherd.server.method import Method
from shepherd.testing import rounds as numbers
from shepherd.testing.rounds import (
    ALPHA,
    BLOCKS,
    SEED,
    SHAPES,
    WEIGHTS,
    R,
    Round,
    after_rounds,
    base_weights,
    begin,
    dense,
    fresh,
    law,
    local,
    random_update,
    whole,
)
from shepherd.types import ClientModel, ClientUpdate, GlobalModel

__all__ = [
    "ALPHA",
    "BLOCKS",
    "SEED",
    "SHAPES",
    "WEIGHTS",
    "R",
    "Round",
    "a_round",
    "after_rounds",
    "assert_far",
    "assert_near",
    "base_weights",
    "begin",
    "bfloat16",
    "dense",
    "dense_choice",
    "descend",
    "fresh",
    "in_another_gauge",
    "in_dense_form",
    "law",
    "local",
    "random_update",
    "shapes_for",
    "to_bfloat16",
    "train",
    "whole",
]


def shapes_for(method: Method):
    """SHAPES, in blocks where the method has to know them."""
    return BLOCKS if method.pieces.home.name == "last_blocks" else SHAPES


def in_dense_form(done: Round) -> Round:
    """The same round where every client sent all slots, those that it could not move as zeros."""
    views = {c: replace(view, slots=None, choice=None) for c, view in done.views.items()}
    updates = tuple(
        replace(u, slots={}, delta={n: whole(done.views[u.client], u, n) for n in u.delta}) for u in done.updates
    )
    return replace(done, views=views, updates=updates)


def a_round(
    method: Method,
    model: GlobalModel,
    number: int,
    *given: object,
    change: Callable[[ClientUpdate], ClientUpdate] = lambda update: update,
    **options: object,
) -> Round:
    """Round `number` with random updates that are changed on their way."""
    done = numbers.a_round(method, model, number, *given, **options)
    return replace(done, updates=tuple(map(change, done.updates)))


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
