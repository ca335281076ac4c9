"""Random updates of two small modules."""

from __future__ import annotations

import numpy as np

from shepherd.types import (
    Adapter,
    ClientUpdate,
    Factors,
)

SHAPES = {"q": (5, 7), "v": (4, 3)}  # module: (in, out)
R = 2


def adapter(seed=0, scale=1.0) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: _factors(rng, name, scale) for name in SHAPES}, R, 4.0)


def _factors(rng, name, scale) -> Factors:
    n_in, n_out = SHAPES[name]
    return Factors(*(rng.normal(0, scale, size).astype(np.float32) for size in ((R, n_in), (n_out, R))))


def tensors(factors) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": getattr(pair, part) for name, pair in factors.items() for part in "AB"}


def update(client: str, seed=0, examples=1, tokens=1, scale=0.1, round=1) -> ClientUpdate:
    rng = np.random.default_rng(seed)
    delta = tensors({name: _factors(rng, name, scale) for name in SHAPES})
    return ClientUpdate(client, round, delta, examples, tokens, 1, {"loss": 2.0})


def some_updates(count=5) -> list[ClientUpdate]:
    return [update(f"c{k}", seed=k, examples=k + 1, tokens=10 * k + 3) for k in range(count)]
