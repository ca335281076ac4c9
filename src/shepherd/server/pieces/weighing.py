"""Weighing rules: from the weights of the round to the shares float64[K, r] of each client in each rank slot.

The model before the round has the remaining share 1 − Σ_k share, slot by slot; it is zero for weights that sum to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shepherd.lowrank import LowRank
from shepherd.registry import Registry
from shepherd.server.uploads import Local, Uploads

weighings = Registry("weighing")

Shares = Callable[[str], np.ndarray]
"""module -> float64[K, r]."""


@dataclass(frozen=True)
class Weighing:
    """A weighing rule: of(uploads, weights float64[K]) -> Shares.

    by_slot: shares may differ between the slots of a client. own: they do not depend on the weights of the round.
    """

    of: Callable[[Uploads, np.ndarray], Shares]
    by_slot: bool = False
    own: bool = False
    name: str = ""


@weighings
def given() -> Weighing:
    """The weights of the round (federation.weights), in all slots; a slot that a client lacks counts as zero."""

    def of(uploads: Uploads, weights: np.ndarray) -> Shares:
        shares = np.repeat(weights[:, None], uploads.r, axis=1)
        return lambda module: shares

    return Weighing(of)


@weighings
def product_norm() -> Weighing:
    """In proportion to ‖s·B_kA_k‖ over the modules sent, ignoring the weights of the round (HetLoRA, 2401.06432)."""

    def of(uploads: Uploads, weights: np.ndarray) -> Shares:
        squares = np.zeros(len(weights))
        for module in uploads.modules:
            squares += [increment(local).norm() ** 2 for local in uploads.each(module)]
        norms = np.sqrt(squares)
        own = norms / norms.sum() if norms.sum() > 0 else weights
        shares = np.repeat(own[:, None], uploads.r, axis=1)
        return lambda module: shares

    return Weighing(of, own=True)


@weighings
def slot_owners() -> Weighing:
    """The weights of the round, renormalised in each slot over its owners (raFLoRA, FediLoRA, Fed-PLoRA).

    Owners of a slot are the clients that could train it; a slot without any is unchanged. With equal ranks: the weights
    of the round.
    """

    def of(uploads: Uploads, weights: np.ndarray) -> Shares:
        def shares(module: str) -> np.ndarray:
            trained = np.zeros((len(weights), uploads.r))
            for row, moved in zip(trained, uploads.moved(module), strict=True):
                row[: len(moved)] = moved
            by_weight = trained * weights[:, None]
            total = by_weight.sum(axis=0)
            # Weights that do not sum to one keep their sum: the initial model then has a share in every slot.
            return weights.sum() * by_weight / np.where(total > 0, total, 1.0)

        return shares

    return Weighing(of, by_slot=True)


def increment(local: Local) -> LowRank:
    """scale · B @ A of one client's module."""
    return LowRank(local.scale * local.B, local.A)
