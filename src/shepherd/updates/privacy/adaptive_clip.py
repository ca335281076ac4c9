"""Adaptive clipping: the clip follows the updates' median norm, by a noised count (Andrew et al., 2021, 1905.03871).

    b̄ = (Σ (1[‖Δ‖ ≤ C] − ½) + N(0, σ_b²)) / (qN) + ½,    C ← C · exp(−0.2 (b̄ − ½))

Of one noise multiplier z both releases of a round are paid: the sum of updates gets z_Δ > z, the count σ_b.
"""

from __future__ import annotations

import math

QUANTILE, RATE = 0.5, 0.2
"""γ and η_C: the clip moves to the median, by at most a factor e^0.1 without noise."""
LEAST_CLIP, MOST_CLIP = 1e-9, 1e12
"""The range of a clip. Below it, merging in float64 beside weights of about 1 rounds an update by more than 1e-5 of the
clip, so that its sensitivity exceeds C; above it, the noise leaves float32."""


def count_noise(expected: float) -> float:
    """σ_b = qN/20, the standard deviation of the noise on the count; expected: qN, the mean number of clients."""
    return expected / 20


def update_noise(noise_multiplier: float, count: float) -> float:
    """z_Δ = (z⁻² − (2σ_b)⁻²)^(−½), the noise multiplier of the sum of updates (theorem 1); 0 for z = 0.

    The count of ±½ has sensitivity ½, so its noise multiplier is 2σ_b. Raises ValueError where the count alone would
    spend more than z allows.
    """
    if noise_multiplier < 1e-100:
        return noise_multiplier  # whose inverse square overflows; what the count spends of it is lost in rounding
    rest = noise_multiplier**-2 - (2 * count) ** -2
    if rest <= 0:
        raise ValueError(f"a count with noise of {count:g} spends more than a noise multiplier of {noise_multiplier:g}")
    return rest**-0.5


def next_clip(clip: float, below: float, noise: float, expected: float) -> tuple[float, float]:
    """(the next clip, b̄). below: Σ (1[‖Δ‖ ≤ C] − ½) over the updates; noise: the draw from N(0, σ_b²).

    The clip stays between LEAST_CLIP and MOST_CLIP: updates of norm 0 would move it to 0 in time.
    """
    share = (below + noise) / expected + 0.5
    moved = clip * math.exp(min(-RATE * (share - QUANTILE), 700.0))
    return min(max(moved, LEAST_CLIP), MOST_CLIP), share
