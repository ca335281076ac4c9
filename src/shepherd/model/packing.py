"""Padding-free packing: sequences end to end in rows of a limited number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from shepherd.model.slots import PADDING, Segment
from shepherd.types import Tokens


@dataclass(frozen=True)
class Pass:
    """One row of T tokens: sequences end to end, the sequences of a slot next to each other.

    input_ids, position_ids int64[1, T]; bounds[i]:bounds[i + 1] is sequence i; `segments` assign tokens to slots, with
    padding at the end in slot PADDING.
    predictors int64[P]: positions whose next token is a target; labels int64[P]: those tokens; `target_segments`
    assign the P targets to slots; sequence_of int64[P]: the sequence of each target. seeds: one per sequence (dropout).
    """

    input_ids: Tensor
    position_ids: Tensor
    bounds: tuple[int, ...]
    segments: tuple[Segment, ...]
    predictors: Tensor
    labels: Tensor
    target_segments: tuple[Segment, ...]
    sequence_of: Tensor
    seeds: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Pass:
        """The pass with its tensors on this device."""
        names = ("input_ids", "position_ids", "predictors", "labels", "sequence_of")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to be packed: its slot, its tokens and the seed of its dropout masks."""

    slot: int
    tokens: Tokens
    seed: int = 0


def pack(rows: Sequence[Row], multiple: int = 1) -> Pass:
    """Pack rows end to end, padded to a multiple of `multiple` tokens; the rows of a slot must be adjacent."""
    lengths = [len(row.tokens.input_ids) for row in rows]
    filling = -sum(lengths) % multiple
    tokens = [row.tokens.input_ids for row in rows] + [np.zeros(filling, np.int32)] * bool(filling)
    slots = [row.slot for row in rows] + [PADDING] * bool(filling)
    lengths += [filling] * bool(filling)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    predictors, labels, owners = [], [], []
    for index, (row, start) in enumerate(zip(rows, bounds, strict=False)):
        positions = np.flatnonzero(row.tokens.loss_mask[1:])
        predictors.append(positions + start)
        labels.append(row.tokens.input_ids[positions + 1])
        owners.append(np.full(len(positions), index))
    return Pass(
        input_ids=torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        bounds=tuple(int(b) for b in bounds),
        segments=_runs(slots, lengths),
        predictors=torch.from_numpy(np.concatenate(predictors).astype(np.int64)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        target_segments=_runs(slots[: len(rows)], [len(p) for p in predictors]),
        sequence_of=torch.from_numpy(np.concatenate(owners).astype(np.int64)),
        seeds=tuple(row.seed for row in rows),
    )


def cut(rows: Iterable[Row], tokens_per_pass: int) -> Iterator[list[Row]]:
    """Divide rows, in order, into passes of at most `tokens_per_pass` tokens; a longer row gets a separate pass.

    The rows of each slot are divided into blocks independently and a block is never split, so the rows that share a
    product depend on their slot alone. Two blocks of a slot never fit into one pass.
    """
    own = (list(run) for _, run in groupby(rows, key=lambda row: row.slot))
    blocks = [block for run in own for block in _gather([[row] for row in run], tokens_per_pass)]
    return _gather(blocks, tokens_per_pass)


def _gather(blocks: Iterable[list[Row]], tokens_per_pass: int) -> Iterator[list[Row]]:
    """Join adjacent blocks up to `tokens_per_pass` tokens in total."""
    batch: list[Row] = []
    total = 0
    for block in blocks:
        length = sum(len(row.tokens.input_ids) for row in block)
        if batch and total + length > tokens_per_pass:
            yield batch
            batch, total = [], 0
        batch = batch + block
        total += length
    if batch:
        yield batch


def _runs(slots: Sequence[int], lengths: Sequence[int]) -> tuple[Segment, ...]:
    """Runs of adjacent rows of the same slot as [(slot, start, end)], without empty ones."""
    runs: list[Segment] = []
    start = 0
    for slot, length in zip(slots, lengths, strict=True):
        if runs and runs[-1].slot == slot:
            runs[-1] = Segment(slot, runs[-1].start, start + length)
        elif length:
            runs.append(Segment(slot, start, start + length))
        start += length
    return tuple(runs)
