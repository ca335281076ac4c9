"""L2 clipping of updates: by the client before it sends, and again by the server where it sees single updates.

    federation.clip_update_norm = 0.5        # or "median": of the norms of the last round, before clipping

McMahan et al., 2018 (1710.06963), flat clipping: Δ · min(1, C/‖Δ‖₂), the norm over all tensors of the message.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from shepherd.types import ClientModel, ClientUpdate, TrainTask, TransformSpec
from shepherd.updates.rules import _norm
from shepherd.updates.transforms import Transform, transforms

ClipNorm = float | Literal["median"]
"""federation.clip_update_norm: a fixed norm, 0 for none, or the median norm of the last round's updates."""

MOST_REPORTED = 1e12
"""The largest norm that a client may report where federation.max_update_norm sets no limit."""
REPORTED = "unclipped_norm"
"""The metric in which a client reports its norm before clipping, if the task asks for it."""

# Float32 rounds each value by up to 2⁻²⁴ of it; half as much again and no clipped update is longer than the limit.
_ROOM = 1 - 2.0**-23


@transforms
def clip(norm: float, report: bool = False) -> Transform:
    """Scale an update down to an L2 norm of at most `norm`, over all of its tensors in float64.

    report: send the norm before clipping as a metric, which the median of the next round is taken from.
    """
    if not 0 < norm < math.inf:
        raise ValueError(f"norm must be more than 0 and finite, got {norm:g}")

    def on_client(update: ClientUpdate, _start: ClientModel, _rng: np.random.Generator) -> ClientUpdate:
        bounded = clipped(update, norm)
        if not report:
            return bounded
        return replace(bounded, metrics={**bounded.metrics, REPORTED: _norm(update.delta)})

    return Transform(on_client, needs=frozenset({"no control variates"}), setting="federation.clip_update_norm")


def clipped(update: ClientUpdate, limit: float) -> ClientUpdate:
    """The update with an L2 norm of at most `limit`; itself where it has that, or where the limit is 0, for none.

    A clipped update is shorter than the limit by 2⁻²³ of it at the least and 2⁻²² at the most, so that a second clip
    changes no bit. One with values that are not finite is left to the gate.
    """
    norm = _norm(update.delta) if limit else 0.0
    if not limit < norm < math.inf:
        return update
    factor = limit / norm * _ROOM
    shorter = {name: (array.astype(np.float64) * factor).astype(array.dtype) for name, array in update.delta.items()}
    return replace(update, delta=shorter)


def clip_specs(limit: float, report: bool = False) -> tuple[TransformSpec, ...]:
    """What a task asks of its clients for a limit, and whether they report the norm before; nothing without one."""
    if not limit:
        return ()
    return (TransformSpec("clip", {"norm": limit} | ({"report": True} if report else {})),)


def clip_of(task: TrainTask) -> float:
    """The limit that a task sets its clients; 0 without one. The server holds each update to it as well."""
    return next((spec.options["norm"] for spec in task.transforms if spec.name == "clip"), 0.0)


def unclipped_norm(update: ClientUpdate, norm: float, most: float) -> float:
    """The norm of an update on arrival, or that before clipping where the client reports a larger one.

    most: the norm above which an update is rejected, 0 for none; no report counts for more.
    """
    return max(norm, min(update.metrics.get(REPORTED, 0.0), most or MOST_REPORTED))


def was_clipped(norm: float, limit: float) -> bool:
    """Whether an update of this `unclipped_norm` was clipped, by its client or by the server.

    Without a report, it was if its norm is the limit to 1e-6.
    """
    return bool(limit) and norm >= (1 - 1e-6) * limit
