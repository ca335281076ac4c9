"""STUDY.md: the page of a study as text."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.report.page import Table
from shepherd.report.study import tables
from shepherd.report.study.words import Document, facts, method_text, sentences, title, warnings
from shepherd.report.wording import clean


def markdown(found: Document) -> str:
    """The contents of STUDY.md."""
    parts = [f"# {_text(title(found))}", ", ".join(facts(found)) + "."]
    parts.append("\n".join(f"- {_text(line)}" for line in sentences(found)))
    if lines := warnings(found):
        parts += ["## Read with this in mind", "\n".join(f"- {_text(line)}" for line in lines)]
    parts += ["## Comparisons", *method_text(found), _table(tables.comparisons_table(found))]
    parts += [_table(tables.seeds_table(found)), _table(tables.checks_table(found))]
    parts += ["## Losses", _table(tables.arms_table(found)), "## Variants", _table(tables.variants_table(found))]
    parts += [_table(tables.budget_table(found)), "## Runs", _table(tables.runs_table(found))]
    parts += [_table(tables.environment_table(found)), "## To repeat it"]
    parts.append("\n".join(f"    {line}" for _, line in found["commands"]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    lines = [
        f"**{_text(table.caption)}**",
        "",
        _line(table.columns),
        "|" + "|".join("---" if i in table.texts else "--:" for i in range(len(table.columns))) + "|",
        *(_line(row) for row in table.rows),
    ]
    return "\n".join([*lines, *(["", _text(table.note)] if table.note else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(text: object) -> str:
    """A text on one line in which no character ends a cell or begins markup."""
    one = " ".join(clean(str(text)).split())
    for character in "\\|*_<`[":
        one = one.replace(character, f"\\{character}")
    return one
