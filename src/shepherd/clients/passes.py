"""The passes of a local step: rows of several slots through the frozen base, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from shepherd.clients.settings import LocalTraining
from shepherd.model.forward import ROWS_MULTIPLE, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack


def accumulate(packed: PackedModel, lora: CohortLora, rows: Sequence[Row], settings: LocalTraining) -> dict[int, float]:
    """Accumulate the gradient of each slot's summed loss in that slot and return the summed losses by slot, in nats.

    The rows of a slot are adjacent. The division by the number of targets comes afterwards, in float32: a bfloat16 head
    would round it.
    """
    sums = dict.fromkeys((row.slot for row in rows), 0.0)
    for part in cut(rows, settings.tokens_per_pass):
        batch = pack(part, ROWS_MULTIPLE).to(packed.device)
        lora.segments = batch.segments
        if settings.dropout:
            ends = pairwise(batch.bounds[: len(batch.seeds) + 1])
            lora.dropout_seeds = [(*pair, seed) for pair, seed in zip(ends, batch.seeds, strict=True)]
        nll = packed.loss_sums(batch)
        nll.sum().backward()
        for segment, value in zip(batch.target_segments, nll.tolist(), strict=True):
            sums[segment.slot] += value
    return sums
