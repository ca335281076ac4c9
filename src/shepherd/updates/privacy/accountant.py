"""The privacy account: ε of a number of rounds of the Poisson-subsampled Gaussian mechanism, and the noise for an ε.

    epsilons([Rounds(sampling_rate=0.05, noise_multiplier=1.0, count=20)], delta=1e-3).least       # 1.027
    least_noise(1.027, sampling_rate=0.05, rounds=20, delta=1e-3)                                   # 1.000

ε is an upper bound of dp-accounting, by privacy loss distributions (PLD: Koskela et al., 2020, arXiv 1906.03049;
Doroshenko et al., 2022, arXiv 2207.04380) and by Rényi differential privacy (RDP: Mironov et al., 2019, arXiv
1908.10530). The relation of neighbours is zero-out (`REPLACE_SPECIAL`): the data of one unit are replaced by none, and
the unit still counts.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from shepherd.errors import UsageError, missing_extra

LEAST, MOST = 0.01, 1e4
"""The range of noise multipliers in which a bound is computed; with less noise ε is given as infinite."""
ENOUGH = 1e6
"""More noise is accounted as this, which is a bound; its square would overflow."""
COARSE = 10.0
"""Factor on the PLD's interval while the noise for an ε is searched for: a tenth of the time, and still a bound."""
WIDEST = 100.0
"""The widest interval of a PLD. It belongs to an ε of millions; the exponential of a wider one overflows."""
CLOSE = 1e-4
"""How far below the wanted ε the found noise may stay, relative to an ε above 1."""


@dataclass(frozen=True)
class Rounds:
    """`count` rounds in which each unit takes part independently with probability `sampling_rate`.

    noise_multiplier: standard deviation of the noise on the sum, over the clip. Raises ValueError for a rate outside
    (0, 1], for a multiplier that is negative or not finite, and for a negative count.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.sampling_rate <= 1 and 0 <= self.noise_multiplier < math.inf and self.count >= 0):
            raise ValueError(f"no rounds of a subsampled Gaussian mechanism: {self}")


@dataclass(frozen=True)
class Epsilons:
    """ε of the same rounds by both accountants. Each is an upper bound, infinite where none was found."""

    pld: float
    rdp: float

    @property
    def least(self) -> float:
        """The smaller of the two, which holds as well: that of PLD but for very many rounds and very small δ."""
        return min(self.pld, self.rdp)

    @property
    def accountant(self) -> str:
        """Which bound `least` is."""
        return "PLD" if self.pld <= self.rdp else "RDP"

    def stated(self) -> dict[str, Any]:
        """The bounds as records have them; an infinite one is null."""
        found = {"epsilon": self.least, "epsilon_pld": self.pld, "epsilon_rdp": self.rdp}
        finite = {name: bound if math.isfinite(bound) else None for name, bound in found.items()}
        return {**finite, "accountant": self.accountant}


def epsilons(rounds: Iterable[Rounds], delta: float) -> Epsilons:
    """ε at `delta` of all these rounds together, 0 for none. Raises UsageError where the extra `dp` is missing."""
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta} is not between 0 and 1")
    return _epsilons(tuple(part for part in rounds if part.count), delta, 1.0)


def combined(rounds: Iterable[Rounds]) -> tuple[Rounds, ...]:
    """The same rounds with those of one kind counted together, in one order: equal accounts give equal bits of ε."""
    counts: Counter[tuple[float, float]] = Counter()
    for part in rounds:
        counts[part.sampling_rate, part.noise_multiplier] += part.count
    return tuple(Rounds(rate, noise, count) for (rate, noise), count in sorted(counts.items()) if count)


def least_noise(epsilon: float, *, sampling_rate: float, rounds: int, delta: float) -> float:
    """The least noise multiplier, to six decimals, for which ε of `rounds` rounds stays within `epsilon`.

    Raises UsageError where no noise multiplier between 0.01 and 10,000 is the least one.
    """

    def at(noise: float, factor: float = 1.0) -> float:
        return _epsilons((Rounds(sampling_rate, noise, rounds),), delta, factor).least

    low, high = _bracket(lambda noise: at(noise, COARSE), epsilon)
    noise, excess = high, 0.0
    for _ in range(3):
        # What the coarse bound exceeds the fine one by hardly depends on the noise.
        noise = _root(lambda noise: at(noise, COARSE), epsilon + excess, low, high)
        found = at(noise)
        if epsilon - CLOSE * max(1.0, epsilon) <= found <= epsilon:
            return noise
        excess = at(noise, COARSE) - found
    while at(noise) > epsilon:
        noise = math.ceil(noise * 1.0001 * 1e6) / 1e6
    return noise


def _bracket(at: Callable[[float], float], epsilon: float) -> tuple[float, float]:
    """(low, high) with at(low) > epsilon >= at(high), a factor of two apart."""
    high = 1.0
    while at(high) > epsilon:
        high *= 2
        if high > MOST:
            raise UsageError(
                f"epsilon = {epsilon:g} is reached by no noise: with a noise multiplier of {high / 2:,.0f} it is still "
                f"{at(high / 2):.3g}",
                hint="a larger epsilon, fewer rounds, fewer clients per round or a larger delta",
            )
    low = high / 2
    while at(low) <= epsilon:
        low, high = low / 2, low
        if low < LEAST:
            raise UsageError(
                f"epsilon = {epsilon:g} asks for almost no noise: a noise multiplier of {high:g} gives {at(high):.4g} "
                "already, and less is no protection",
                hint="a smaller epsilon, usually between 1 and 8, or a smaller delta",
            )
    return low, high


def _root(at: Callable[[float], float], epsilon: float, low: float, high: float) -> float:
    """The noise multiplier with at(noise) = epsilon, rounded up to six decimals. It lies in [low, high] or below."""
    from scipy.optimize import brentq

    while at(low) <= epsilon and low > LEAST:
        low, high = max(low / 2, LEAST), low
    if at(low) <= epsilon:
        return low
    root = brentq(lambda noise: at(noise) - epsilon, low, high, xtol=3e-7 * high)
    return math.ceil(root * 1e6) / 1e6


@lru_cache(maxsize=512)
def _epsilons(rounds: tuple[Rounds, ...], delta: float, factor: float) -> Epsilons:
    """Both bounds, the PLD's on an interval `factor` times as wide."""
    if not rounds:
        return Epsilons(0.0, 0.0)
    least = min(part.noise_multiplier for part in rounds)
    if least < LEAST:
        return Epsilons(math.inf, math.inf)
    library = _dp_accounting()
    relation = library.NeighboringRelation.REPLACE_SPECIAL
    with _quiet():
        rdp = _composed(library, library.rdp.RdpAccountant(neighboring_relation=relation), rounds, delta)
        # The number of points is at most about 1e5 times a small factor; 1e-4 for all but very large ε.
        interval = 1e-5 * factor * max(10.0, rdp, least**-2)
        if interval > WIDEST:
            return Epsilons(math.inf, rdp)
        accountant = library.pld.PLDAccountant(relation, value_discretization_interval=interval)
        return Epsilons(_composed(library, accountant, rounds, delta), rdp)


def _composed(library: ModuleType, accountant: Any, rounds: tuple[Rounds, ...], delta: float) -> float:
    for part in rounds:
        event = library.GaussianDpEvent(min(part.noise_multiplier, ENOUGH))
        if part.sampling_rate < 1:
            event = library.PoissonSampledDpEvent(part.sampling_rate, event)
        accountant.compose(event, part.count)
    epsilon = float(accountant.get_epsilon(delta))
    return epsilon if epsilon >= 0 else math.inf  # not a number where nothing was found


def _dp_accounting() -> ModuleType:
    """The library, which loads in two seconds and is therefore imported at its first use."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ModuleNotFoundError:
        raise missing_extra("dp-accounting", "dp") from None
    return dp_accounting


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's log lines about orders of RDP that it leaves out, which lowers no guarantee."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        log.setLevel(level)
