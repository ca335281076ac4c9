"""The rest of a refactorisation: dropped, or kept as a frozen increment beside the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import DTypeLike

from shepherd.lowrank import LowRank, check_finite
from shepherd.registry import Registry

remainders = Registry("remainder")


@dataclass(frozen=True)
class Remainder:
    """A remainder rule: of(rest, ‖merged‖², module) -> the part to keep, or None.

    lossless: all of it is kept. rank: the bound of the kept part, 0 for none.
    """

    of: Callable[[LowRank, float, str], LowRank | None]
    keeps: bool
    lossless: bool = False
    rank: int = 0
    energy: float = 1.0
    name: str = ""


@remainders
def drop() -> Remainder:
    """Nothing: the next adapter is the whole model."""
    return Remainder(lambda rest, energy, module: None, keeps=False)


@remainders
def keep(rank: int = 0, energy: float = 1.0) -> Remainder:
    """The whole rest, or its best part: of at most `rank`, or with the share `energy` of the merged ‖·‖² kept."""
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    if not 0 < energy <= 1:
        raise ValueError(f'energy must be above 0 and at most 1, got {energy}; to keep nothing is remainder "drop"')

    def of(rest: LowRank, squared_norm: float, module: str) -> LowRank:
        if not rank and energy == 1:
            return rest  # Exact: a decomposition would dominate the cost of a round and save almost nothing.
        return rest.truncated(rank or None, energy, of=squared_norm, where=module)

    return Remainder(of, keeps=True, lossless=rank == 0 and energy == 1, rank=rank, energy=energy)


def accumulate(before: LowRank | None, more: LowRank | None, dtype: DTypeLike, module: str) -> LowRank | None:
    """The exact sum before + more, as a dense matrix where its columns would outnumber those of the dense matrix.

    Never recompressed: sums of rounded factors have full numerical rank. Separate columns of `before` stay separate.
    Raises NumericalError with the module where `more` is not finite.
    """
    if more is None:
        return before
    more = more.astype(dtype)
    check_finite(more, module)
    if before is None:
        return more if more.q <= min(more.shape) else more.filled()
    apart, before = before.parts()
    if before.q + more.q <= min(before.shape):
        return apart + (before + more)
    return apart + LowRank.beside_identity(before.dense() + more.dense())
