"""A virtual clock: how long simulated clients take for a round, the same in every repeat.

A simulation trains clients together, so nobody is first. Deadlines and over-selection need an order of arrival: it is
drawn from the seed, the client and the round, and from nothing that a machine's load could change.
"""

from __future__ import annotations

from shepherd.rng import stream
from shepherd.types import Work

SPREAD, JITTER = 0.5, 0.2


def virtual_seconds(seed: int, work: Work, round_number: int) -> float:
    """Seconds from the start of the round to a client's answer: one per step for the median client.

    A client's own pace is log-normal (σ = 0.5: one in six is 1.6 times as slow or slower), and so is each round's luck
    (σ = 0.2).
    """
    pace = stream(seed, "pace", work.client).lognormal(0.0, SPREAD)
    luck = stream(seed, "luck", work.client, round_number).lognormal(0.0, JITTER)
    return work.steps * float(pace * luck)
