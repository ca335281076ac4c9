"""Poisson sampling of a cohort, from a source that no seed repeats: ε is that of a secret draw."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.types import ClientId
from shepherd.updates.privacy.noise import Noise


def poisson_sample(clients: Sequence[ClientId], sampling_rate: float, source: Noise) -> tuple[ClientId, ...]:
    """Each client independently with probability `sampling_rate`; there may be none.

    clients: all of the plan, in one order, also those that failed before: their number is the N of the account.
    """
    draws = source.uniform(len(clients))
    return tuple(c for c, u in zip(clients, draws, strict=True) if u < sampling_rate or sampling_rate >= 1)
