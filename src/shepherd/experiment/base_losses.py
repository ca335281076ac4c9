"""Held-out losses of the bare base, kept between runs: one evaluation per model, rows and machine.

The key is the digest of all that the numbers depend on, so that a kept result is what a run would measure, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from shepherd._version import __version__
from shepherd.evaluation.losses import RowLosses
from shepherd.experiment.identity import code_digest, processor_of
from shepherd.experiment.inputs import Inputs
from shepherd.model.arrays import from_file, to_bytes
from shepherd.store.disk import DISK, make_folders, write_whole

PARTS = ("nll", "tokens", "hits")


def kept_or_measured(folder: Path | None, inputs: Inputs, measure: Callable[[], RowLosses]) -> RowLosses:
    """The losses of the base from `folder`, or as measured, and then kept there; without a folder as measured."""
    if folder is None:
        return measure()
    file = folder / f"{key_of(inputs)}.safetensors"
    if (found := _read(file)) is not None:
        return found
    losses = measure()
    if np.isfinite(losses.nll).all():
        make_folders(DISK, folder)
        write_whole(DISK, file, to_bytes({part: getattr(losses, part) for part in PARTS}))
    return losses


def key_of(inputs: Inputs) -> str:
    """sha256 over base, precision, tokens of the rows, passes, threads, device, versions and code."""
    base, rows = inputs.base, inputs.data.held_out
    total = hashlib.sha256()
    facts = {
        "base": base.digest,
        "quantize": inputs.config.model.quantize,
        "dtype": str(base.dtype),
        "device": [str(base.device), processor_of(base.device)],
        "threads": torch.get_num_threads(),
        "workers": inputs.config.run.workers,
        "tokens_measured": inputs.trainer.settings.tokens_measured,
        "versions": [__version__, torch.__version__, code_digest()],
        "rows": len(rows),
    }
    total.update(json.dumps(facts, sort_keys=True).encode())
    for row in rows:
        for part in (row.input_ids, row.loss_mask):
            total.update(np.ascontiguousarray(part, np.int64).tobytes() + b"\0")
    return total.hexdigest()


def _read(file: Path) -> RowLosses | None:
    """The kept losses; None where there are none, or the file is damaged."""
    if not file.exists():
        return None
    try:
        arrays, _ = from_file(file)
        return RowLosses(*(arrays[part] for part in PARTS))
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
