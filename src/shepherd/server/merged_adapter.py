"""Export of a global model with a remainder as one adapter of higher rank, which PEFT can load."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.lowrank import LowRank
from shepherd.types import Adapter, Factors, GlobalModel


def merged_adapter(model: GlobalModel) -> Adapter:
    """One adapter with the effective increment remainder + scale · B @ A of every module, at the same scale.

    Its rank is r plus the largest numerical rank of a remainder; slots that a module does not need are zero. A model
    without remainder returns its adapter unchanged. Where the remainder cancels a part of the adapter (FRLoRA), their
    sum is stored: the rounding of two large terms on loading would exceed the trained part.
    """
    adapter = model.adapter
    if not any(rest.q for rest in model.remainder.values()):
        return adapter
    one_sum = any(rest.apart for rest in model.remainder.values())
    rests = {}
    for name, (A, B) in adapter.factors.items():
        rest = (model.remainder.get(name) or LowRank.zero(len(B), A.shape[1])).astype(np.float64)
        if one_sum:
            rest = LowRank(adapter.scale * B.astype(np.float64), A.astype(np.float64)) + rest
        rests[name] = rest.truncated(where=name)
    kept = 0 if one_sum else adapter.r
    extra = max(*(rest.q for rest in rests.values()), 0 if kept else 1)  # an adapter needs at least one slot
    r = kept + extra
    factors = {}
    for name, (A, B) in adapter.factors.items():
        rest, missing = rests[name], extra - rests[name].q
        factors[name] = Factors(
            np.concatenate([A[:kept], np.pad(rest.R, ((0, missing), (0, 0))).astype(A.dtype)]),
            np.concatenate(
                [B[:, :kept], np.pad(rest.L / adapter.scale, ((0, 0), (0, missing))).astype(B.dtype)], axis=1
            ),
        )
    return replace(adapter, factors=factors, r=r, alpha=adapter.scale * (r**0.5 if adapter.rslora else r))
