"""A cap on the weight of one client: what a client says about its own size cannot make it the whole mean."""

from __future__ import annotations

from collections.abc import Sequence


def capped(weights: Sequence[float], most: float) -> tuple[float, ...]:
    """Weights of which none is above `most`; the others grow in proportion, so that the sum stays one.

    most = 1 changes nothing. Where n clients cannot hold it (n · most < 1) all get 1 / n, the least that is possible.
    """
    if max(weights) <= most:
        return tuple(weights)
    if most * len(weights) <= 1:
        return (1 / len(weights),) * len(weights)
    over: set[int] = set()
    while True:
        rest = sum(w for i, w in enumerate(weights) if i not in over)
        grown = (1 - most * len(over)) / rest
        more = {i for i, w in enumerate(weights) if i not in over and w * grown > most}
        if not more:
            return tuple(most if i in over else w * grown for i, w in enumerate(weights))
        over |= more
