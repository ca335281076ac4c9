"""The rows of a recipe: read, held out and divided, the same for a run and for `shepherd data`; without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from shepherd.data.builtins import RawRows
from shepherd.data.holdout import prompt_key
from shepherd.data.names import look_alikes
from shepherd.data.partition import divide, hold_out, partitioners, short_categories
from shepherd.data.partitioners import Key
from shepherd.data.sources import ALL, NO_CATEGORY, Dataset, has_languages, load_examples
from shepherd.errors import DataError, UsageError, plural
from shepherd.types import Example, Partition

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.data.containers import Parts

Examples = tuple[Example, ...]
AT_SITES = "sites:rows"
"""What stands in data.source of a run whose rows stay at their sites."""
MOST = 5
"""Cases that a line names; the rest are counted."""


def read_rows(
    config: Config, source: str = "", progress: Callable[[str], None] | None = None, rows: RawRows | None = None
) -> Dataset:
    """The rows of the recipe's source; or of `source`, all of them. `progress` takes lines about a long reading.

    rows: those of the recipe's source, where they were read before.
    """
    if config.data.source == AT_SITES and not source and rows is None:
        raise DataError(
            "the rows of this run are at its sites and were never here",
            hint="its report has what the sites measured (docs/sites.md)",
        )
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
        rows or source or table.source,
        format=table.format,
        columns=columns,
        categories=table.categories,
        rows_per_category=0 if source else table.rows_per_category,
        languages=table.languages,
        seed=config.data_seed,
        parts=_parts(config, source),
        emit=progress,
    )


@dataclass(frozen=True)
class Sources:
    """What a recipe's sources hold, before tokenization. held_out: rows with a source apart, or None."""

    dataset: Dataset
    held_out: Dataset | None


def read_sources(
    config: Config, progress: Callable[[str], None] | None = None, rows: RawRows | Dataset | None = None
) -> Sources:
    """All rows of the recipe, read once for a run. Raises DataError for data that cannot be used.

    rows: in place of those of the recipe's source, read before, as rows or as a dataset.
    """
    dataset = rows if isinstance(rows, Dataset) else read_rows(config, progress=progress, rows=rows)
    return Sources(dataset, read_held_out(config, dataset))


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
    config: Config, usable: Sequence[Example], held_out: Sequence[Example] | None, *, some_held_out: bool = True
) -> tuple[Examples, Examples, Partition]:
    """(train, held out, partition) of usable rows; `held_out` are those of data.held_out_source.

    Raises DataError where nothing is held out, unless that may be, or where the rows cannot be divided as the recipe
    says.
    """
    how = config.partition
    options, column = by_column(how.name, how.options)
    key = natural_key({"name": how.name, **options})
    if key == "source" or how.name == "by_key":
        _check_keys(usable, key, column or config.data.columns.get(key, key))
    if held_out is None:
        pool = how.name not in ("by_key", "files")  # these make a client of each key, which needs its row
        train, held_out = hold_out(usable, config.data.held_out_per_category, config.data_seed, key, pool_single=pool)
    else:
        train = tuple(usable)
    if not held_out and not some_held_out:
        held_out = ()
    elif not held_out and config.data.held_out_per_category and not config.data.held_out_source:
        most = max(Counter(getattr(example, key) for example in usable).values())
        few = f"the largest {key} has {most} rows" if most > 1 else f"no {key} has more than one row"
        raise DataError(
            f"there are no held-out rows, so nothing can be evaluated: at most half of a {key} is held out, rows that "
            f"ask the same stay together, and {few}",
            hint="set data.held_out_source to a file, or give more rows, which ask different things",
        )
    elif not held_out:
        raise DataError(
            "there are no held-out rows, so nothing can be evaluated",
            hint="set data.held_out_per_category to at least 1, or data.held_out_source to a file",
        )
    partition = divide(train, how.name, options, how.clients, config.data_seed, held_out)
    return tuple(train), tuple(held_out), partition


def _check_keys(usable: Sequence[Example], key: str, column: str) -> None:
    """Raise DataError for rows that belong to no client, as they have no value in the column that divides."""
    without = [e.id for e in usable if getattr(e, key) in ("", NO_CATEGORY)]
    if len(without) == len(usable):
        raise DataError(
            f"none of the {len(usable):,} rows has a value in the column {column!r}, by which they are to be divided",
            hint="name the column: --set partition.key=<your column>; or give a folder with a file per client",
        )
    if without:
        raise DataError(
            f"{len(without):,} of {len(usable):,} rows have no value in the column {column!r}, by which they are to be "
            f"divided (first: {', '.join(without[:3])})",
            hint="give them a value, such as 'unknown', which is then a client; or take them out; or divide by another "
            "column: --set partition.key=<your column>",
        )


def remarks(
    config: Config,
    dataset: Dataset,
    usable: Sequence[Example],
    held_out: Sequence[Example] | None,
    partition: Partition,
) -> dict[str, tuple[str, ...]]:
    """Notes on a division: one line for each kind -> a line for each case.

    usable: all rows that are divided or held out. held_out: those drawn from them, or None where they have a source.
    """
    key, few = natural_key(partition.settings), config.data.held_out_per_category
    columns = config.data.columns
    named = {"category": columns.get("category", "category"), "source": columns.get("source", "client")}
    named["source"] = by_column(config.partition.name, config.partition.options)[1] or named["source"]
    word = named[key]  # the user's own column
    found: dict[str, tuple[str, ...]] = {}

    def add(line: str, cases: Mapping[str, str]) -> None:
        if cases:
            shown = list(cases)[:MOST] + ([f"and {len(cases) - MOST:,} more"] if len(cases) > MOST else [])
            found[f"{line}: {', '.join(shown)}"] = tuple(cases.values())

    if config.partition.name == "by_key" and {getattr(e, key) for e in usable} == {ALL}:
        found[
            f"no row has a value in the column {word!r}, so by_key makes one client of all rows "
            "(--set partition.key=<your column> divides by another)"
        ] = ()
    short = {} if held_out is None else short_categories(usable, held_out, few, key)
    add(
        f"fewer than data.held_out_per_category = {few} rows held out of {plural(len(short), word)}",
        {
            f"{name} {out} of {rows}": f"{word} {name!r}: {out} of {rows} rows are held out, {few} were asked for"
            for name, (out, rows) in short.items()
        },
    )
    gone = Counter(dataset.unusable.get(key, {})) + Counter(getattr(e, key) for e in dataset.examples)
    for value in {getattr(e, key) for e in usable}:
        del gone[value]
    add(
        f"no row of {plural(len(gone), word)} can be used, so nothing of it is learned",
        {f"{name} ({plural(rows, 'row')})": f"{word} {name!r}: {plural(rows, 'row')}" for name, rows in gone.items()},
    )
    for kind in dict.fromkeys((key, "category")):
        groups = look_alikes(sorted({getattr(e, kind) for e in usable}))
        same = [" = ".join(map(repr, group)) for group in groups]
        add(f"names of a {named[kind]} that look alike and are kept apart", {s: f"{named[kind]} {s}" for s in same})
    return found


def shared_prompts(config: Config, data: Dataset, examples: Iterable[Example]) -> str:
    """A sentence on prompts that occur at two or more clients that are sources; "" where there are none.

    Held-out rows of a simulation are drawn with all rows that ask the same; a real site sees its own only. So with such
    prompts the two worlds hold out different rows (docs/decisions/0015).
    """
    how = config.partition
    options, _ = by_column(how.name, how.options)
    apart = config.data.held_out_source or data.held_out is not None or not config.data.held_out_per_category
    if apart or how.name not in ("by_key", "files") or natural_key({"name": how.name, **options}) != "source":
        return ""
    at: dict[str, set[str]] = {}
    for example in examples:
        at.setdefault(prompt_key(example), set()).add(example.source)
    pairs = Counter(tuple(sorted(sources)) for sources in at.values() if len(sources) > 1)
    if not pairs:
        return ""
    shown = [f"{' and '.join(sources)} ({count})" for sources, count in pairs.most_common(MOST)]
    more = [f"and {len(pairs) - MOST:,} more"] if len(pairs) > MOST else []
    return (
        f"{plural(pairs.total(), 'prompt')} at two or more clients: {', '.join(shown + more)}. As sites, which "
        "hold out rows each by itself, they would train on other rows than in this simulation"
    )


def by_column(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A partitioner's options, and the column that its key names where that is neither category nor source, or "".

    Such a column is read as the source of each row, and the key is then "source".
    """
    key, known = options.get("key"), partitioners.options(name).get("key")
    if known is None or known.annotation != Key or not isinstance(key, str) or key in get_args(Key):
        return dict(options), ""
    return {**options, "key": "source"}, key


def natural_key(settings: Mapping[str, object]) -> str:
    """What distinguishes clients, "source" or "category", from a partition's settings."""
    return "source" if settings.get("name") == "files" or settings.get("key") == "source" else "category"
