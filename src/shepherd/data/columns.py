"""Column mapping (`--columns`): the user's columns to our fields, suggestions for it, and unread columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shepherd.data.formats import ANSWERS, QUESTIONS, added, fields_of_rows, format_named, in_order
from shepherd.data.turns import TURN_FIELDS, is_turns
from shepherd.data.values import missing
from shepherd.errors import DataError, did_you_mean, plural

NAMED = 12
"""Maximum number of columns in a sentence."""


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row by our field names. A mapped column loses its original name and replaces a column with the name of our
    field (`replaced`), even if the mapped column has no value."""
    if not columns:
        return dict(row)
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def replaced(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """The row's columns with a value that a mapped column replaces.

    Without `source`, which holds the file's name if the rows come from a folder.
    """
    for ours in columns.keys() - set(columns.values()) - {"source"}:
        if not missing(row.get(ours)):
            yield ours


def check_columns(
    columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], where: str, format_name: str = "auto"
) -> None:
    """Raise DataError for an unknown field, and for a column that occurs in no row and no turn."""
    known = tuple(dict.fromkeys((*fields_of_rows(format_name), *TURN_FIELDS)))
    for field in columns:
        if field not in known:
            raise DataError(f"columns: unknown field {field!r}.{did_you_mean(field, known)} Fields: {', '.join(known)}")
    if not columns:
        return
    found = dict.fromkeys(str(key) for row in rows for key in row)
    for field, theirs in columns.items():
        if theirs in found or (field in TURN_FIELDS and any(theirs in turn for row in rows for turn in _turns(row))):
            continue
        more = "; partition.key is category, source or one of them" if field == "source" else ""
        raise DataError(
            f"{where}: no column {theirs!r} for {field!r}.{did_you_mean(theirs, found)} Found: {', '.join(found)}",
            hint=f"--columns {field}=<one of them>{more}",
        )


def _turns(row: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (turn for value in row.values() if is_turns(value) and isinstance(value, (list, tuple)) for turn in value)


def no_format(rows: Sequence[Mapping[str, Any]], format_name: str, where: str) -> DataError:
    """The error if no row has the fields of a format: columns found, formats accepted, mapping suggested."""
    first: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            if missing(first.get(str(key))):
                first[str(key)] = value
    found = ", ".join(first) or "none"
    if {"chosen", "rejected"} <= first.keys():
        return DataError(
            f"{where}: preference data (chosen and rejected answers), which instruction tuning does not use\n"
            f"  found: {found}",
            hint=f"{_mapping_of_chosen(first)} trains on the chosen answers and ignores the rejected ones",
        )
    if format_name != "auto":
        accepted = f"  {format_name}: {', '.join(format_named(format_name).required)}"
    else:
        accepted = (
            "  messages, conversations, conversation, contents: a list of turns\n"
            f"  a pair: one of {', '.join(QUESTIONS)}, and one of {', '.join(ANSWERS)} "
            "(dolly: instruction, response; alpaca: instruction, output);\n"
            "    or input and output, inputs and targets\n"
            "  text: plain text; the whole text is a target"
        )
        accepted += "".join(f"\n  {name}: {', '.join(format_named(name).required)}" for name in added())
    return DataError(
        f"{where}: the columns match no known format\n  found: {found}\n accepted:\n{accepted}",
        hint=f"map them: --columns {_suggested_mapping(first)}",
    )


def _mapping_of_chosen(first: Mapping[str, Any]) -> str:
    conversation = isinstance(first["chosen"], (list, tuple)) and is_turns(first["chosen"]) and len(first["chosen"]) > 1
    if conversation:
        return "--columns messages=chosen"
    question = next((name for name in QUESTIONS if name in first), "")
    return "--columns completion=chosen" + ("" if question == "prompt" else f",prompt={question or '<your column>'}")


def _suggested_mapping(first: Mapping[str, Any]) -> str:
    """A value for --columns: columns that differ from the fields of a format only in case, the only list of turns, the
    only two texts, or placeholders."""
    plain = {name.casefold(): name for name in first}
    for form in map(format_named, in_order()):
        if plain.keys() >= set(form.required):
            return ",".join(f"{field}={plain[field]}" for field in (*form.required, *form.optional) if field in plain)
    turns = [name for name, value in first.items() if is_turns(value)]
    if len(turns) == 1:
        return f"messages={turns[0]}"
    question = next((plain[name] for name in QUESTIONS if name in plain), "")
    answer = next((plain[name] for name in ANSWERS if name in plain), "")
    texts = [n for n, value in first.items() if isinstance(value, str) and n not in (question, answer)]
    if not (question and answer) and len(texts) == (not question) + (not answer):
        question, answer = question or texts.pop(0), answer or texts.pop(0)
    return f"instruction={question or '<your column>'},response={answer or '<your column>'}"


def unread_sentence(columns: Mapping[str, int], fields: Mapping[str, int]) -> str:
    """One line of unread columns and turn fields with their rows: `not read: the column id (3 rows)`; or ""."""
    parts = [part for part in (_named("column", columns), _named("turn field", fields)) if part]
    return f"not read: {'; '.join(parts)}" if parts else ""


def _named(noun: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    named = [f"{name or '(without a name)'} ({plural(rows, 'row')})" for name, rows in list(counts.items())[:NAMED]]
    rest = len(counts) - len(named)
    return f"the {noun}{'s' * (len(counts) > 1)} {', '.join(named)}" + (f" and {rest} more" if rest else "")
