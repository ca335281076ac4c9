"""Payload transforms, applied to a client's factors between training and merge: (local, start, round) -> local.

A transform is a pure function of one client's factors and of the model it received, so that a client can apply it
before its upload is masked or encrypted, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shepherd.registry import Registry
from shepherd.server.uploads import Local, LocalTransform, unchanged

payloads = Registry("payload")

SINGULAR = 1e-10
"""The share of the largest singular value below which a direction of the overlap leaves the rotation undetermined."""


@dataclass(frozen=True)
class Payload:
    """A payload transform(local, start, round) -> local, with its name."""

    transform: LocalTransform
    needs_both: bool = False
    name: str = ""


@payloads
def plain() -> Payload:
    """The trained factors, unchanged."""
    return Payload(unchanged)


@payloads
def rotate(strength: float = 0.5) -> Payload:
    """Rotate each client's slots towards the global factors; its increment stays the same (FedRot-LoRA, 2602.23638).

    The rotation R minimises ‖RᵀA_k − A‖ in even rounds and ‖B_kR − B‖ in odd ones, softened to the rotation nearest to
    (1 − strength)·I + strength·R; not in the first round, where B is zero. strength = 0 changes nothing. Among several
    minimisers R is the one nearest to I, so that an unchanged client is not rotated.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, got {strength}")

    def transform(local: Local, start: Local, round_number: int) -> Local:
        if round_number == 1 or strength == 0:
            return local
        overlap = local.B.T @ start.B if round_number % 2 else local.A @ start.A.T
        R = nearest_rotation(overlap)
        if strength < 1:
            R = nearest_rotation((1 - strength) * np.eye(len(R)) + strength * R)
        return replace(local, A=R.T @ local.A, B=local.B @ R)

    return Payload(transform, needs_both=True)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation R (orthogonal, det = 1) with the largest tr(Rᵀ @ matrix) (Kabsch, 1976).

    For a singular matrix there are many, one for each orthogonal Q from its null space onto the complement of its
    range; the result is the one nearest to I, with the largest tr(R).
    """
    U, S, V = np.linalg.svd(matrix)
    free = int(np.count_nonzero(SINGULAR * S[0] >= S))  # all of them, where the matrix is zero
    if free:
        fixed = len(S) - free
        # R = U diag(I, Q) V, so tr(R) = … + tr(Q V₂U₂): Q is the orthogonal matrix nearest to (V₂U₂)ᵀ.
        P, _, W = np.linalg.svd((V[fixed:] @ U[:, fixed:]).T)
        U = np.concatenate([U[:, :fixed], U[:, fixed:] @ P], axis=1)
        V = np.concatenate([V[:fixed], W @ V[fixed:]])
    signs = np.ones(len(matrix))
    signs[-1] = np.sign(np.linalg.det(U @ V))
    return (U * signs) @ V
