"""The nouns of selection: the pool a cohort is drawn from, the draw, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shepherd.registry import Registry
from shepherd.types import ClientId

selections = Registry("selection")
WEIGHTS = ("examples", "tokens", "uniform")


@dataclass(frozen=True)
class Pool:
    """All that a selection may look at: what the server knows before a round.

    clients: those that may be asked now, sorted; the mappings have no others. sizes: rows that each holds. shares: what
    each should weigh in the mean over all of them, by federation.weights, with the sum one; empty for "tokens", which
    nobody knows beforehand. Of clients that were asked before: `rounds`, when last; `losses`, the mean training loss
    of their last answer in nats per target token; `seconds`, how long their last answer took. The last two lack
    clients that never answered.
    """

    round: int
    clients: tuple[ClientId, ...]
    sizes: Mapping[ClientId, int] = field(default_factory=dict)
    shares: Mapping[ClientId, float] = field(default_factory=dict)
    rounds: Mapping[ClientId, int] = field(default_factory=dict)
    losses: Mapping[ClientId, float] = field(default_factory=dict)
    seconds: Mapping[ClientId, float] = field(default_factory=dict)

    def only(self, clients: frozenset[ClientId]) -> Pool:
        """The same without the others; what is left of the shares sums to one again."""
        kept = tuple(c for c in self.clients if c in clients)

        def of(values: Mapping[ClientId, Any]) -> dict[ClientId, Any]:
            return {c: values[c] for c in kept if c in values}

        shares = of(self.shares)
        total = sum(shares.values())
        return Pool(
            self.round,
            kept,
            of(self.sizes),
            {c: share / total for c, share in shares.items()},
            of(self.rounds),
            of(self.losses),
            of(self.seconds),
        )


@dataclass(frozen=True)
class Draw:
    """The cohort, sorted and each client once, and what each weighs; None leaves that to federation.weights.

    Weights are shares of `draws`, which counts a client as often as it was drawn; they are shared out anew among those
    that answer. With `fixed` they hold as they are and need not sum to one: what is missing of one stays with the
    model of before.
    """

    clients: tuple[ClientId, ...]
    weights: Mapping[ClientId, float] | None = None
    draws: int = 0
    fixed: bool = False

    def times(self, client: ClientId) -> int:
        """How often the client was drawn."""
        return 1 if self.weights is None or self.fixed else round(self.weights[client] * self.draws)


@dataclass(frozen=True)
class Selection:
    """draw(pool, size, rng) -> Draw of about `size` clients of the pool, which is not empty; and what it goes with.

    goes_with: the federation.weights that it estimates the mean of. weighs: it gives weights of its own, `fixed` ones
    with a fixed denominator. sizes_itself: the cohort's size is not asked. refills: others may be drawn into the same
    round, or more than are needed. learns: earlier answers have a say in whom it draws. cohort(clients, size): the mean
    size of a cohort. check(clients, size) raises UsageError where the clients of a run do not fit.
    """

    draw: Callable[[Pool, int, np.random.Generator], Draw]
    goes_with: tuple[str, ...] = WEIGHTS
    weighs: bool = False
    fixed: bool = False
    sizes_itself: bool = False
    refills: bool = True
    may_be_empty: bool = False
    learns: bool = False
    cohort: Callable[[int, int], int] = lambda clients, size: size
    check: Callable[[tuple[ClientId, ...], int], None] = lambda clients, size: None
    name: str = ""
