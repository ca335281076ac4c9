"""The nouns of a run: who trains (Engine), what stays the same over rounds (Plan), what befalls a bad one (Policy)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shepherd.clients.pool import Selection
from shepherd.clients.progress import StepReport
from shepherd.evaluation.losses import RowLosses
from shepherd.server.method import Method
from shepherd.types import (
    ClientFailure,
    ClientId,
    ClientUpdate,
    GlobalModel,
    Objective,
    Tensors,
    Tokens,
    TrainTask,
    Work,
)
from shepherd.updates.gate import Gate
from shepherd.updates.spool import Spool
from shepherd.updates.wire import Sealed


class Engine(Protocol):
    """Who runs the clients. The algorithm does not know whether they are in this process or in another country."""

    def train(
        self, task: TrainTask, private: Mapping[ClientId, Tensors], observe: Callable[[StepReport], None]
    ) -> Iterable[ClientUpdate | ClientFailure | Sealed]:
        """An update, as it is or as it travelled, or a failure for every client of the task.

        What a client raises must end here: an exception of `train` is one of the engine, and ends the run. `private`
        is what simulated clients kept from earlier rounds; real sites keep theirs and are not told.
        """
        ...

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of rows that the server holds, under a model or the bare base."""
        ...


@dataclass(frozen=True)
class Policy:
    """What becomes of a round when clients fail, are late, or are too few. See `[federation]` for the meanings.

    `clock(work, round)` gives the seconds until a client answers; without one, clients arrive in the order in which the
    engine yields them, and the engine keeps the deadline.
    """

    on_too_few: str = "stop"
    retries: int = 3
    over_select: float = 0.0
    deadline: float = 0.0
    quarantine_after: int = 0
    max_weight: float = 1.0
    clock: Callable[[Work, int], float] | None = None

    def ask(self, wanted: int) -> int:
        """How many clients to ask so that `wanted` answer: (1 + over_select) · wanted, rounded up."""
        return math.ceil(round((1 + self.over_select) * wanted, 9))


@dataclass(frozen=True)
class Plan:
    """What stays the same over the rounds of a run.

    `work(client, round, first_row)` is a client's share, `rank(client)` the rank of its adapter, `gate()` a gate for
    one round, `spool()` the place of its updates, `effective_steps(work, steps, round)` what FedNova divides by where a
    client took so many of its steps. `sizes` counts the rows that each client holds, `probed` those on
    which it trains for a choice of slots before each round begins. clusters: how many are trained beside the global
    model.
    """

    seed: int
    clients: tuple[ClientId, ...]
    cohort_size: int
    select: Selection
    method: Method
    weights: str
    min_updates: int
    work: Callable[[ClientId, int, int], Work]
    rank: Callable[[ClientId], int]
    objective: Objective
    policy: Policy = Policy()
    gate: Callable[[], Gate] = Gate
    spool: Callable[[], Spool] = Spool
    sizes: Mapping[ClientId, int] = field(default_factory=dict)
    probed: Mapping[ClientId, int] = field(default_factory=dict)
    clusters: int = 0
    effective_steps: Callable[[Work, int, int], float] = lambda work, steps, round_number: float(steps)

    @property
    def asked(self) -> int:
        """Clients that are asked in a round, over-selection included."""
        return min(len(self.clients), self.policy.ask(self.cohort_size))
