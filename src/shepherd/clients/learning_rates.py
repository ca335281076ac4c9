"""Learning-rate schedules of local steps: warm-up, then constant, linear or cosine, per round or over all rounds.

Also the effective number of local steps under such a schedule, for FedNova.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def learning_rates(
    peak: float,
    steps: int,
    *,
    least: float = 0.0,
    schedule: str = "constant",
    over: str = "run",
    round_index: int = 0,
    rounds: int = 1,
    warmup_steps: int = 0,
    warmup_rounds: int = 0,
) -> tuple[float, ...]:
    """The rates of a client's `steps` local steps in round `round_index` (from 0).

    over = "run": position (round_index · steps + i) of rounds · steps, so the curve spans all rounds for any
    number of steps of a client. over = "round": position i of steps. over = "rounds": position round_index of rounds,
    the same for all steps of a round (with cosine as in OpenFedLLM, 2402.06954). Linear and cosine reach `least` after
    the last position; during the warm-up the rate rises linearly to the peak.
    """
    position: Sequence[int]
    if over == "rounds":
        position, total, warmup = [round_index] * steps, rounds, warmup_rounds
    else:
        total, first = (steps * rounds, steps * round_index) if over == "run" else (steps, 0)
        position, warmup = range(first, first + steps), warmup_steps
    return tuple(_rate(peak, least, p, total, schedule, min(warmup, total)) for p in position)


def effective_steps(rates: Sequence[float], peak: float, momentum: float = 0.0, proximal: float = 0.0) -> float:
    """‖a_k‖₁ of FedNova (2007.07481, §4.2): with SGD a client moves by −peak · Σ_i a_i g_i for its gradients g_i.

    Σ η_i / peak under a schedule; Σ (1 − ρ^i) / (1 − ρ) with momentum ρ and Σ (1 − ημ)^i with the proximal term
    (μ/2)‖θ − θ_t‖² at one rate η = peak. In general a_i is the effect of a unit gradient in step i after the last step
    of m ← ρm + g + μd, d ← d − η_i m: the proximal gradient passes through the momentum like any other, which a product
    of the two formulas misses. Weight decay and clipping are part of g_i.
    """
    eta = np.asarray(rates, np.float64)
    if not momentum and not proximal:
        return float(eta.sum() / peak)
    velocity, distance = np.zeros(len(eta)), np.zeros(len(eta))  # of a unit gradient in each step
    for step, rate in enumerate(eta):
        velocity = momentum * velocity + proximal * distance
        velocity[step] += 1
        distance = distance - rate * velocity
    return float(np.abs(distance).sum() / peak)


def _rate(peak: float, least: float, position: int, total: int, schedule: str, warmup: int) -> float:
    if position < warmup:
        return peak * ((position + 1) / warmup)
    return least + (peak - least) * _shape((position - warmup) / max(total - warmup, 1), schedule)


def _shape(progress: float, schedule: str) -> float:
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule: {schedule!r}. Known: constant, linear, cosine")
