"""Reading of datasets: files, folders, built-ins and hub names to `Example`s, with refused rows and their reasons."""

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
from shepherd.data.builtins import RawRows, datasets
from shepherd.data.columns import check_columns, no_format, rename, replaced, unread_sentence
from shepherd.data.containers import Parts, read_path
from shepherd.data.examples import formats_of, to_example
from shepherd.data.files import find
from shepherd.data.formats import format_problem
from shepherd.data.hub import hub
from shepherd.data.progress import Emit, LoopProgress
from shepherd.data.splits import by_split
from shepherd.data.tally import RowsByReason, Tally, sentences
from shepherd.data.trees import shorten
from shepherd.data.turns import TURN_FIELDS
from shepherd.data.values import Refusal, label
from shepherd.errors import DataError, UsageError, did_you_mean, plural
from shepherd.types import Example, Message

_FUNCTION = re.compile(r"\w[\w.]+:[^\W\d]\w*")

ALL, NO_CATEGORY = "all", "(no category)"
"""The category of all rows if none has one, and of a row without a category if others have one."""


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of the source, without `refused` rows. `changed` rows lost a part.

    unread: a sentence on the columns and turn fields that were ignored, or "". held_out: the test or validation part of
    the source, or None. unusable: for "category" and "source", the values without a usable row, with their rows.
    """

    examples: tuple[Example, ...]
    name: str
    format: str
    digest: str
    licence: str = "unknown"
    refused: RowsByReason = field(default_factory=dict)
    changed: RowsByReason = field(default_factory=dict)
    unread: str = ""
    notes: tuple[str, ...] = ()
    held_out: Dataset | None = None
    unusable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)


def load_examples(
    source: str | RawRows,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    categories: Sequence[str] = (),
    rows_per_category: int = 0,
    languages: Sequence[str] = ("english",),
    seed: int = 0,
    parts: Parts = "held out",
    emit: Emit | None = None,
) -> Dataset:
    """Read `source`: a path, `builtin:<name>`, `hub:<org/name>`, `module:function`, or rows that were read before.

    `columns` maps our fields to the user's columns. `categories` selects rows, `rows_per_category` draws at most that
    many of each category by seed. `parts` is the use of test and validation parts. `emit` receives the progress of long
    readings. Raises DataError for unreadable data and for a source, file or list without a usable row.
    """
    columns = dict(columns or {})
    if problem := format_problem(format):
        raise UsageError(problem)
    raw = source if isinstance(source, RawRows) else _read(source, tuple(languages), parts, emit)
    rows = by_split(raw, parts, columns)
    check_columns(columns, [row for _, row in rows.rows], rows.name, format)
    dataset = _examples(rows, format, columns, emit)
    kept = _draw(_only(list(dataset.examples), categories, rows.name), rows_per_category, seed)
    notes = (*dataset.notes, *_masked_notes(kept))
    return replace(
        dataset,
        examples=tuple(kept),
        digest=digest(kept),
        notes=notes,
        held_out=_held_out(rows, format, columns, categories),
    )


def _held_out(rows: RawRows, format_name: str, columns: Mapping[str, str], categories: Sequence[str]) -> Dataset | None:
    """The test or validation part of the source, which need not have all columns of the training part."""
    if rows.held_out is None:
        return None
    dataset = _examples(rows.held_out, format_name, columns)
    wanted = [e for e in dataset.examples if not categories or e.category in categories]
    return replace(
        dataset, examples=tuple(wanted), digest=digest(wanted), notes=(*dataset.notes, *_masked_notes(wanted))
    )


def _examples(rows: RawRows, format_name: str, columns: Mapping[str, str], emit: Emit | None = None) -> Dataset:
    """All usable rows, before categories are chosen and rows are drawn. Mapped columns that no row has are ignored."""
    present = {name for _, row in rows.rows for name in row}
    mapped = {ours: theirs for ours, theirs in columns.items() if theirs in present}
    in_turns = {ours: theirs for ours, theirs in columns.items() if ours in TURN_FIELDS}
    fields = [(row_id, rename(row, mapped)) for row_id, row in rows.rows]
    formats = formats_of([row for _, row in fields], format_name)
    if not any(formats):
        raise no_format([row for _, row in rows.rows], format_name, rows.name)
    refused, changed = Tally(), Tally()
    unread: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    examples, used = [], Counter[str]()
    progress = LoopProgress(emit, f"reading {rows.name}", len(fields))
    for number, ((row_id, row), name) in enumerate(zip(fields, formats, strict=True)):
        progress.at(number)
        try:
            if not name:
                raise Refusal("its columns match no known format")
            example, notes = to_example(row, name, row_id, in_turns | mapped)
        except Refusal as reason:
            refused.add(str(reason), row_id)
            continue
        except RecursionError:
            refused.add("nested too deeply", row_id)
            continue
        examples.append(example)
        used[name] += 1
        unread[0].update((*notes.columns, *replaced(rows.rows[number][1], mapped)))
        unread[1].update(notes.fields)
        for note in notes.changes:
            changed.add(note, row_id)
    if len(rows.places) > 1:
        _check_places(rows, {e.id for e in examples}, refused)
    if not examples:
        raise DataError(
            f"{rows.name}: none of the {len(fields)} rows can be used\n{refused.describe()}",
            hint="correct the rows: each needs an instruction and an answer, as text",
        )
    return Dataset(
        examples=tuple(_labelled(examples)),
        name=rows.name,
        format=" and ".join(used),
        digest="",
        licence=rows.licence,
        refused=refused.by_reason,
        changed=changed.by_reason,
        unread=unread_sentence(*unread),
        notes=(*rows.notes, *_format_notes(used)),
        unusable={key: _unusable(fields, examples, key) for key in ("category", "source")},
    )


def _unusable(fields: Sequence[tuple[str, Mapping[str, Any]]], examples: Sequence[Example], key: str) -> Counter[str]:
    """Values of a field that occur only in refused rows, with their numbers of rows."""
    used, known = {e.id for e in examples}, {getattr(e, key) for e in examples}
    values = Counter(_label_of(row.get(key)) for row_id, row in fields if row_id not in used)
    return Counter({value: count for value, count in values.items() if value and value not in known})


def _label_of(value: Any) -> str:
    try:
        return label(value, "")
    except Refusal:
        return ""


def _check_places(rows: RawRows, used: Set[str], refused: Tally) -> None:
    """Raise DataError for a file or list without a usable row: a client or part must not vanish silently."""
    begin = 0
    for place, count in rows.places:
        here, begin = rows.rows[begin : begin + count], begin + count
        ids = {row_id for row_id, _ in here}
        if not used & ids:
            found = ", ".join(dict.fromkeys(str(name) for _, row in here for name in row if name != "source"))
            raise DataError(
                f"{place}: none of its {plural(count, 'row')} can be used\n{refused.only(ids).describe()}\n"
                f"  its columns: {shorten(found, 300)}",
                hint="give them the columns of the others, or remove the file",
            )


def _format_notes(used: Mapping[str, int]) -> Iterator[str]:
    if len(used) > 1:
        yield f"rows of {len(used)} formats: " + ", ".join(f"{rows:,} {name}" for name, rows in used.items())
    if "text" in used:
        yield f"{plural(used['text'], 'row')} of plain text: the whole text is a target, without a template or a prompt"


def _masked_notes(examples: Sequence[Example]) -> Iterator[str]:
    masked = [sum(m.role == "assistant" and not m.learned for m in e.messages) for e in examples]
    if rows := sum(map(bool, masked)):
        yield f"masked in the data, so not a target: {plural(sum(masked), 'answer')} in {plural(rows, 'row')}"


def _labelled(examples: list[Example]) -> list[Example]:
    """The examples with a category each: `ALL` if none has one, else `NO_CATEGORY` for those without."""
    if all(example.category for example in examples):
        return examples
    none = NO_CATEGORY if any(example.category for example in examples) else ALL
    return [example if example.category else replace(example, category=none) for example in examples]


def digest(examples: Iterable[Example]) -> str:
    """sha256 of the examples as canonical JSON, independent of their order."""
    state = hashlib.sha256()
    for e in sorted(examples, key=lambda e: e.id):
        turns = [_turn(m) for m in e.messages]
        fields = [e.id, turns, e.category, e.source, e.context, *([e.tools] if e.tools else [])]
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        state.update(line.encode() + b"\n")
    return state.hexdigest()


def _turn(message: Message) -> list[Any]:
    """A turn for the digest. Optional fields occur only if one of them is set, so that older digests remain valid."""
    optional = [not message.learned, message.reasoning, message.extra]
    return [message.role, message.content, *(optional if any(optional) else [])]


def dataset_notes(dataset: Dataset) -> Iterator[str]:
    """Refused rows, changed rows and ignored columns, a sentence for each reason, then the notes of the dataset."""
    yield from sentences("refused", dataset.refused)
    yield from sentences("lost a part", dataset.changed)
    if dataset.unread:
        yield dataset.unread
    yield from dataset.notes


def has_languages(source: str) -> bool:
    """Whether `source` is a built-in with the option `languages`."""
    kind, _, name = source.partition(":")
    return kind == "builtin" and name in datasets and "languages" in datasets.options(name)


def is_path(source: str) -> bool:
    """Whether `source` denotes a file or folder, existing or not."""
    if source.partition(":")[0] in ("builtin", "hub"):
        return False
    return not _FUNCTION.fullmatch(source) or Path(source).exists()


def _read(source: str, languages: tuple[str, ...], parts: Parts, emit: Emit | None) -> RawRows:
    kind, _, name = source.partition(":")
    if kind == "builtin":
        return datasets.build(name, {"languages": languages} if has_languages(source) else {})
    if kind == "hub":
        return hub(name, note_splits=parts == "held out")
    if not is_path(source):
        return datasets.build(source)
    try:
        return read_path(find(source), parts, emit)
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
