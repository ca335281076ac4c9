"""Settings of local training, the same for every client of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from shepherd.clients.personal.methods import Personalization


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains; the same for all clients of a run. See `[training]` of the recipe for the meanings."""

    optimizer: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    gradient_checkpointing: bool = False
    tokens_per_pass: int = 1024
    clients_at_once: int = 16
    personal: Personalization = field(default_factory=Personalization)

    @property
    def tokens_measured(self) -> int:
        """Most tokens in a pass that measures: it keeps nothing for a backward pass."""
        return 2 * self.tokens_per_pass
