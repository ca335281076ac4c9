"""Held-out losses of adapters as sums per row, from which every mean follows exactly.

Every adapter of a cohort is evaluated on every row. The sums of a row do not depend on the division into passes, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.evaluation.row_losses import RowLosses
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack
from shepherd.types import Tokens


def row_losses(
    packed: PackedModel, rows: Sequence[Tokens], lora: CohortLora | None = None, tokens_per_pass: int = 2048
) -> list[RowLosses]:
    """The losses of all rows under each slot of `lora`; without it one entry, of the base."""
    slots = lora.slots if lora is not None else 1
    items = [Row(slot, row) for slot in range(slots) for row in rows]
    nll, hits = (sums.reshape(slots, -1) for sums in _sums(packed, items, lora, tokens_per_pass))
    tokens = np.array([row.targets for row in rows], np.int64)
    return [RowLosses(nll[slot], tokens, hits[slot]) for slot in range(slots)]


def row_losses_each(
    packed: PackedModel, rows: Sequence[Tokens], lora: CohortLora, tokens_per_pass: int = 2048
) -> RowLosses:
    """The losses of each row under one slot: row i under slot i."""
    nll, hits = _sums(packed, [Row(slot, row) for slot, row in enumerate(rows)], lora, tokens_per_pass)
    return RowLosses(nll, np.array([row.targets for row in rows], np.int64), hits)


def _sums(
    packed: PackedModel, items: Sequence[Row], lora: CohortLora | None, tokens_per_pass: int
) -> tuple[np.ndarray, np.ndarray]:
    """(nll float64[items], hits int64[items]), each item under its slot."""
    nll, hits = np.zeros(len(items)), np.zeros(len(items), np.int64)
    done = 0

    def measure() -> None:
        nonlocal done
        for part in cut(items, tokens_per_pass):
            batch = pack(part).to(packed.device)
            if lora is not None:
                lora.segments = batch.segments
            losses, correct = packed.token_losses(batch)
            owners = batch.sequence_of.cpu().numpy()
            where = slice(done, done + len(part))
            nll[where] = np.bincount(owners, losses.cpu().double().numpy(), len(part))
            hits[where] = np.bincount(owners, correct.cpu().numpy(), len(part))
            done += len(part)

    with packed.packing():
        if lora is None:
            measure()
        else:
            with lora.attached():
                measure()
    return nll, hits
