"""The partition of examples over clients: assignment by a partitioner, checks, partition.json."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import rng
from shepherd.data.holdout import hold_out, short_categories
from shepherd.data.names import safe_names
from shepherd.data.partitioners import Partitioner, partitioners
from shepherd.data.sources import digest
from shepherd.errors import DataError, ShepherdError
from shepherd.types import ClientId, Example, Partition

__all__ = [
    "divide",
    "hold_out",
    "load_partition",
    "partition_document",
    "partitioners",
    "save_partition",
    "short_categories",
    "table",
]


def divide(
    examples: Sequence[Example],
    name: str,
    options: Mapping[str, Any],
    clients: int,
    seed: int,
    held_out: Sequence[Example] = (),
    dataset_digest: str = "",
) -> Partition:
    """Assign `examples` to clients by the partitioner `name`. With 0 clients it decides their number, if it can.

    dataset_digest: by default the digest of examples and held-out rows. Raises DataError for more clients than rows,
    for a row that is also held out, a rule that fails, a row that is not in exactly one client, and for empty clients.
    """
    if not examples:
        raise DataError("no rows are left to divide over clients", hint="lower data.held_out_per_category")
    overlap = {e.id for e in examples} & {e.id for e in held_out}
    if overlap:
        raise DataError(
            f"{min(overlap)} is both held out and trained on ({len(overlap)} ids in all)",
            hint="two files of the same name give the same ids: rename the file with the held-out rows",
        )
    if clients > len(examples):
        raise DataError(
            f"{clients} clients are more than the {len(examples)} rows to divide; each needs at least one",
            hint=f"set partition.clients to at most {len(examples)}, or lower data.held_out_per_category",
        )
    assigned = _assigned(partitioners.build(name, options), name, examples, clients, seed)
    _check(assigned, examples, name)
    labels = dict(sorted(zip(safe_names(list(assigned)), assigned, strict=True)))
    return Partition(
        clients={client: tuple(assigned[label]) for client, label in labels.items()},
        labels=labels,
        dataset_digest=dataset_digest or digest([*examples, *held_out]),
        held_out=tuple(e.id for e in held_out),
        settings={"name": name, "clients": clients, "seed": seed, **options},
    )


def _assigned(
    rule: Partitioner, name: str, examples: Sequence[Example], clients: int, seed: int
) -> dict[str, tuple[str, ...]]:
    try:
        return rule(examples, clients, rng.stream(seed, "partition", name))
    except ShepherdError:
        raise
    except Exception as error:  # a rule from outside can raise anything
        raise DataError(
            f"{name} failed on {len(examples)} rows and {clients} clients: {type(error).__name__}: {error}",
            hint="" if clients else "set partition.clients, e.g. --set partition.clients=8",
        ) from error


def table(partition: Partition, examples: Sequence[Example]) -> tuple[list[ClientId], list[str], np.ndarray]:
    """(clients, categories, int64[clients, categories]): the number of rows per client and category."""
    category = {e.id: e.category for e in examples}
    clients = sorted(partition.clients)
    categories = sorted({category[row_id] for ids in partition.clients.values() for row_id in ids})
    column = {name: i for i, name in enumerate(categories)}
    counts = np.zeros((len(clients), len(categories)), np.int64)
    for row, client in enumerate(clients):
        for row_id in partition.clients[client]:
            counts[row, column[category[row_id]]] += 1
    return clients, categories, counts


def partition_document(partition: Partition, examples: Sequence[Example] = ()) -> dict[str, Any]:
    """The content of partition.json: rows and labels by client id; with `examples` the client × category table."""
    document: dict[str, Any] = {
        "clients": {client: list(ids) for client, ids in partition.clients.items()},
        "labels": {client: partition.label(client) for client in partition.clients},
        "held_out": list(partition.held_out),
        "dataset_digest": partition.dataset_digest,
        "settings": dict(partition.settings),
    }
    if examples:
        clients, categories, counts = table(partition, examples)
        document["table"] = {"clients": clients, "categories": categories, "counts": counts.tolist()}
    return document


def save_partition(path: Path, partition: Partition, examples: Sequence[Example] = ()) -> None:
    """Write partition.json atomically."""
    path = Path(path)
    temporary = path.with_name(path.name + ".new")
    text = json.dumps(partition_document(partition, examples), ensure_ascii=False, indent=1) + "\n"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_partition(path: Path, dataset_digest: str = "") -> Partition:
    """Read partition.json. Raises DataError if it is invalid or, with `dataset_digest`, belongs to other data."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        partition = Partition(
            clients={client: tuple(ids) for client, ids in sorted(document["clients"].items())},
            dataset_digest=document["dataset_digest"],
            held_out=tuple(document["held_out"]),
            settings=document["settings"],
            labels={client: str(label) for client, label in document.get("labels", {}).items()},
        )
        _check_names(partition.clients, str(path))
    except FileNotFoundError:
        raise DataError(f"no partition at {path}") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a partition: {type(error).__name__}: {error}") from None
    if dataset_digest and dataset_digest != partition.dataset_digest:
        raise DataError(
            f"{path} divides other data (digest {partition.dataset_digest[:12]}, this data is {dataset_digest[:12]})",
            hint="create a new partition, or use the data of this one",
        )
    return partition


def partition_digest(partition: Partition) -> str:
    """sha256 of the rows of each client and the held-out rows."""
    clients = {client: list(ids) for client, ids in sorted(partition.clients.items())}
    return hashlib.sha256(json.dumps([clients, list(partition.held_out)]).encode()).hexdigest()


def _check_names(clients: Iterable[ClientId], what: str) -> None:
    for client in clients:
        if not (isinstance(client, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", client)):
            raise DataError(
                f"{what}: a client cannot be called {str(client)[:80]!r}",
                hint="1 to 64 letters, digits, '.', '_' or '-', no '.' first: clients' names may name files",
            )


def _check(assigned: Mapping[str, Sequence[str]], examples: Sequence[Example], name: str) -> None:
    for client in assigned:
        if not isinstance(client, str):
            raise DataError(f"{name}: a client's name must be text, not {type(client).__name__}: {str(client)[:80]}")
    empty = sorted(client for client, ids in assigned.items() if not ids)
    if empty:
        raise DataError(
            f"{name} left {len(empty)} of {len(assigned)} clients without rows: {', '.join(empty[:3])}",
            hint="fewer clients, more rows, or a partitioner with a minimum size",
        )
    counts: dict[str, int] = {e.id: 0 for e in examples}
    for client, ids in assigned.items():
        for row_id in ids:
            if row_id not in counts:
                raise DataError(f"{name} assigned {client} a row that does not exist: {row_id}")
            counts[row_id] += 1
    wrong = [row_id for row_id, count in counts.items() if count != 1]
    if wrong:
        raise DataError(
            f"{name} assigned {wrong[0]} to {counts[wrong[0]]} clients; rows not in exactly one client: {len(wrong)}"
        )
