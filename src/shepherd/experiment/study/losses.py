"""Losses of one side of a comparison, from the RUN.json of its runs: float64[rows] under each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shepherd.arms import parts_of
from shepherd.errors import DataError, did_you_mean
from shepherd.types import client_id

Record = Mapping[str, Any]
"""The contents of a RUN.json."""


@dataclass(frozen=True)
class Rows:
    """The held-out rows of a run: ids, tokens int64[rows], and the indices of each client's own rows."""

    ids: tuple[str, ...]
    tokens: np.ndarray
    own: Mapping[str, np.ndarray]
    digest: tuple[Any, ...]

    def same(self, other: Rows) -> bool:
        """Whether these are the same tokens of the same rows."""
        return (self.ids, self.digest) == (other.ids, other.digest) and np.array_equal(self.tokens, other.tokens)


def problem_of(record: Record) -> str:
    """What is wrong with the losses of a RUN.json, "" where nothing is.

    The rows of each model must be those of the run, and their sum must give the mean loss beside them, up to rounding.
    """
    try:
        rows, arms, digests = record["rows"], record["arms"], record["digests"]
        count, total = len(rows["ids"]), sum(rows["tokens"])
        if len(rows["tokens"]) != count or not total or not {"data", "held_out", "tokenizer"} <= digests.keys():
            return "rows, their tokens or digests are missing"
        slack = record["rounded_to"] * count / (2 * total)
        for name, values, loss in _models(arms):
            if len(values) != count:
                return f"{name} has {len(values)} losses for {count} rows"
            if not abs(sum(values) / total - loss) <= slack + 1e-6 * max(1.0, abs(loss)):
                return f"the rows of {name} give a loss of {sum(values) / total:.6f}, beside them stands {loss:.6f}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _models(arms: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[float], float]]:
    """The name of each model, its losses by row, and their mean."""
    for arm, entry in arms.items():
        if "losses" not in entry:
            yield arm, entry["nll"], entry["loss"]
            continue
        yield f"{arm}:mean", entry["mean"], entry["loss"]
        for client, values in entry["each"].items():
            yield f"{arm}/{client}", values, entry["losses"][client]


def rows_of(record: Record) -> Rows:
    """The held-out rows of a run."""
    rows = record["rows"]
    own = {client: np.array(at, np.int64) for client, at in (rows.get("own") or {}).items()}
    digests = record["digests"]
    return Rows(tuple(rows["ids"]), np.array(rows["tokens"], np.float64), own,
                (digests.get("held_out"), digests.get("tokenizer")))  # fmt: skip


def clients_of(record: Record, arm: str) -> tuple[str, ...]:
    """The clients that have a model in an arm."""
    return tuple((record["arms"].get(arm) or {}).get("losses") or ())


def losses_of(record: Record, arm: str) -> np.ndarray:
    """nll float64[rows] of `NAME`, `NAME:mean`, `NAME:best` or `NAME/CLIENT`. Raises DataError where it is missing."""
    name, pick, client = parts_of(arm)
    found = record["arms"].get(name)
    if found is None:
        raise DataError(f"{record['run']} has no {name} arm: all its clients failed")
    if client:
        return _values(_each(record, name, client))
    return _values(found[pick] if pick else found["nll"])


def own_losses(record: Record, arm: str, clients: Sequence[str]) -> dict[str, np.ndarray]:
    """For each client the nll of its own rows, under its own model where the arm has one per client."""
    name, pick, _ = parts_of(arm)
    rows = rows_of(record)
    if pick == "mean":
        return {client: _values(_each(record, name, client))[rows.own[client]] for client in clients}
    values = losses_of(record, arm)
    return {client: values[rows.own[client]] for client in clients}


def own_rows_of(record: Record, client: str) -> np.ndarray:
    """The indices of a client's own rows, by its id or label. Raises DataError where it has none."""
    rows = rows_of(record).own
    labels = record.get("labels") or {}
    found = rows.get(client_id(client, rows, labels))
    if found is None or not len(found):
        near = did_you_mean(client, [*rows, *labels.values()])
        raise DataError(f"{record['run']} records no held-out rows of {client!r}.{near}")
    return found


def _each(record: Record, arm: str, client: str) -> Sequence[float | None]:
    labels = record.get("labels") or {}
    kept, known = record["arms"][arm].get("each") or {}, clients_of(record, arm)
    client = client_id(client, known, labels)
    if client not in known:
        near = did_you_mean(client, [*known, *labels.values()])
        raise DataError(f"{record['run']}: {client!r} has no model in the {arm} arm.{near}")
    if client not in kept:
        raise DataError(
            f"{record['run']}: its RUN.json keeps no {record.get('left_out') or 'losses of single clients'}"
        )
    return kept[client]


def _values(given: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in given], np.float64)
