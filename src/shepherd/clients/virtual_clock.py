"""A virtual clock: reproducible round durations of simulated clients.

A simulation trains clients together, so none finishes first. Deadlines and over-selection need an order of arrival: it
depends on the seed, the client and the round alone, and not on the load of the machine.
"""

from __future__ import annotations

from shepherd.rng import stream
from shepherd.types import Work

SPREAD, JITTER = 0.5, 0.2


def virtual_seconds(seed: int, work: Work, round_number: int) -> float:
    """Seconds from the start of the round to a client's update: one per step for the median client.

    The pace of a client is log-normal (σ = 0.5: one in six is 1.6 times as slow or slower), and so is a factor drawn
    for each round (σ = 0.2).
    """
    pace = stream(seed, "pace", work.client).lognormal(0.0, SPREAD)
    luck = stream(seed, "luck", work.client, round_number).lognormal(0.0, JITTER)
    return work.steps * float(pace * luck)
