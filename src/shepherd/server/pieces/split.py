"""Refactorisation of a merged increment into the next A and B and a rest: merged = scale · B @ A + rest, exactly.

A refactorisation loses nothing; remainder.py keeps or drops the rest. In TOML it is the piece "split".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shepherd.errors import NumericalError
from shepherd.lowrank import SVD, LowRank, orthonormal_rows
from shepherd.registry import Registry
from shepherd.rng import stream
from shepherd.server.pieces.merge import Merged

splits = Registry("split")

NULL = 1e-10
"""The share of the largest singular value below which a slot has negligible gradients."""


class Halves(NamedTuple):
    """A [r, in], B [out, r] in float64, and the rest of the merged increment."""

    A: np.ndarray
    B: np.ndarray
    rest: LowRank


class SplitContext(NamedTuple):
    """The context of a refactorisation: module, round, and the method's memory (seed, fixed factors)."""

    module: str
    round: int
    memory: Mapping[str, np.ndarray]

    def rng(self, what: str) -> np.random.Generator:
        """The random stream `what` of this module and round."""
        return stream(int(self.memory["seed"]), what, self.round, self.module)


@dataclass(frozen=True)
class Split:
    """A refactorisation: of(merged, context) -> Halves.

    rest_rank(ranks of the cohort, r) bounds the rank of the rest of a product merge. rebases: the next slots are not
    those of this round, so state by slot (moments) is lost. resets: the next adapter contains nothing of the merged
    increment, so the rest must be kept. empties: B is zero afterwards.
    """

    of: Callable[[Merged, SplitContext], Halves]
    rest_rank: Callable[[Sequence[int], int], int]
    rebases: bool = False
    resets: bool = False
    empties: bool = False
    name: str = ""


@splits
def mean() -> Split:
    """The means of A and of B; the rest is the weighted covariance of the factors (FedEx-LoRA, 2410.09432)."""
    return Split(lambda merged, context: Halves(*merged.mean, merged.residual), lambda ranks, r: (len(ranks) - 1) * r)


@splits
def svd_balanced() -> Split:
    """The best rank-r part as U√Σ and √ΣVᵀ, with equal norms of both factors (FedMomentum, 2603.08014).

    Slots without a singular value get a random A_j, orthogonal to the others, and B_j = 0: with both zero they would
    have no gradients.
    """
    return _best_rank(balanced)


@splits
def svd_left() -> Split:
    """The best rank-r part as UΣ and Vᵀ: the rows of A are orthonormal (FlexLoRA, 2402.11505)."""
    return _best_rank(left)


@splits
def regauge() -> Split:
    """The means of the factors, refactored so that A has orthonormal rows; the increment stays (FedSVD, 2505.12805)."""

    def of(merged: Merged, context: SplitContext) -> Halves:
        mean_A, mean_B = merged.mean
        A, B, _ = left(
            _gauge(mean_A, mean_B, merged.scale, context.module), merged.scale, merged.r, context.rng("refill")
        )
        return Halves(A, B, merged.residual)

    return Split(of, lambda ranks, r: (len(ranks) - 1) * r, rebases=True)


@splits
def reinit() -> Split:
    """A new Kaiming A and B = 0; the rest is the whole increment (FLoRA, 2409.05976)."""

    def of(merged: Merged, context: SplitContext) -> Halves:
        n_out, n_in = merged.total.shape
        A = context.rng("reinit").uniform(-1, 1, (merged.r, n_in)) / np.sqrt(n_in)
        return Halves(A, np.zeros((n_out, merged.r)), merged.total)

    return Split(of, lambda ranks, r: sum(ranks), rebases=True, resets=True, empties=True)


@splits
def ridge(strength: float = 0.01) -> Split:
    """A is the mean; B minimises ‖total − s·B·Ā‖² + strength·‖B − B̄‖² (LoRA-FAIR, 2411.14961, in closed form).

    strength → ∞ is the mean of B, 0 the least squares.
    """
    if not 0 <= strength < np.inf:
        raise ValueError(f"strength must be a number of at least 0, got {strength}")

    def of(merged: Merged, context: SplitContext) -> Halves:
        A, B = merged.mean
        s, residual = merged.scale, merged.residual
        gram = s * s * (A @ A.T) + strength * np.eye(len(A))
        if np.isfinite(gram).all() and np.linalg.cond(gram) > 1e13:
            raise NumericalError(
                f"{context.module}: the means of A are linearly dependent, so the ridge regression has no solution",
                hint='set the strength of split "ridge" above 0',
            )
        # (s·T·Āᵀ + λB̄)(s²ĀĀᵀ + λI)⁻¹ with T = s·B̄Ā + residual
        change = np.linalg.solve(gram, (s * residual.L @ (residual.R @ A.T)).T).T
        return Halves(A, B + change, residual + LowRank(-s * change, A))

    return Split(of, lambda ranks, r: len(ranks) * r)


@splits
def fixed() -> Split:
    """The initial factors of the run; the rest is the difference of the merged increment from theirs (FRLoRA).

    The rest of a mean of factors is s(B̄ − B₀)Ā + sB₀(Ā − A₀), which is sB̄Ā − sB₀A₀ in small terms: large terms, each
    rounded to bfloat16 before they cancel, lose a quarter of the trained increment. A product adds its residual.
    """

    def of(merged: Merged, context: SplitContext) -> Halves:
        A, B = (context.memory[f"{context.module}.{part}0"].astype(np.float64) for part in "AB")
        mean_A, mean_B = merged.mean
        s = merged.scale
        learned = LowRank(s * (mean_B - B), mean_A) + LowRank(s * B, mean_A - A)
        return Halves(A, B, learned + merged.residual)

    return Split(of, lambda ranks, r: (len(ranks) + 1) * r, resets=True)


Halving = Callable[[SVD, float, int, np.random.Generator], tuple[np.ndarray, np.ndarray, int]]
"""(svd, scale, rank, rng) -> (A, B, the number of leading triples that they contain)."""


def _best_rank(halve: Halving) -> Split:
    """The best rank-r part of the merged increment, halved in this way; the rest are the triples after it."""

    def of(merged: Merged, context: SplitContext) -> Halves:
        svd = merged.total.svd(context.module)
        A, B, used = halve(svd, merged.scale, merged.r, context.rng("refill"))
        return Halves(A, B, svd.lowrank(used, max(svd.rank, used)))

    return Split(of, lambda ranks, r: max(0, sum(ranks) - r), rebases=True)


def balanced(svd: SVD, scale: float, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """(A, B, used): the first `rank` triples as √(Σ/s)Vᵀ and U√(Σ/s); `used` of them are not null.

    The others get random rows of A orthogonal to those in use, with the norm √⅓ of a Kaiming row, and B = 0.
    """
    used = _not_null(svd.S[:rank])
    root = np.sqrt(svd.S[:used] / scale)
    A = np.concatenate([root[:, None] * svd.V[:used], _new_rows(rng, rank - used, svd.V[:used]) / np.sqrt(3)])
    return A, _padded_columns(svd.U[:, :used] * root, rank), used


def left(svd: SVD, scale: float, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """(A, B, used) with A = Vᵀ and B = UΣ/s; missing rows of A are random, orthonormal to the others.

    Where singular values are zero, V still spans the row space of the factors, so that of A is preserved.
    """
    used = _not_null(svd.S[:rank])
    rows = svd.V[:rank]
    A = np.concatenate([rows, _new_rows(rng, rank - len(rows), rows)])
    return A, _padded_columns(svd.U[:, :used] * (svd.S[:used] / scale), rank), used


def _gauge(A: np.ndarray, B: np.ndarray, scale: float, where: str) -> SVD:
    """SVD of s·BA of any rank by thin QRs, so that V spans the rows of A even where B is rank-deficient.

    Where B has fewer rows than slots, V is completed from the rows of A, with singular values of zero.
    """
    svd = LowRank(scale * B, A).svd(where, thin=True)
    missing = min(A.shape) - len(svd.S)
    if missing <= 0:
        return svd
    rows = np.linalg.qr(A.T)[0].T
    others = np.linalg.svd(rows - (rows @ svd.V.T) @ svd.V)[2][:missing]
    U, S = np.pad(svd.U, ((0, 0), (0, missing))), np.pad(svd.S, (0, missing))
    return SVD(U, S, np.concatenate([svd.V, others]))


def _not_null(S: np.ndarray) -> int:
    return int(np.count_nonzero(NULL * S[0] < S)) if S.size and S[0] > 0 else 0


def _new_rows(rng: np.random.Generator, count: int, existing: np.ndarray) -> np.ndarray:
    n_in = existing.shape[1]
    if count + len(existing) > n_in:  # orthogonal rows do not exist
        return rng.uniform(-1, 1, (count, n_in)) * np.sqrt(3 / n_in)
    return orthonormal_rows(rng, count, existing)


def _padded_columns(B: np.ndarray, rank: int) -> np.ndarray:
    return np.pad(B, ((0, 0), (0, rank - B.shape[1])))
