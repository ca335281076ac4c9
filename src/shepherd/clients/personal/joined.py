"""Concatenation of two adapters into one of their joint rank, and its inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.errors import ModelError
from shepherd.types import Adapter, Factors, Tensors


def joined(first: Adapter, second: Adapter, weights: tuple[float, float] = (1.0, 1.0)) -> Adapter:
    """The adapter whose increment is weights[0] times that of `first` plus weights[1] > 0 times that of `second`.

    The slots of `first` come before those of `second`. These keep their factors, and their weight is in the scale, so
    training them trains `second` under its weight. Ranks and scales may differ. Raises ModelError where modules do.
    """
    if first.factors.keys() != second.factors.keys():
        odd = sorted(first.factors.keys() ^ second.factors.keys())
        raise ModelError(f"two adapters of one model have other modules: {', '.join(odd[:3])} is in one of them only")
    r, scale = first.r + second.r, weights[1] * second.scale
    ratio = np.float32(weights[0] * first.scale / scale)
    factors = {
        name: Factors(np.concatenate([pair.A, A]), np.concatenate([ratio * pair.B, B], axis=1))
        for name, pair in first.factors.items()
        for A, B in (second.factors[name],)
    }
    return replace(second, factors=factors, r=r, alpha=scale * (r**0.5 if second.rslora else r))


def last_slots(tensors: Tensors, r: int) -> dict[str, np.ndarray]:
    """The last r slots of factors by name (`<module>.A`, `<module>.B`), as copies."""
    return {
        name: np.ascontiguousarray(array[-r:] if name.endswith(".A") else array[:, -r:])
        for name, array in tensors.items()
    }
