"""Poisson sampling of a client's rows: each row independently with probability q, in every step anew."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from shepherd.types import Work


class Randomness(Protocol):
    """A source of randomness for rows and noise. Never a named stream (rng.py): those repeat."""

    def uniform(self, count: int) -> np.ndarray:
        """float64[count] between 0 and 1."""
        ...

    def normal(self, count: int) -> np.ndarray:
        """float64[count] of N(0, 1)."""
        ...


def planned_batch(work: Work) -> float:
    """b, the mean number of rows in a step: the planned rows over the steps."""
    return work.rows / work.steps


def drawn_rows(held: int, rate: float, randomness: Randomness) -> np.ndarray:
    """The positions int64[m] of the rows of one step, ascending. m varies, and may be 0."""
    drawn = randomness.uniform(held) < rate
    return np.flatnonzero(drawn) if rate < 1 else np.arange(held)
