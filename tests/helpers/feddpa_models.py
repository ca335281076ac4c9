"""A global and a local adapter on a tiny base, and their increments."""

from __future__ import annotations

import numpy as np
import torch

from shepherd.types import Adapter, Factors
from tiny_training import ALPHA, adapter_for, base_model, some_data, targets_of

DATA = some_data()
SHARED = adapter_for(targets_of(base_model()))


def another(like: Adapter, r: int, alpha: float, seed: int = 21, rslora: bool = False) -> Adapter:
    draw = np.random.default_rng(seed)
    factors = {
        name: Factors(
            draw.normal(0, 0.3, (r, A.shape[1])).astype(np.float32),
            draw.normal(0, 0.3, (len(B), r)).astype(np.float32),
        )
        for name, (A, B) in like.factors.items()
    }
    return Adapter(factors, r, alpha, rslora)


LOCAL = another(SHARED, 4, ALPHA)


def increment(adapter: Adapter, module: str) -> np.ndarray:
    """alpha / r · B A, or alpha / √r with rsLoRA, in float64."""
    A, B = (m.astype(np.float64) for m in adapter.factors[module])
    return adapter.alpha / (len(A) ** 0.5 if adapter.rslora else len(A)) * B @ A


def put_into_base(modules, terms) -> None:
    """Add the weighted increments (weight, adapter) to the weights of the base."""
    for name, module in modules.items():
        total = sum(weight * increment(adapter, name) for adapter, weight in terms)
        total = total.T if type(module).__name__ == "Conv1D" else total
        module.weight.data += torch.from_numpy(total).to(module.weight.dtype)
