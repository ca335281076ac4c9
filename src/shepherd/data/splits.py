"""The column `split`: rows of its test or validation part are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

from shepherd.data.builtins import RawRows
from shepherd.data.trees import kind_of
from shepherd.data.values import missing
from shepherd.errors import plural

COLUMN = "split"


def by_split(rows: RawRows, parts: str, columns: Mapping[str, str]) -> RawRows:
    """Separate `rows` into train and test (else validation) by their column `split`, if it has such values.

    A column that `columns` maps to a field does not count. parts: "held out"; "ignored" drops the test rows; "clients"
    returns the rows unchanged.
    """
    if parts == "clients" or rows.held_out is not None or COLUMN in columns or COLUMN in columns.values():
        return rows
    given = (row.get(COLUMN) for _, row in rows.rows)
    values = ["" if missing(value) else str(value).strip() for value in given]
    kinds = {value: kind_of(value) for value in set(values)}
    known = set(kinds.values())
    if "train" not in known or not known & {"test", "validation"}:
        return rows
    held_kind = "test" if "test" in known else "validation"
    train, out = ({value for value, kind in kinds.items() if kind == part} for part in ("train", held_kind))
    left = {value: count for value, count in Counter(values).items() if value not in train | out}
    moved = plural(sum(value in out for value in values), "row")
    if parts == "ignored":
        note = f"{moved} of the split {held_kind} are ignored: data.held_out_source provides the held-out rows"
    else:
        note = f"{moved} of the split {held_kind} are held out, not trained on (column {COLUMN!r})"
    others = (
        f"{plural(count, 'row')} of the split {value!r} are ignored" if value else f"{plural(count, 'row')} without a "
        f"value in the column {COLUMN!r} are ignored"
        for value, count in sorted(left.items())
    )  # fmt: skip
    kept = _select(rows, [value in train for value in values])
    held_out = _select(rows, [value in out for value in values]) if parts == "held out" else None
    return replace(kept, notes=(note, *others, *rows.notes), held_out=held_out)


def _select(rows: RawRows, wanted: list[bool]) -> RawRows:
    """The wanted rows without the column, and the places that keep a row."""
    kept = [
        (row_id, {name: value for name, value in row.items() if name != COLUMN})
        for (row_id, row), want in zip(rows.rows, wanted, strict=True)
        if want
    ]
    ends = [0, *accumulate(count for _, count in rows.places)]
    counts = [sum(wanted[begin:end]) for begin, end in pairwise(ends)]
    places = tuple((place, count) for (place, _), count in zip(rows.places, counts, strict=True) if count)
    return RawRows(rows.name, kept, rows.licence, places=places)
