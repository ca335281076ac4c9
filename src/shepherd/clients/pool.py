"""Types of client selection: the pool of eligible clients, the draw of a cohort, the rule and the registry of rules."""

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
    """The eligible clients before a round with their histories: everything that a selection may depend on.

    clients: sorted; the mappings contain no others. sizes: training rows of each. shares: weights in the mean over all
    clients by federation.weights, which sum to one; empty for "tokens", whose counts are known only after training.
    rounds: the last round of clients sampled before. losses: the mean training loss of a client's last update, in nats
    per target token. seconds: the duration of that update. Clients without an update are in neither of these two.
    """

    round: int
    clients: tuple[ClientId, ...]
    sizes: Mapping[ClientId, int] = field(default_factory=dict)
    shares: Mapping[ClientId, float] = field(default_factory=dict)
    rounds: Mapping[ClientId, int] = field(default_factory=dict)
    losses: Mapping[ClientId, float] = field(default_factory=dict)
    seconds: Mapping[ClientId, float] = field(default_factory=dict)

    def only(self, clients: frozenset[ClientId]) -> Pool:
        """The pool restricted to these clients; their shares are renormalised to sum to one."""
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
    """A cohort, sorted and without repetition, and its weights; None leaves these to federation.weights.

    Weights are shares of `draws`, the number of draws with repetition; they are renormalised over the replies. `fixed`
    weights are not, and need not sum to one: the rest is the weight of the previous model.
    """

    clients: tuple[ClientId, ...]
    weights: Mapping[ClientId, float] | None = None
    draws: int = 0
    fixed: bool = False

    def times(self, client: ClientId) -> int:
        """The number of times that the client was drawn."""
        return 1 if self.weights is None or self.fixed else round(self.weights[client] * self.draws)


@dataclass(frozen=True)
class Selection:
    """A selection rule: draw(pool, size, rng) -> Draw of about `size` clients of a non-empty pool.

    goes_with: the federation.weights whose mean it estimates. weighs: it sets the weights; fixed: with a fixed
    denominator. sizes_itself: it ignores `size`. refills: a round may draw again, or more clients than needed.
    may_be_empty: a draw may have no clients. learns: earlier updates influence the draw. random: the stream `rng` does.
    cohort(clients, size): the mean size of a cohort. check(clients, size): raises UsageError for clients of a run that
    do not fit.
    """

    draw: Callable[[Pool, int, np.random.Generator], Draw]
    goes_with: tuple[str, ...] = WEIGHTS
    weighs: bool = False
    fixed: bool = False
    sizes_itself: bool = False
    refills: bool = True
    may_be_empty: bool = False
    learns: bool = False
    random: bool = True
    cohort: Callable[[int, int], int] = lambda clients, size: size
    check: Callable[[tuple[ClientId, ...], int], None] = lambda clients, size: None
    name: str = ""
