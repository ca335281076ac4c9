"""The learning rate of each local step: warm-up, then constant, linear or cosine, inside a round or over all rounds."""

from __future__ import annotations

import math


def learning_rates(
    peak: float,
    steps: int,
    *,
    schedule: str = "constant",
    over: str = "run",
    round_index: int = 0,
    rounds: int = 1,
    warmup_steps: int = 0,
) -> tuple[float, ...]:
    """Rates of a client's `steps` steps in round `round_index` (from 0).

    over = "run": position (round_index · steps + i) of rounds · steps, so the curve spans all rounds whatever a
    client's own number of steps. over = "round": position i of steps. Linear and cosine end at 0 after the last
    step; during the warm-up the rate rises linearly to the peak.
    """
    total = steps * rounds if over == "run" else steps
    first = steps * round_index if over == "run" else 0
    return tuple(peak * _shape(first + i, total, schedule, min(warmup_steps, total)) for i in range(steps))


def _shape(position: int, total: int, schedule: str, warmup: int) -> float:
    if position < warmup:
        return (position + 1) / warmup
    progress = (position - warmup) / max(total - warmup, 1)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule: {schedule!r}. Known: constant, linear, cosine")
