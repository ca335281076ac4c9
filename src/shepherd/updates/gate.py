"""The gate that every answer passes before anything else sees it: an update, or a failure with its reason."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shepherd.types import ClientFailure, ClientUpdate, TrainTask


def admit(answer: ClientUpdate | ClientFailure, task: TrainTask) -> ClientUpdate | ClientFailure:
    """The update when its client, round, modules, shapes, dtype, counts and values are in order, else a failure."""
    if isinstance(answer, ClientFailure):
        return answer
    reason = _fault(answer, task)
    return answer if reason is None else ClientFailure(answer.client, task.round, *reason)


def update_norm(update: ClientUpdate) -> float:
    """L2 norm of the whole delta, in float64."""
    return float(np.sqrt(sum(float(np.sum(np.square(d, dtype=np.float64))) for d in update.delta.values())))


def _fault(update: ClientUpdate, task: TrainTask) -> tuple[str, str] | None:
    if update.client not in task.work:
        return "uninvited", "the client is not in this round's cohort"
    if update.round != task.round:
        return "stale-round", f"the update is of round {update.round}, this is round {task.round}"
    expected = task.views[update.client].tensors()
    if set(update.delta) != set(expected):
        return (
            "tensors",
            f"{len(update.delta)} tensors, expected {len(expected)}{_first_difference(update.delta, expected)}",
        )
    if not np.isfinite(update.metrics.get("loss", np.nan)):
        return "non-finite", "metrics have no finite loss"
    for name in ("num_examples", "num_tokens"):
        if getattr(update, name) < 1:
            return "count", f"{name} = {getattr(update, name)}"
    for name, ours in expected.items():
        delta = update.delta[name]
        if delta.shape != ours.shape or delta.dtype != np.float32:
            return "shape", f"{name}: {delta.dtype}{list(delta.shape)}, expected float32{list(ours.shape)}"
        if not np.isfinite(delta).all():
            return "non-finite", f"{name}: {int((~np.isfinite(delta)).sum())} values are not finite"
    return None


def _first_difference(theirs: Iterable[str], ours: Iterable[str]) -> str:
    """Names of tensors are ours, so they can be shown; a client's own names are only counted."""
    missing = sorted(set(ours) - set(theirs))
    return f"; {missing[0]} is missing" if missing else ""
