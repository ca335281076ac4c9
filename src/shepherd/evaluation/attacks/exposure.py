"""Exposure of planted codes (Carlini et al., 2019, 1802.08232, §4.3): how far up a code ranks among its candidates.

    exposure = log₂ R − log₂ rank        bits, of R candidates, rank 1 for the lowest loss

Under a model that never saw the code, its rank is uniform, and the mean is log₂ R − log₂(R!)/R: about 1/ln 2 = 1.44
bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Exposure:
    """The rank of one code among its candidates, in bits. candidates: R, the code itself included."""

    rank: int
    candidates: int

    @property
    def bits(self) -> float:
        """log₂ R − log₂ rank, from 0 to log₂ R."""
        return math.log2(self.candidates) - math.log2(self.rank)


def exposure(losses: np.ndarray, place: int) -> Exposure:
    """The exposure of candidate `place` by the losses float[R] of all candidates, in nats.

    Ties count against the attack: the rank is the number of candidates whose loss is not higher. Raises ValueError for
    losses that are not finite, with which nothing is ranked.
    """
    losses = np.asarray(losses, np.float64)
    if not np.isfinite(losses).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(losses))} of {len(losses)} candidates have no finite loss")
    return Exposure(int(np.count_nonzero(losses <= losses[place])), len(losses))


def chance(candidates: int) -> float:
    """The mean exposure under uniform ranks, in bits: log₂ R − log₂(R!)/R."""
    return math.log2(candidates) - math.lgamma(candidates + 1) / math.log(2) / candidates


def by_copies(copies: Sequence[int], tuned: Sequence[Exposure], base: Sequence[Exposure]) -> list[dict[str, Any]]:
    """A row for each number of copies: the mean exposure of its codes under the tuned model and under the base.

    Keys: copies, codes, tuned, base (bits), most_exposed (bits, tuned), first (codes of rank 1 under the tuned model).
    """
    rows = []
    for count in sorted(set(copies)):
        chosen = [i for i, n in enumerate(copies) if n == count]
        rows.append(
            {
                "copies": count,
                "codes": len(chosen),
                "tuned": sum(tuned[i].bits for i in chosen) / len(chosen),
                "base": sum(base[i].bits for i in chosen) / len(chosen),
                "most_exposed": max(tuned[i].bits for i in chosen),
                "first": sum(tuned[i].rank == 1 for i in chosen),
            }
        )
    return rows
