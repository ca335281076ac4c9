"""Types of client selection: the pool that a cohort is drawn from, the draw, the rule and their registry."""

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
    """What the server knows before a round, and all that a selection may depend on.

    clients: those eligible now, sorted; the mappings have no others. sizes: training rows of each. shares: the weights
    in the mean over all of them, by federation.weights, which sum to one; empty for "tokens", whose counts are known
    only after training. Of clients sampled before: `rounds`, the last such round; `losses`, the mean training loss of
    the last update in nats per target token; `seconds`, the duration of the last update. The last two lack clients
    without any update.
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

    Weights are shares of `draws`, which counts a client as often as it was drawn; replies renormalise them.
    With `fixed` they hold as they are and need not sum to one: the rest stays with the previous model.
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
    """A selection rule: draw(pool, size, rng) -> Draw of about `size` clients of a pool that is not empty.

    goes_with: the federation.weights whose mean it estimates. weighs: it sets the weights, `fixed` ones with a fixed
    denominator. sizes_itself: it ignores `size`. refills: more clients may be drawn into the same round, or more than
    are needed. learns: earlier updates influence the draw. random: so does the stream `rng`. cohort(clients, size): the
    mean size of a cohort. check(clients, size) raises UsageError where the clients of a run do not fit.
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
