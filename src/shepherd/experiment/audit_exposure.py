"""Exposure of a run's canaries: each code ranked among candidates, under the final adapter and under the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.data.tokenize import tokenize
from shepherd.errors import EvaluationError, UsageError
from shepherd.evaluation.attacks.exposure import Exposure, by_copies, chance, exposure
from shepherd.experiment.audit_canaries import CODES, Canary, candidates
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.rows_seen import rows_trained
from shepherd.model.continuations import continuation_losses
from shepherd.types import GlobalModel


def attack_codes(
    inputs: Inputs,
    model: GlobalModel,
    lines: Sequence[Mapping[str, Any]],
    count: int,
    seed: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """The exposure of each canary among `count` codes, itself included, drawn from `seed`, and by copies.

    Raises UsageError where nothing was planted.
    """
    canaries = inputs.data.canaries
    if not any(canary.copies for canary in canaries):
        raise UsageError(
            "nothing was planted in this run, so no code can be looked for: its recipe has no privacy.audit.canaries",
            hint="set privacy.audit.canaries = 12 and run again",
        )
    if not 2 <= count <= CODES - len(canaries):
        raise UsageError(f"{count} candidates: between 2 and {CODES - len(canaries):,} codes can be ranked")
    seen = rows_trained(lines, inputs.data, inputs.seed, inputs.plan.examples is not None)
    lora = inputs.trainer.make_lora().load(model)
    tuned: list[Exposure] = []
    base: list[Exposure] = []
    codes = []
    for number, canary in enumerate(canaries, 1):
        note(f"exposure: code {number} of {len(canaries)}")
        rows = _rows(inputs, canary, candidates(canary, canaries, count, seed))
        for place, slot in ((tuned, lora), (base, None)):
            losses = continuation_losses(inputs.base.model, *rows, slot)
            try:
                place.append(exposure(losses, 0))
            except ValueError as error:
                raise EvaluationError(f"code {canary.number}: {error}", hint="the adapter may have diverged") from None
        times = (
            None if seen is None else sum(seen.get(f"canary/{canary.number:03d}/{i}", 0) for i in range(canary.copies))
        )
        codes.append(
            {
                "number": canary.number,
                "client": canary.client or None,
                "copies": canary.copies,
                "times_trained": times,
                "sha256": canary.digest,
                "tuned": {"bits": tuned[-1].bits, "rank": tuned[-1].rank},
                "base": {"bits": base[-1].bits, "rank": base[-1].rank},
            }
        )
    return {
        "candidates": count,
        "most": math.log2(count),
        "chance": chance(count),
        "by_copies": by_copies([canary.copies for canary in canaries], tuned, base),
        "codes": codes,
    }


def _rows(inputs: Inputs, canary: Canary, codes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The tokens that the rows of all codes begin with, and how each goes on, up to its last target."""
    examples = [canary.example(code, copy) for copy, code in enumerate(codes)]
    made = tokenize(examples, inputs.base.tokenizer, inputs.template, inputs.config.data.max_length)
    rows = [made.by_id[example.id] for example in examples]
    ends = [int(np.flatnonzero(row.loss_mask)[-1]) + 1 for row in rows]
    ids = [row.input_ids[:end].tolist() for row, end in zip(rows, ends, strict=True)]
    shared = next(
        (i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids)) - 1
    )
    return ids[0][:shared], [one[shared:] for one in ids]
