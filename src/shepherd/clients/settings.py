"""Settings of local training, the same for every client of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from shepherd.clients.personal.methods import Personalization


@dataclass(frozen=True)
class LocalTraining:
    """Optimizer, clipping, dropout and batching of local training; `[training]` of the recipe defines them."""

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
        """The most tokens of a pass without gradients, which stores no activations for a backward pass."""
        return 2 * self.tokens_per_pass
