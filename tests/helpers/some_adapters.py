"""Random adapters of three small modules."""

from __future__ import annotations

import numpy as np

from shepherd.model.adapter import fresh_adapter
from shepherd.types import Adapter, Factors

SIZES = {"h.0.attn": (5, 7), "h.1.attn": (5, 7), "h.1.mlp": (4, 3)}


def some_adapter(sizes=SIZES, r: int = 2, alpha: float = 3.0, seed: int = 1, rslora: bool = False) -> Adapter:
    """A random adapter with nonzero B."""
    adapter = fresh_adapter(sizes, r, alpha, seed, rslora=rslora, base_digest="abc")
    rng = np.random.default_rng(seed)
    factors = {n: Factors(A, rng.normal(0, 0.3, B.shape).astype(np.float32)) for n, (A, B) in adapter.factors.items()}
    return Adapter(factors, r, alpha, rslora, "abc")


def same_bytes(a: Adapter, b: Adapter) -> bool:
    return a.factors.keys() == b.factors.keys() and all(
        x.tobytes() == y.tobytes() and x.shape == y.shape and x.dtype == y.dtype == np.float32
        for name in a.factors
        for x, y in zip(a.factors[name], b.factors[name], strict=True)
    )
