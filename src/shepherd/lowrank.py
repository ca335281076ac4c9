"""LowRank: an increment of a weight matrix as a product of two thin factors, never densified.

    X = LowRank(B_a, A_a) + 0.5 * LowRank(B_b, A_b)       # exact: columns and rows are concatenated
    U, S, V = X.svd()                                     # two thin QRs and a small SVD
    head, tail = X.split(8)                               # the best rank-8 approximation, and what it leaves

The scale alpha / r of an adapter is inside. dtype is that of the factors; ask for float64 with `astype`.

    >>> rng = np.random.default_rng(0)
    >>> a, b = (LowRank(rng.standard_normal((50, 2)), rng.standard_normal((2, 40))) for _ in range(2))
    >>> X = a + 0.5 * b
    >>> X.shape, X.q
    ((50, 40), 4)
    >>> bool(np.allclose(X.dense(), a.dense() + 0.5 * b.dense()))
    True
    >>> head, tail = X.split(3)
    >>> bool(np.isclose(tail.norm(), X.singular_values()[3]))   # Eckart and Young: the best approximation of rank 3
    True
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from shepherd.errors import NumericalError

DENSE_FROM = 0.6
"""The share of min(out, in) from which on the SVD of the dense product is the faster one."""


class SVD(NamedTuple):
    """U[out, q], S[q] descending, V[q, in] with orthonormal columns and rows: the matrix is U @ diag(S) @ V."""

    U: np.ndarray
    S: np.ndarray
    V: np.ndarray

    def lowrank(self, start: int = 0, stop: int | None = None) -> LowRank:
        """The part of singular triples start … stop − 1, with √S in both factors."""
        U, S, V = self.U[:, start:stop], self.S[start:stop], self.V[start:stop]
        root = np.sqrt(S)
        return LowRank(U * root, root[:, None] * V, SVD(U, S, V))

    @property
    def rank(self) -> int:
        """The numerical rank: singular values above the rounding error of the largest."""
        if not self.S.size:
            return 0
        resolution = np.finfo(self.S.dtype).eps * max(len(self.U), self.V.shape[1])
        return int(np.count_nonzero(self.S / self.S[0] > resolution)) if self.S[0] > 0 else 0


@dataclass(frozen=True)
class LowRank:
    """The matrix L @ R with L [out, q] and R [q, in]. q may be 0, which is the zero matrix.

    known: its decomposition, where L and R came out of one; nothing is decomposed twice. apart: the number of leading
    columns that form a large term which another increment cancels. It is never summed with the others in one matrix,
    where rounding to half precision would cost them as much as it costs the large term.
    """

    L: np.ndarray
    R: np.ndarray
    known: SVD | None = field(default=None, repr=False, compare=False)
    apart: int = 0

    def __post_init__(self) -> None:
        if self.L.ndim != 2 or self.R.ndim != 2 or self.L.shape[1] != self.R.shape[0]:
            raise ValueError(f"L{list(self.L.shape)} and R{list(self.R.shape)} have no product")

    @classmethod
    def zero(cls, n_out: int, n_in: int, dtype: DTypeLike = np.float64) -> LowRank:
        return cls(np.zeros((n_out, 0), dtype), np.zeros((0, n_in), dtype))

    @classmethod
    def beside_identity(cls, matrix: np.ndarray) -> LowRank:
        """A dense matrix times an identity: q = min(out, in), and sums of such need no decomposition."""
        n_out, n_in = matrix.shape
        if n_in <= n_out:
            return cls(matrix, np.eye(n_in, dtype=matrix.dtype))
        return cls(np.eye(n_out, dtype=matrix.dtype), matrix)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.L), self.R.shape[1]

    @property
    def q(self) -> int:
        """Columns of L: an upper bound of the rank and a measure of the storage."""
        return self.L.shape[1]

    @property
    def nbytes(self) -> int:
        return self.L.nbytes + self.R.nbytes

    def __add__(self, other: LowRank) -> LowRank:
        """The exact sum, of q + q' columns.

        >>> one = LowRank(np.ones((3, 1)), np.ones((1, 2)))
        >>> (one + one).q, (one + one).svd().rank
        (2, 1)
        """
        if self.shape != other.shape:
            raise ValueError(f"increments of {list(self.shape)} and {list(other.shape)} do not add")
        L, R = np.concatenate([self.L, other.L], axis=1), np.concatenate([self.R, other.R], axis=0)
        return LowRank(L, R, apart=self.apart)

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.L * self.L.dtype.type(factor), self.R, apart=self.apart)

    __rmul__ = __mul__

    def astype(self, dtype: DTypeLike) -> LowRank:
        return LowRank(self.L.astype(dtype), self.R.astype(dtype), apart=self.apart)

    def parts(self) -> tuple[LowRank, LowRank]:
        """(the first `apart` columns, the others)."""
        cut = self.apart
        return LowRank(self.L[:, :cut], self.R[:cut], apart=cut), LowRank(self.L[:, cut:], self.R[cut:])

    def dot(self, other: LowRank) -> float:
        """⟨X, Y⟩ = Σ XᵢⱼYᵢⱼ, from the factors' small products."""
        return float(np.sum((self.L.T @ other.L) * (self.R @ other.R.T)))

    def norm(self) -> float:
        """Frobenius norm, from Gram matrices: exact to √eps where terms cancel."""
        return float(np.sqrt(max(self.dot(self), 0.0)))

    def singular_values(self, where: str = "") -> np.ndarray:
        """Descending. Cheaper than `svd`: no orthonormal factor is formed. Raises NumericalError like it."""
        if self.q == 0:
            return np.zeros(0, self.L.dtype)
        check_finite(self, where)
        if self.known:
            return self.known.S
        if self.q >= DENSE_FROM * min(self.shape):
            return _singular_values(self.dense(), where)
        return _singular_values(triangle(self.L) @ triangle(self.R.T).T, where)

    def svd(self, where: str = "", thin: bool = False) -> SVD:
        """The singular value decomposition with min(q, out, in) triples; the largest |Uᵢⱼ| of each column is positive.

        thin: never by the dense product, so that U and V span L's independent columns and R's rows also where singular
        values are zero. Raises NumericalError, which names `where` (a module), when L or R is not finite.
        """
        if self.q == 0:
            n_out, n_in = self.shape
            return SVD(np.zeros((n_out, 0), self.L.dtype), np.zeros(0, self.L.dtype), np.zeros((0, n_in), self.L.dtype))
        check_finite(self, where)
        if self.known and not thin:
            return self.known
        if self.q >= DENSE_FROM * min(self.shape) and not thin:
            U, S, V = _small_svd(self.dense(), where)
        else:
            left, L = np.linalg.qr(self.L)
            right, R = np.linalg.qr(self.R.T)
            U, S, V = _small_svd(L @ R.T, where)
            U, V = left @ U, V @ right.T
        columns = np.arange(U.shape[1])
        signs = np.where(U[np.argmax(np.abs(U), axis=0), columns] < 0, -1, 1).astype(U.dtype)
        return SVD(U * signs, S, signs[:, None] * V)

    def split(self, rank: int, where: str = "") -> tuple[LowRank, LowRank]:
        """(best approximation of this rank, the rest). The rest's norm is √Σ_{j>rank} σⱼ² (Eckart and Young, 1936)."""
        svd = self.svd(where)
        return svd.lowrank(0, rank), svd.lowrank(rank, max(svd.rank, rank))

    def truncated(
        self, rank: int | None = None, energy: float = 1.0, of: float | None = None, where: str = ""
    ) -> LowRank:
        """The best approximation of at most `rank`, and of the least rank that keeps the share `energy` of ‖·‖².

        `of`: the squared norm that the share refers to, where this increment is a part of a larger one. With neither
        bound: the same matrix at its numerical rank.
        """
        svd = self.svd(where)
        keep = svd.rank
        if energy < 1:
            squares = svd.S.astype(np.float64) ** 2
            lost = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # lost[p] = Σ_{j≥p} σⱼ²
            total = float(squares.sum()) if of is None else of
            keep = min(keep, int(np.argmax(lost <= (1 - energy) * total)))
        return svd.lowrank(0, keep if rank is None else min(keep, rank))

    def dense(self) -> np.ndarray:
        """L @ R [out, in]: for tests, and where it is no larger than the factors."""
        if _is_identity(self.R):
            return self.L
        return self.R if _is_identity(self.L) else self.L @ self.R

    def filled(self) -> LowRank:
        """The same matrix as a dense matrix times an identity."""
        return LowRank.beside_identity(self.dense())


def stack(terms: list[LowRank]) -> LowRank:
    """The exact sum of many increments, in this order."""
    return LowRank(np.concatenate([t.L for t in terms], axis=1), np.concatenate([t.R for t in terms], axis=0))


def orthonormal_rows(rng: np.random.Generator, count: int, existing: np.ndarray) -> np.ndarray:
    """`count` random orthonormal rows [count, in], also orthogonal to the orthonormal rows `existing` [k, in]."""
    n_in = existing.shape[1]
    if count + len(existing) > n_in:
        raise ValueError(f"there are no {count + len(existing)} orthonormal rows of {n_in} entries")
    rows = rng.standard_normal((count, n_in))
    for _ in range(2):  # once more for the digits that the first projection lost
        rows -= (rows @ existing.T) @ existing
        rows = np.linalg.qr(rows.T)[0].T
    return rows


def _is_identity(matrix: np.ndarray) -> bool:
    n, m = matrix.shape
    return n == m and bool((matrix.diagonal() == 1).all()) and np.count_nonzero(matrix) == n


def check_finite(matrix: LowRank, where: str) -> None:
    """Raise NumericalError, which names `where`, when L or R is not finite."""
    bad = int((~np.isfinite(matrix.L)).sum() + (~np.isfinite(matrix.R)).sum())
    if bad:
        raise NumericalError(
            f"{where or 'an increment'}: {bad} values are not finite, so it has no singular value decomposition",
            hint="lower training.learning_rate; the round was not committed",
        )


def triangle(columns: np.ndarray) -> np.ndarray:
    """R[min(n, c), c] of the QR decomposition of columns [n, c], without forming Q."""
    return np.asarray(np.linalg.qr(columns, mode="r"))


def _small_svd(matrix: np.ndarray, where: str) -> SVD:
    with _named_errors(matrix, where):
        return SVD(*np.linalg.svd(matrix, full_matrices=False))


def _singular_values(matrix: np.ndarray, where: str) -> np.ndarray:
    with _named_errors(matrix, where):
        return np.linalg.svd(matrix, full_matrices=False, compute_uv=False)


@contextmanager
def _named_errors(matrix: np.ndarray, where: str) -> Iterator[None]:
    """Turn numpy's LinAlgError into a NumericalError that names `where`."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        raise NumericalError(
            f"{where or 'an increment'}: no singular value decomposition of {list(matrix.shape)} was found: {error}",
            hint="lower training.learning_rate; the round was not committed",
        ) from error
