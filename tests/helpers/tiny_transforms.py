"""Transforms for tests, imported by "tiny_transforms:NAME", so in a worker process too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.types import TransformSpec
from shepherd.updates.composition import Transforms, build_transforms
from shepherd.updates.rules import update_norm
from shepherd.updates.transforms import Transform


def spec(name: str, **options) -> TransformSpec:
    return TransformSpec(f"tiny_transforms:{name}", options)


def built(*specs: TransformSpec) -> Transforms:
    return build_transforms(specs)


def identity() -> Transform:
    """Both halves return what they are given."""
    return Transform(lambda update, start, rng: update, lambda given, start, rng: given)


def needing(*needs: str) -> Transform:
    return Transform(needs=frozenset(needs))


def linear() -> Transform:
    return needing("linear")


def uniform() -> Transform:
    return needing("uniform weights")


def changed(update, of):
    """The update with of(array) in place of each array of its delta."""
    return replace(update, delta={name: np.float32(of(array)) for name, array in update.delta.items()})


def clip(norm: float) -> Transform:
    """Scale an update down to an L2 norm of at most `norm`."""

    def on_client(update, start, rng):
        factor = min(1.0, norm / update_norm(update))
        return changed(update, lambda array: factor * array)

    return Transform(on_client)


def add(value: float = 1.0) -> Transform:
    """A constant beside each number of the delta; on the server a pseudo-update of that constant, of weight 1."""
    return Transform(
        lambda update, start, rng: changed(update, lambda array: array + value),
        lambda given, start, rng: given.plus(
            "add", start, {n: np.full(a.shape, value) for n, a in start.tensors().items()}, 1.0
        ),
    )


def double() -> Transform:
    """Twice the delta on a client, twice the weights on the server."""
    return Transform(
        lambda update, start, rng: changed(update, lambda array: 2 * array),
        lambda given, start, rng: replace(given, weights={name: 2 * w for name, w in given.weights.items()}),
    )


def push(value: float = 1.0) -> Transform:
    """The server half of `add` alone."""
    return replace(add(value), on_client=None)


def sum_of_all() -> Transform:
    """On the server the weighted sum in place of the updates."""

    def on_server(given, start, rng):
        total = {n: sum(given.weights[u.client] * u.delta[n] for u in given.updates) for n in start.tensors()}
        return replace(given, updates=()).plus("sum", start, total, 1.0)

    return Transform(on_server=on_server)


def draw(size: float = 1.0) -> Transform:
    """Random numbers of the stream beside the delta, and how many rounds the client has counted, in its own state."""

    def on_client(update, start, rng):
        moved = changed(update, lambda array: array + size * rng.normal(size=array.shape))
        return replace(moved, private={**update.private, "draw": update.private.get("draw", np.zeros(1)) + 1})

    return Transform(on_client)


def fails(client: str) -> Transform:
    """Raise on this client, and give the deltas of all others another shape."""

    def on_client(update, start, rng):
        if update.client == client:
            raise ValueError("planted-8472")
        return changed(update, np.ravel)

    return Transform(on_client)


def not_a_transform() -> int:
    return 3
