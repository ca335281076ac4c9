"""Output of commands: notes on stderr, aligned tables, strict JSON.

Text from data, models and file names passes through `clean`: a row must not control the terminal that shows it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click

from shepherd.errors import UsageError


def note(message: str) -> None:
    """Print a line of talk on stderr."""
    click.echo(clean(message), err=True)


def announce_torch() -> None:
    """Announce a slow import on a terminal: silence looks like a hang."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        note("loading PyTorch (about 10 s the first time) …")


def clean(text: str) -> str:
    """Text without control characters, safe for a terminal."""
    from shepherd.report import wording

    return wording.clean(text)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, paths and other objects their text."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, allow_nan=False)


def print_json(value: Any) -> None:
    """Print strict JSON on stdout."""
    click.echo(to_json(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> None:
    """Print aligned columns on stdout; columns of numbers, and those in `right`, are right-aligned."""
    from shepherd.report.wording import cells, isolated, padded

    texts = [[isolated(clean(str(cell)).replace("\n", " ")) for cell in row] for row in rows]
    numeric = {j for j in range(len(header)) if rows and all(isinstance(row[j], int | float) for row in rows)}
    widths = [max(sum(map(cells, line[j])) for line in [list(header), *texts]) for j in range(len(header))]
    for line in [list(header), *texts]:
        columns = zip(line, widths, strict=True)
        click.echo("  ".join(padded(t, w, j in numeric or j in right) for j, (t, w) in enumerate(columns)).rstrip())


def colours(stream: TextIO | None = None) -> bool:
    """Whether colour may be written to `stream` (default stdout): a terminal, and no NO_COLOR (no-color.org)."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    return str(value)


def confirm(question: str, done: str) -> bool:
    """Ask on the terminal. Raises UsageError without one: nothing was `done`."""
    try:
        return click.confirm(clean(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise UsageError(f"no terminal to confirm on; nothing was {done}", hint="confirm with --yes") from None
