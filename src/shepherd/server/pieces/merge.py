"""The merge of one module over clients: E' = E + Σ c_k (E_k − E), which for Σc = 1 is Σ c_k E_k.

A merge maps (uploads, module, shares, server) to Merged. It defines the linear space in which the server optimizer
steps: the factors, the product, or the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shepherd.lowrank import LowRank, stack
from shepherd.registry import Registry
from shepherd.server.optimizer import ServerStep
from shepherd.server.uploads import Local, Uploads, expand_core

merges = Registry("merge")


@dataclass(frozen=True)
class Term:
    """One term of a merge, a client or the start: share float64[r] by slot, and factors of rank r_k ≤ r."""

    share: np.ndarray
    local: Local


@dataclass(frozen=True)
class Merged:
    """One merged module, in float64. The shares of the terms sum to one in each slot.

    The merged increment is Σ_k Σ_j share_kj · s_k · B_k[:, j] A_k[j] + extra, computed on demand.
    """

    scale: float
    terms: tuple[Term, ...]
    extra: LowRank | None = None

    @property
    def r(self) -> int:
        """The global rank."""
        return len(self.terms[0].share)

    @cached_property
    def shared(self) -> str:
        """The factor common to all terms, as when only the other one was trained: "A", "B" or ""."""
        locals_ = [term.local for term in self.terms]
        return next((x for x in "AB" if all(_same(getattr(locals_[0], x), getattr(o, x)) for o in locals_[1:])), "")

    @cached_property
    def total(self) -> LowRank:
        """The exact merged increment, of Σ r_k columns, or of r where the terms share a factor.

        √share is applied to both sides, so that both factors have the same scale.
        """
        parts = []
        if len(self.terms) > 1 and self.shared:
            first, weights = self.terms[0].local, [t.share[: len(t.local.A)] * t.local.scale for t in self.terms]
            if self.shared == "A":
                sums = sum(weight * term.local.B for weight, term in zip(weights, self.terms, strict=True))
                one = LowRank(sums, first.A)
            else:
                sums = sum(weight[:, None] * term.local.A for weight, term in zip(weights, self.terms, strict=True))
                one = LowRank(first.B, sums)
            return one if self.extra is None else one + self.extra
        for term in self.terms:
            weight = term.share[: len(term.local.A)] * term.local.scale
            root = np.sqrt(np.abs(weight))
            parts.append(LowRank(term.local.B * (np.sign(weight) * root), root[:, None] * term.local.A))
        return stack(parts if self.extra is None else [*parts, self.extra])

    @cached_property
    def mean(self) -> tuple[np.ndarray, np.ndarray]:
        """The means of A and of B in the server's scale; slots that a client lacks count as zero."""
        filled = [padded(term.local, self.r, self.scale) for term in self.terms]
        A = sum(term.share[:, None] * A_k for term, (A_k, _) in zip(self.terms, filled, strict=True))
        B = sum(term.share * B_k for term, (_, B_k) in zip(self.terms, filled, strict=True))
        return A, B

    @cached_property
    def residual(self) -> LowRank:
        """total − scale · B̄ @ Ā: the weighted covariance of the factors, Σ share (B_k − B̄)(A_k − Ā), of rank (K−1)·r.

        From the centred factors: a subtraction would lose all digits when clients agree.
        """
        A, B = self.mean
        shares = np.array([term.share for term in self.terms])
        roots = np.sqrt(np.abs(shares) * self.scale)
        filled = [padded(term.local, self.r, self.scale) for term in self.terms]
        rows = np.stack([root[:, None] * (A_k - A) for root, (A_k, _) in zip(roots, filled, strict=True)])
        columns = np.stack([root * (B_k - B) for root, (_, B_k) in zip(roots, filled, strict=True)])
        if (shares < 0).any():
            columns = columns * np.sign(shares)[:, None]
        else:
            rows, columns = _without_mean(shares, rows, columns)
        parts = [LowRank(L, R) for L, R in zip(columns, rows, strict=True)]
        if not parts:
            parts = [LowRank.zero(len(B), A.shape[1])]
        return stack(parts if self.extra is None else [*parts, self.extra])


@dataclass(frozen=True)
class Merge:
    """A merge: of(uploads, module, shares float64[K, r], server) -> Merged. space: that of the server optimizer.

    linear: whether the result depends on the clients' deltas through their sum by these shares alone (the sum law).
    averages: whether it is a weighted mean, of factors, products or cores; that of an aggregator need not be.
    """

    of: Callable[[Uploads, str, np.ndarray, ServerStep], Merged]
    space: str
    linear: bool
    averages: bool = True
    name: str = ""


@merges
def factor() -> Merge:
    """Separate weighted means of the factors (FedIT); exact where only one factor is trained. Needs sums alone."""

    def of(uploads: Uploads, module: str, shares: np.ndarray, server: ServerStep) -> Merged:
        start, sent = uploads.start(module), ""
        delta_A, delta_B = np.zeros_like(start.A), np.zeros_like(start.B)
        for c, local in zip(shares, uploads.each(module), strict=True):  # one client's factors at a time
            A_k, B_k = padded(local, uploads.r, start.scale)
            delta_A += c[:, None] * (A_k - start.A)
            delta_B += c * (B_k - start.B)
            sent = sent or local.sent
        A = start.A + server.step(f"{module}.A", delta_A) if "A" in sent else start.A
        B = start.B + server.step(f"{module}.B", delta_B) if "B" in sent else start.B
        return Merged(start.scale, (Term(np.ones(uploads.r), Local(A, B, start.scale, start.moved)),))

    return Merge(of, space="factors", linear=True)


@merges
def product() -> Merge:
    """The exact mean of the products s_k·B_kA_k, as a stack (FLoRA, 2409.05976). Needs the factors of each client."""

    def of(uploads: Uploads, module: str, shares: np.ndarray, server: ServerStep) -> Merged:
        start, locals_ = uploads.start(module), uploads.locals(module)
        clients = [Term(c, local) for c, local in zip(shares, locals_, strict=True)]
        merged = Merged(start.scale, (*clients, *_start_term(shares, start)))
        if server.memoryless:
            return merged
        delta = merged.total + LowRank(-start.scale * start.B, start.A)
        return Merged(start.scale, merged.terms, (server.step(module, delta) + -1.0 * delta).truncated(where=module))

    return Merge(of, space="increments", linear=False)


@merges
def core() -> Merge:
    """The weighted mean of the cores, head by head; exact, because the bases are the same for all (Fed-SB, Ravan)."""

    def of(uploads: Uploads, module: str, shares: np.ndarray, server: ServerStep) -> Merged:
        start, memory = uploads.start(module), uploads.model.memory
        before = memory[f"{module}.core"].astype(np.float64)
        by_head = shares[:, :: before.shape[1]]
        changes = uploads.changes(f"{module}.core")
        delta = sum(c[:, None, None] * change for c, change in zip(by_head, changes, strict=True))
        after = before + server.step(f"{module}.core", delta)
        server.memory[f"{module}.core"] = after.astype(memory[f"{module}.core"].dtype)
        B = expand_core(memory[f"{module}.basis"], after)
        return Merged(start.scale, (Term(np.ones(uploads.r), Local(start.A, B, start.scale, start.moved)),))

    return Merge(of, space="cores", linear=True)


def _without_mean(shares: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K centred terms as K − 1 of the same sum of products: rows [K, r, in], columns [K, out, r], shares [K, r].

    In each slot Σ_k √c_k x_k = 0 for both factors. A reflection over the terms that turns √c into the first axis leaves
    Σ_k columns_k rows_k as it is, and makes the first term zero.
    """
    mirror = np.sqrt(shares)  # v = √c + e₁, and 2 / ‖v‖² = 1 / v₁ as √c has norm one
    mirror[0] += 1
    along_rows = np.einsum("kr,krn->rn", mirror, rows) / mirror[0][:, None]
    along_columns = np.einsum("kr,kmr->mr", mirror, columns) / mirror[0]
    return (
        rows[1:] - mirror[1:, :, None] * along_rows,
        columns[1:] - mirror[1:, None, :] * along_columns,
    )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or (one.shape == other.shape and np.array_equal(one, other))


def _start_term(shares: np.ndarray, start: Local) -> tuple[Term, ...]:
    """The term of the start with share 1 − Σ shares; none where that is zero up to rounding."""
    left = 1 - shares.sum(axis=0)
    left[np.abs(left) < 1e-9] = 0.0
    return (Term(left, start),) if left.any() else ()


def padded(local: Local, r: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A [r, in] and B [out, r] in the server's scale, with zeros in the slots that the client lacks."""
    missing = r - len(local.A)
    B = local.B if local.scale == scale else local.B * (local.scale / scale)
    if not missing:
        return local.A, B
    return np.pad(local.A, ((0, missing), (0, 0))), np.pad(B, ((0, 0), (0, missing)))
