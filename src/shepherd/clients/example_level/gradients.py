"""Per-example gradients on the cohort axis, their clipped sum, and its noise.

Slot i of the cohort has the client's adapter and gets one row, so its gradient is that of this row: K clients with one
row each, of which all start from the same factors. The factors are shared and only the gradients are separate, so a
client needs one more float32 vector of its adapter per row that is computed at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shepherd.clients.example_level.sampling import Randomness
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.passes import accumulate
from shepherd.clients.settings import LocalTraining
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row
from shepherd.types import Tokens

_log = logging.getLogger(__name__)


class ExampleGradients:
    """The per-example gradients of one client: `at_once` rows at a time, each in a slot.

    The model must be in its `packing` context, and `lora` attached.
    """

    def __init__(
        self,
        packed: PackedModel,
        lora: CohortLora,
        optimizer: LocalOptimizer,
        settings: LocalTraining,
        at_once: int,
    ) -> None:
        self.packed, self.lora, self.optimizer, self.settings = packed, lora, optimizer, settings
        vector = optimizer.slot.vector
        self._gradients = torch.zeros((at_once, len(vector)), dtype=vector.dtype, device=vector.device)
        self.slots = [optimizer.slot.twin(gradient) for gradient in self._gradients]
        self._wide = torch.device("cpu") if vector.device.type == "mps" else vector.device  # mps has no float64
        lora.held = self.slots

    def clipped_sum(self, rows: Sequence[tuple[Tokens, int]], clip: float) -> list[Tensor]:
        """Σ g_i · min(1, clip/‖g_i‖) over rows (tokens, dropout seed), float64[n] by active part of the optimizer.

        g_i is the gradient of the mean loss over the targets of row i, and ‖g_i‖ its L2 norm in float64 over all active
        parts together. Any number of rows is taken, `at_once` at a time. A row whose gradient is not finite counts as a
        row of gradient zero: if it failed the client, one row would decide what leaves.
        """
        totals = [
            torch.zeros(len(part.values), dtype=torch.float64, device=self._wide) for part in self.optimizer.active
        ]
        lost = 0
        for start in range(0, len(rows), len(self.slots)):
            group = rows[start : start + len(self.slots)]
            found, norms = self._gradients_of(group)
            if self.lora.together and not all(map(math.isfinite, norms)):
                # Shared products spread a NaN of one row to all: repeat the group with separate products.
                self.lora.together = False
                found, norms = self._gradients_of(group)
                self.lora.together = True
            for (tokens, _), gradient, norm in zip(group, found, norms, strict=True):
                if not math.isfinite(norm):
                    lost += 1
                    continue
                factor = clip_factor(norm / tokens.targets, clip) / tokens.targets
                for total, part in zip(totals, gradient, strict=True):
                    total.add_(part, alpha=factor)
        if lost:
            _log.debug("%d of %d gradients were not finite and count as zero", lost, len(rows))
        return totals

    def _gradients_of(self, group: Sequence[tuple[Tokens, int]]) -> tuple[list[list[Tensor]], list[float]]:
        """(gradients of each row's summed loss by part, their norms)."""
        slots = self.slots[: len(group)]
        for slot in slots:
            slot.moves = self.optimizer.slot.moves
        self._gradients[: len(group)].zero_()
        rows = [Row(i, tokens, seed) for i, (tokens, seed) in enumerate(group)]
        accumulate(self.packed, self.lora, rows, self.settings)
        found = [[part.to(self._wide) for part in self.optimizer.gradients_of(slot)] for slot in slots]
        return found, torch.stack([_norm(parts) for parts in found]).tolist()


def clip_factor(norm: float, clip: float) -> float:
    """min(1, clip/norm)."""
    return clip / norm if norm > clip else 1.0


def noised(totals: Sequence[Tensor], deviation: float, batch: float, randomness: Randomness) -> list[Tensor]:
    """(total + N(0, deviation² I)) / batch for each part, float64: the noise is drawn once, for all parts together.

    batch: the planned size of a step, whatever number of rows was drawn (1607.00133, algorithm 1: L).
    """
    drawn = iter(
        torch.from_numpy(deviation * randomness.normal(sum(map(len, totals)))).split([len(total) for total in totals])
    )
    return [(total + noise.to(total.device)) / batch for total, noise in zip(totals, drawn, strict=True)]


def _norm(parts: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all parts, float64[]."""
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]).norm()
