"""Datasets and partitions in Python: what a recipe's [data] and [partition] do, as two functions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.data.partition import divide
from shepherd.data.python_rows import python_rows
from shepherd.data.sources import Dataset, dataset_notes, load_examples
from shepherd.errors import ShepherdWarning, UsageError
from shepherd.types import Example, Partition


def load_dataset(
    source: Any,
    /,
    *,
    held_out: Any = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    categories: Sequence[str] = (),
    rows_per_category: int = 0,
    languages: Sequence[str] = ("english",),
    seed: int = 0,
) -> Dataset:
    """Read instructions: a path, "builtin:instructions", "hub:org/name", an iterable of dicts, a data frame, or
    {client: rows}.

    The arguments are the keys of [data] (docs/data.md); held_out: rows for the evaluation, where `source` is rows in
    Python. Rows that were refused or lost a part, and columns that are not read, are warnings of the class
    ShepherdWarning. Raises DataError where no row can be used, UsageError for an unknown format.
    """
    if held_out is not None and isinstance(source, str | Path):
        raise UsageError(
            f"held_out goes with rows in Python, and {source} is read from its place",
            hint="give both as rows, or use data.held_out_source of a recipe",
        )
    dataset = load_examples(
        str(source) if isinstance(source, str | Path) else python_rows(source, held_out),
        format=format,
        columns=columns,
        categories=categories,
        rows_per_category=rows_per_category,
        languages=languages,
        seed=seed,
    )
    for note in dataset_notes(dataset):
        warnings.warn_explicit(note, ShepherdWarning, "shepherd", 0, registry={})
    return dataset


def partition(
    examples: Dataset | Sequence[Example],
    name: str = "by_key",
    clients: int = 0,
    seed: int = 0,
    held_out: Sequence[Example] = (),
    **options: Any,
) -> Partition:
    """Divide examples over clients by a partitioner and its options; 0 clients: as many as the partitioner finds.

    Each example goes to exactly one client. Raises UsageError for an unknown partitioner or option, DataError for more
    clients than rows and for rows that are also held out.

    >>> flock = load_dataset([{"instruction": f"Who is sheep {n}?", "response": f"Number {n}."} for n in range(5)])
    >>> divided = partition(flock, "iid", clients=2, seed=0)
    >>> {client: len(rows) for client, rows in divided.clients.items()}
    {'client-000': 3, 'client-001': 2}
    >>> divided.clients == partition(flock, "iid", clients=2, seed=0).clients     # the seed decides
    True
    >>> partition(flock, "iid", clients=6)
    Traceback (most recent call last):
    shepherd.errors.DataError: 6 clients are more than the 5 rows to divide; each needs at least one
    """
    rows = examples.examples if isinstance(examples, Dataset) else examples
    return divide(rows, name, options, clients, seed, held_out)
