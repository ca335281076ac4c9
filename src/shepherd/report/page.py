"""One HTML file from a template: everything escaped and cleaned, nothing loaded from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from shepherd._version import __version__
from shepherd.report import wording

LARGEST = 2_000_000  # bytes of one page


@dataclass(frozen=True)
class Limits:
    """The size limits of one page: table rows, picture rows, columns, samples, characters of a text."""

    rows: int = 120
    drawn: int = 40
    columns: int = 40
    samples: int = 12
    text: int = 1500


# The first with a page under 2 MB is used.
LEVELS = (Limits(), Limits(rows=50, drawn=30, columns=24, samples=6, text=500), Limits(20, 20, 12, 3, 200))


@dataclass(frozen=True)
class Table:
    """A table of formatted cells. Columns in `texts` are aligned left; all others are numbers, aligned right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = (0,)
    note: str = ""
    folded: bool = False
    groups: Sequence[tuple[str, int]] = ()  # headings over several columns: (text, number of columns)


@dataclass(frozen=True)
class Figure:
    """A picture with the table of its numbers."""

    picture: Markup
    caption: str
    table: Table | None = None
    half: bool = False  # two share a row where there is room


@dataclass(frozen=True)
class Section:
    """A numbered part of a page: paragraphs, then figures and tables in order."""

    key: str
    heading: str
    text: Sequence[str] = ()
    items: Sequence[Figure | Table] = field(default=())


def without_empty(table: Table) -> Table:
    """The table without columns of nothing but n/a; the first column stays."""
    keep = [i for i in range(len(table.columns)) if i == 0 or any(row[i] != wording.ABSENT for row in table.rows)]
    over = [text for text, span in table.groups for _ in range(span)]
    groups = [(text, len(list(columns))) for text, columns in groupby(over[i] for i in keep)] if over else []
    return replace(
        table,
        groups=groups,
        columns=[table.columns[i] for i in keep],
        rows=[[row[i] for i in keep] for row in table.rows],
        texts=[keep.index(i) for i in table.texts if i in keep],
    )


def render(template: str, **view: Any) -> str:
    """The page as text. Every text in `view` is cleaned of control characters, then escaped."""
    return _environment().get_template(template).render(version=__version__, **view)


def write_page(path: Path, text: str) -> Path:
    """Write the page atomically."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shepherd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digits": wording.digits,
        "significant": wording.significant,
        "percent": wording.percent,
        "name": lambda text: wording.shorten(str(text), 48, middle=True),
        "clip": wording.clip,
    }
    environment.tests["figure"] = lambda item: isinstance(item, Figure)
    return environment


def _finalize(value: Any) -> Any:
    """A value of `{{ … }}` before it is escaped: cleaned, n/a for None."""
    if value is None:
        return wording.ABSENT
    return wording.clean(value) if type(value) is str else value
