"""Random rows to pack, and their losses in separate passes."""

from __future__ import annotations

import numpy as np
import torch

from shepherd.model.packing import Row
from shepherd.types import Tokens

LENGTHS = (23, 2, 9, 17, 40)  # the windows of gemma2, gemma3 and mistral here are 8 tokens


def some_rows(lengths=LENGTHS, slots=None, targets=0.6, seed=0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(lengths):
        mask = rng.random(n) < targets
        mask[-1] = True
        ids = rng.integers(3, 380, n).astype(np.int32)
        rows.append(Row(slots[i] if slots else 0, Tokens(str(i), ids, mask)))
    return rows


def reference(model, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The losses of a row's targets and whether each was the likeliest token, by the unmodified model."""
    ids = torch.from_numpy(row.tokens.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    targets = np.flatnonzero(row.tokens.loss_mask[1:]) + 1
    losses = -torch.log_softmax(logits, -1)[targets - 1, ids[0, targets]]
    return losses.numpy(), (logits[targets - 1].argmax(-1) == ids[0, targets]).numpy()
