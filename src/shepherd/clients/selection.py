"""Who takes part in a round: (clients, size, rng) -> the cohort, sorted by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shepherd.registry import Registry
from shepherd.types import ClientId

Selection = Callable[[Sequence[ClientId], int, np.random.Generator], tuple[ClientId, ...]]
selections = Registry("selection")


@selections
def uniform() -> Selection:
    """Every client equally likely, without replacement (McMahan et al., 2017, algorithm 1)."""

    def select(clients: Sequence[ClientId], size: int, rng: np.random.Generator) -> tuple[ClientId, ...]:
        names = sorted(clients)
        return tuple(sorted(names[i] for i in rng.choice(len(names), size, replace=False)))

    return select


def cohort_size(clients: int, per_round: int, fraction: float) -> int:
    """Clients of a round: `per_round`, or the fraction rounded up when that is 0; at least one, at most all."""
    return min(clients, per_round) if per_round else max(1, int(np.ceil(round(fraction * clients, 9))))
