"""Rules for the tensors and counts of an update: shapes, norms, finite values, control variates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from shepherd.types import (
    CLUSTER,
    CONTROL,
    ClientId,
    ClientModel,
    ClientUpdate,
    Tensors,
    TrainTask,
)
from shepherd.updates.layout import WireError
from shepherd.updates.tensors import view_part

LARGEST = 1e15
"""The largest L2 norm of a tensor under any limits: beyond it squares and products overflow float32."""


_INTEGERS = (int, *(np.dtype(code).type for code in "bBhHiIlLqQ"))
_FLOATS = (float, np.float16, np.float32, np.float64)
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,31}")


def expected_shapes(view: ClientModel, task: TrainTask, client: ClientId) -> dict[str, tuple[int, ...]]:
    """The tensors {name: shape} of an update for this client model, all float32.

    They include SCAFFOLD's control variates and the adapter of the cluster; adapters of clusters have equal shapes.
    """
    shapes = {name: array.shape for name, array in view.tensors().items()}
    if task.objective.scaffold:
        shapes |= {f"{name}{CONTROL}": shape for name, shape in shapes.items()}
    for view in task.clusters.get(client, ())[:1]:
        shapes |= {f"{CLUSTER}{name}": array.shape for name, array in view.tensors().items()}
    return shapes


def _with_choice(view: ClientModel, slots: Tensors) -> ClientModel:
    """The client model with the client's choice of slots, if the task requires one."""
    try:
        return view.chosen(slots)
    except ValueError as error:
        raise WireError("slots", str(error)) from None


def update_norm(update: ClientUpdate) -> float:
    """L2 norm of the delta of the client model, in float64, without control variates and cluster adapters."""
    return _norm(view_part(update.delta))


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(map(_square, tensors.values())))


def _square(array: np.ndarray) -> float:
    """The sum of squares in float64, where no square of a float32 overflows: finite if and only if every value is."""
    with np.errstate(invalid="ignore"):
        values = array.astype(np.float64).ravel()
        return float(values @ values)


def _check_controls(update: ClientUpdate, task: TrainTask, steps: int) -> None:
    """SCAFFOLD's c_k⁺ − c_k is −Δ/Ση − c (1910.06378, algorithm 1, option II), so ‖Δ‖/Ση + ‖c‖ bounds it by tensor.

    Ση is over the steps that trained the part; without any, nothing may change. The tolerance covers transmission in
    half precision: a rounding of 2⁻⁸, and of 1e-7 for numbers too small for it.
    """
    view, rates = task.views[update.client], task.work[update.client].learning_rates[:steps]
    for name in update.delta:
        if not name.endswith(CONTROL):
            continue
        tensor = name.removesuffix(CONTROL)
        part = tensor.rsplit(".", 1)[1]
        total = sum(rate for i, rate in enumerate(rates) if part in (*view.trains[i % len(view.trains)], "core"))
        total *= 1.0 if part == "A" else task.objective.rate_ratio
        delta = update.delta[tensor]
        most = 0.0
        if total:
            before = math.sqrt(_square(task.control[tensor])) if tensor in task.control else 0.0
            most = 1.02 * ((math.sqrt(_square(delta)) + 1e-7 * math.sqrt(delta.size)) / total + before)
        norm = math.sqrt(_square(update.delta[name]))
        if norm > most:
            raise WireError("norm", f"{name}: L2 norm {norm:.6g}, its delta and learning rates allow {most:.6g}")


def _is(value: Any, *kinds: type) -> bool:
    """Whether the type of `value` is one of `kinds` itself. Comparing types by == could run code of a metaclass."""
    return any(type(value) is kind for kind in kinds)


def _count(name: str, value: Any, limit: int) -> int:
    if not _is(value, *_INTEGERS):
        raise WireError("fields", f"{name} is {_kind(value)}, expected int")
    if not 1 <= value <= limit:
        raise WireError("count", f"{name} = {_shown(value)}, expected 1 to {limit}")
    return int(value)


def _cluster(value: Any, count: int) -> int:
    """The number of one of `count` clusters, from 1; 0 and nothing else where there are none."""
    if not _is(value, *_INTEGERS):
        raise WireError("fields", f"cluster is {_kind(value)}, expected int")
    if not min(1, count) <= value <= count:
        raise WireError("cluster", f"cluster = {_shown(value)}, expected {f'1 to {count}' if count else '0'}")
    return int(value)


def _metrics(metrics: Any, most: int, private: bool = False) -> dict[str, float]:
    """Finite numbers by short plain names, including `loss`, or none at all where training is `private`.

    Names are never shown: they are text from the client.
    """
    if not _is(metrics, dict):
        raise WireError("fields", f"metrics is {_kind(metrics)}, expected dict")
    if len(metrics) > most:
        raise WireError("fields", f"{len(metrics)} metrics, the limit is {most}")
    if not all(_is(name, str) and _METRIC.fullmatch(name) for name in metrics):
        raise WireError("fields", "a metric's name is not 1 to 32 small letters, digits or '_'")
    if not all(_is(value, *_FLOATS, *_INTEGERS) and _fits_float(value) for value in metrics.values()):
        raise WireError("fields", "a metric is not a number")
    if private and metrics:
        raise WireError("fields", f"{len(metrics)} metrics, and the task is private to each example: expected none")
    plain = {name: float(value) for name, value in metrics.items()}
    if ("loss" not in plain and not private) or not all(map(math.isfinite, plain.values())):
        what = "there is no loss" if "loss" not in plain else "a metric is not finite"
        raise WireError("non-finite", f"metrics: {what}")
    return plain


def _arrays(what: str, value: Any) -> None:
    """Check for a plain dict of plain arrays: inspecting any other object could run code of the client."""
    if not _is(value, dict):
        raise WireError("fields", f"{what} is {_kind(value)}, expected dict")
    if not all(_is(name, str) for name in value):
        raise WireError("fields", f"{what} has a name that is not text")
    for array in value.values():
        if not _is(array, np.ndarray):
            raise WireError("fields", f"{what} holds {_kind(array)}, expected arrays")
        if array.dtype.kind not in "biuf":
            raise WireError("shape", f"{what} holds an array of no real numbers")


def _check_shapes(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> None:
    """Compare shapes by name. Our names of tensors may be shown; unknown names of the client are only counted."""
    if theirs.keys() != ours.keys():
        missing = sorted(ours.keys() - theirs.keys())
        first = f"; {missing[0]} is missing" if missing else ""
        raise WireError("tensors", f"{len(theirs)} tensors, expected {len(ours)}{first}")
    for name, shape in ours.items():
        if theirs[name] != shape:
            given = str(list(theirs[name])) if len(theirs[name]) <= 4 else f"{len(theirs[name])} dimensions"
            raise WireError("shape", f"{name}: {given}, expected {list(shape)}")


def _kind(value: Any) -> str:
    """The name of a common type; that of any other could be text from the client."""
    common = (bool, int, float, str, bytes, list, tuple, dict, type(None), np.ndarray, np.bool_)
    return next((kind.__name__ for kind in common if type(value) is kind), "of another type")


def _fits_float(value: Any) -> bool:
    return not _is(value, int) or abs(value) < 2**1000


def _shown(value: Any) -> str:
    """An integer as text, unless it is too long."""
    return str(int(value)) if abs(int(value)) < 10**18 else "a number of more than 18 digits"
