"""The rows of a recipe: read, held out and divided, the same for a run and for `shepherd data`; without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from shepherd.data.partition import divide, hold_out, partitioners
from shepherd.data.partitioners import Key
from shepherd.data.sources import Dataset, has_languages, load_examples
from shepherd.errors import DataError, UsageError
from shepherd.types import Example, Partition

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.data.containers import Parts

Examples = tuple[Example, ...]


def read_rows(config: Config, source: str = "", tell: Callable[[str], None] | None = None) -> Dataset:
    """The rows of the recipe's source; or of `source`, all of them. `tell` hears which file is read."""
    table, columns = config.data, dict(config.data.columns)
    _, column = by_column(config.partition.name, config.partition.options)
    if column and columns.setdefault("source", column) != column:
        raise UsageError(
            f"partition.key = {column!r} and data.columns.source = {columns['source']!r} name two sources",
            hint='leave one of them out, or set partition.key = "source"',
        )
    sources = table.source, table.held_out_source
    if table.languages != type(table).model_fields["languages"].default and not any(map(has_languages, sources)):
        raise UsageError(
            f"data.languages = {list(table.languages)} says nothing about the rows of {table.source}",
            hint="leave it out; builtin:chatterbot has languages",
        )
    return load_examples(
        source or table.source,
        format=table.format,
        columns=columns,
        categories=table.categories,
        rows_per_category=0 if source else table.rows_per_category,
        languages=table.languages,
        seed=config.run.seed,
        parts=_parts(config, source),
        tell=tell,
    )


def _parts(config: Config, source: str) -> Parts:
    """What test and validation parts of the recipe's source, or of `source` with held-out rows, are."""
    if config.partition.name == "files":
        return "clients"
    return "ignored" if config.data.held_out_source and not source else "held out"


def read_held_out(config: Config, dataset: Dataset) -> Dataset | None:
    """The rows of data.held_out_source, or else of the source's own test part, or None.

    Those whose ids the dataset uses too get a prefix.
    """
    extra = dataset.held_out
    if config.data.held_out_source:
        extra = read_rows(config, config.data.held_out_source)
        extra = extra.held_out or extra
    if extra is None:
        return None
    taken = {e.id for e in dataset.examples}
    renamed = (replace(e, id=f"held-out/{e.id}") if e.id in taken else e for e in extra.examples)
    return replace(extra, examples=tuple(renamed))


def divide_rows(
    config: Config, usable: Sequence[Example], held_out: Sequence[Example] | None
) -> tuple[Examples, Examples, Partition]:
    """(train, held out, partition) of rows that can be used; `held_out` are those with a source of their own.

    Raises DataError where nothing is held out, or where the rows cannot be divided as the recipe says.
    """
    how = config.partition
    options, _ = by_column(how.name, how.options)
    key = natural_key({"name": how.name, **options})
    if held_out is None:
        train, held_out = hold_out(usable, config.data.held_out_per_category, config.run.seed, key)
    else:
        train = usable
    if not held_out and config.data.held_out_per_category and not config.data.held_out_source:
        most = max(Counter(getattr(example, key) for example in usable).values())
        few = f"the largest {key} has {most} rows" if most > 1 else f"no {key} has more than one row"
        raise DataError(
            f"there are no held-out rows, so nothing can be evaluated: at most half of a {key} is held out, rows that "
            f"ask the same stay together, and {few}",
            hint="set data.held_out_source to a file, or give more rows, which ask different things",
        )
    if not held_out:
        raise DataError(
            "there are no held-out rows, so nothing can be evaluated",
            hint="set data.held_out_per_category to at least 1, or data.held_out_source to a file",
        )
    partition = divide(train, how.name, options, how.clients, config.run.seed, held_out)
    return tuple(train), tuple(held_out), partition


def by_column(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A partitioner's options, and the column that its key names where that is neither category nor source, or "".

    Such a column is read as the source of each row, and the key is then "source".
    """
    key, known = options.get("key"), partitioners.options(name).get("key")
    if known is None or known.annotation != Key or not isinstance(key, str) or key in get_args(Key):
        return dict(options), ""
    return {**options, "key": "source"}, key


def natural_key(settings: Mapping[str, object]) -> str:
    """What tells clients apart, "source" or "category", from a partition's settings."""
    return "source" if settings.get("name") == "files" or settings.get("key") == "source" else "category"
