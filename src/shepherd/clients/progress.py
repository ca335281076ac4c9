"""Progress of local training, as reported while clients train: counts and losses, no tensors and no texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

from shepherd.types import ClientId

State = Literal["waiting", "training", "done", "failed", "lost", "rejected", "late"]
"""failed: in local training. lost: no reply. rejected: by the gate. late: after the deadline, or after enough."""
STATES: tuple[State, ...] = get_args(State)


class Progress(NamedTuple):
    """The progress of a client in a round.

    step, steps: optimizer steps done and in total, 0 of 0 before the first. loss: of the last step, in nats per target
    token. targets: target tokens trained on. tokens: tokens passed through the base. seconds: wall time of the steps.
    """

    state: State = "waiting"
    step: int = 0
    steps: int = 0
    loss: float = math.nan
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0


StepReport = Mapping[ClientId, Progress | State]
"""Progress by client, or only the new state of a client."""
Observe = Callable[[StepReport], None]
ObserveTraining = Callable[[Mapping[ClientId, Progress]], None]
"""A function that local training calls after each step, with the progress of all its clients."""


def ignore(_: StepReport) -> None:
    """Observe nothing."""
