"""What is told of clients while they train: how far each is, no tensors and no texts of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from shepherd.types import ClientId

STATES = ("waiting", "training", "done", "failed", "rejected", "late")
"""failed: its training was. rejected: the gate refused its update. late: after the deadline, or after enough others."""


class Progress(NamedTuple):
    """How far a client is in its round.

    step, steps: optimizer steps done and to do, 0 of 0 before the first. loss: of the last step, nats per target token.
    targets: tokens learned, tokens: tokens that went through the base, seconds: of the steps that it took part in.
    """

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float = math.nan
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0


StepReport = Mapping[ClientId, Progress | str]
"""News of some clients: how far each is, or only its new state."""
ObserveTraining = Callable[[Mapping[ClientId, Progress]], None]
"""A function that local training calls after each step, with the progress of all its clients."""
