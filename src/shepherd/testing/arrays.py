"""The arrays of a model and of a round by name, to compare their bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shepherd.testing.rounds import Round
from shepherd.types import GlobalModel


def arrays(model: GlobalModel) -> dict[str, np.ndarray]:
    """Factors, remainder and memory of a model by name."""
    found = {f"memory {name}": np.asarray(array) for name, array in model.memory.items()}
    for module, (A, B) in model.adapter.factors.items():
        found |= {f"{module}.A": A, f"{module}.B": B}
    for module, rest in model.remainder.items():
        found |= {f"{module}.L": rest.L, f"{module}.R": rest.R}
    return found


def inputs(done: Round) -> dict[str, np.ndarray]:
    """What the method was given: the arrays of the model before the round, and the deltas."""
    return {**arrays(done.before), **{f"{u.client} {n}": d for u in done.updates for n, d in u.delta.items()}}


def same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether both have the same names and bytes."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
