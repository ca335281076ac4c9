"""A source -> `Dataset`: files, folders, built-ins and hub names as `Example`s, with what was refused and why."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shepherd import rng
from shepherd.data.builtins import Rows, datasets
from shepherd.data.containers import Parts, read_path
from shepherd.data.files import Tell, find
from shepherd.data.formats import Refusal, detect, rename, to_example
from shepherd.data.hub import hub
from shepherd.data.splits import by_split
from shepherd.data.trees import shorten
from shepherd.errors import DataError, did_you_mean, plural
from shepherd.types import Example

_FUNCTION = re.compile(r"\w[\w.]+:[^\W\d]\w*")

Counts = Mapping[str, tuple[int, tuple[str, ...]]]
"""Reason -> (how many rows, the ids of the first three)."""


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of the source. `refused` rows are not among them; `changed` rows are, less a part.

    held_out: what the source itself keeps apart for evaluation, its test or validation part, or None. unusable: of
    "category" and "source" the values of which no row can be used, with their rows.
    """

    examples: tuple[Example, ...]
    name: str
    format: str
    digest: str
    licence: str = "unknown"
    refused: Counts = field(default_factory=dict)
    changed: Counts = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    held_out: Dataset | None = None
    unusable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)


def load_examples(
    source: str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    categories: Sequence[str] = (),
    rows_per_category: int = 0,
    languages: Sequence[str] = ("english",),
    seed: int = 0,
    parts: Parts = "held out",
    tell: Tell | None = None,
) -> Dataset:
    """Read `source`: a path, `builtin:<name>`, `hub:<org/name>` or `module:function`.

    `columns` maps our field to theirs; `categories` keeps only these; `rows_per_category` draws at most so many of
    each by seed. `parts` says what test and validation parts of the source are; `tell` hears which file is read. Raises
    DataError that says where and why, and for a source, file or list without a usable row.
    """
    columns = dict(columns or {})
    rows = by_split(_read(source, tuple(languages), parts, tell), parts, columns)
    dataset = _examples(rows, format, columns)
    kept = _draw(_only(list(dataset.examples), categories, rows.name), rows_per_category, seed)
    out = None
    if rows.held_out is not None:
        out = _examples(rows.held_out, format, columns)
        wanted = [e for e in out.examples if not categories or e.category in categories]
        out = replace(out, examples=tuple(wanted), digest=digest(wanted))
    return replace(dataset, examples=tuple(kept), digest=digest(kept), held_out=out)


def _examples(rows: Rows, format: str, columns: Mapping[str, str]) -> Dataset:
    """The rows that can be learned from, all of them."""
    fields = [(id, rename(row, columns)) for id, row in rows.rows]
    format = detect((row for _, row in rows.rows), format, columns, rows.name)
    refused, changed = Tally(), Tally()
    examples = []
    for id, row in fields:
        try:
            example, note = to_example(row, format, id)
        except Refusal as reason:
            refused.add(str(reason), id)
            continue
        examples.append(example)
        if note:
            changed.add(note, id)
    if len(rows.places) > 1:
        _check_places(rows, {e.id for e in examples}, refused)
    if not examples:
        raise DataError(
            f"{rows.name}: none of the {len(fields)} rows can be used\n{refused.describe()}",
            hint="every row needs an instruction and an answer",
        )
    return Dataset(
        examples=tuple(examples),
        name=rows.name,
        format=format,
        digest="",
        licence=rows.licence,
        refused=refused.counts,
        changed=changed.counts,
        notes=rows.notes,
        unusable={key: _unusable(fields, examples, key) for key in ("category", "source")},
    )


def _unusable(fields: Sequence[tuple[str, Mapping[str, Any]]], examples: Sequence[Example], key: str) -> Counter[str]:
    """Values of a field of which no row became an example, with the number of their rows."""
    used, known = {e.id for e in examples}, {getattr(e, key) for e in examples}
    values = Counter(str(row.get(key) or "").strip() for id, row in fields if id not in used)
    return Counter({value: count for value, count in values.items() if value and value not in known})


def _check_places(rows: Rows, used: Set[str], refused: Tally) -> None:
    """Raise DataError for a file or list without a usable row: it is a client or a part, and would vanish."""
    begin = 0
    for place, count in rows.places:
        there, begin = rows.rows[begin : begin + count], begin + count
        ids = {id for id, _ in there}
        if not used & ids:
            found = ", ".join(dict.fromkeys(str(name) for _, row in there for name in row if name != "source"))
            raise DataError(
                f"{place}: none of its {plural(count, 'row')} can be used\n{refused.only(ids).describe()}\n"
                f"  its columns: {shorten(found, 300)}",
                hint="give them the columns of the others, or take the file away",
            )


def digest(examples: Iterable[Example]) -> str:
    """sha256 of the examples as canonical JSON, in the order of their ids: the order of the rows does not matter."""
    state = hashlib.sha256()
    for e in sorted(examples, key=lambda e: e.id):
        turns = [[m.role, m.content] for m in e.messages]
        line = json.dumps([e.id, turns, e.category, e.source, e.context], ensure_ascii=False, separators=(",", ":"))
        state.update(line.encode() + b"\n")
    return state.hexdigest()


class Tally:
    """Counts per reason with the first three ids, in the order in which the reasons came up."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def add(self, reason: str, id: str) -> None:
        self._ids.setdefault(reason, []).append(id)

    def only(self, ids: Set[str]) -> Tally:
        """The part of it that these rows make up."""
        part = Tally()
        part._ids = {reason: kept for reason, all in self._ids.items() if (kept := [id for id in all if id in ids])}
        return part

    @property
    def counts(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        return {reason: (len(ids), tuple(ids[:3])) for reason, ids in self._ids.items()}

    def describe(self) -> str:
        """One line per reason: `  3 rows: empty answer (clinic:1, clinic:4, clinic:9)`."""
        return describe(self.counts)


def describe(counts: Counts) -> str:
    """`counts` in words, one line per reason."""
    lines = []
    for reason, (count, ids) in counts.items():
        more = ", …" if count > len(ids) else ""
        lines.append(f"  {plural(count, 'row')}: {reason} ({', '.join(ids)}{more})")
    return "\n".join(lines)


def losses(dataset: Dataset) -> Iterator[str]:
    """What reading left out or changed, a sentence for each reason."""
    yield from sentences("refused", dataset.refused)
    yield from sentences("lost a part", dataset.changed)
    yield from dataset.notes


def sentences(what: str, counts: Counts) -> Iterator[str]:
    """What happened to rows, for each reason: `3 rows refused: empty answer (first: clinic:1, clinic:4, clinic:9)`."""
    for reason, (count, first) in counts.items():
        yield f"{plural(count, 'row')} {what}: {reason} (first: {', '.join(first)})"


def has_languages(source: str) -> bool:
    """Whether `languages` says something about the rows of `source`."""
    kind, _, name = source.partition(":")
    return kind == "builtin" and name in datasets and "languages" in datasets.options(name)


def is_path(source: str) -> bool:
    """Whether `source` means a file or folder, be it there or not."""
    if source.partition(":")[0] in ("builtin", "hub"):
        return False
    return not _FUNCTION.fullmatch(source) or Path(source).exists()


def _read(source: str, languages: tuple[str, ...], parts: Parts, tell: Tell | None) -> Rows:
    kind, _, name = source.partition(":")
    if kind == "builtin":
        return datasets.build(name, {"languages": languages} if has_languages(source) else {})
    if kind == "hub":
        return hub(name)
    if not is_path(source):
        return datasets.build(source)
    try:
        return read_path(find(source), parts, tell)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror or error}") from None


def _only(examples: list[Example], categories: Sequence[str], name: str) -> list[Example]:
    if not categories:
        return examples
    known = sorted({e.category for e in examples})
    for category in categories:
        if category not in known:
            near = did_you_mean(category, known)
            raise DataError(f"{name} has no category {category!r}.{near} Categories: {', '.join(known)}")
    return [e for e in examples if e.category in set(categories)]


def _draw(examples: list[Example], rows_per_category: int, seed: int) -> list[Example]:
    if not rows_per_category:
        return examples
    by_category: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_category.setdefault(example.category, []).append(position)
    kept: set[int] = set()
    for category, positions in by_category.items():
        order = rng.stream(seed, "rows per category", category).permutation(len(positions))
        kept.update(positions[i] for i in order[:rows_per_category])
    return [e for position, e in enumerate(examples) if position in kept]
