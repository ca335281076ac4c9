"""The one place of the goldens that names the package's command line; the rest goes through its public functions."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from console import ENVIRONMENT, Outcome

PINNED = {**ENVIRONMENT, "COLUMNS": "100", "LINES": "40", "NO_COLOR": "1"}


def shepherd(work: Path, *arguments: Any, typed: str = "") -> Outcome:
    """Carry out a command line in this process, in the folder `work`, as the console script does."""
    from shepherd.__main__ import main

    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    with inside(work), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.stdin = io.StringIO(typed)
            status = main([str(argument) for argument in arguments])
        finally:
            sys.stdin = stdin
    return Outcome(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def inside(work: Path) -> Iterator[None]:
    """Within this, `work` is the current folder and holds the cache; the environment is what the entry sets."""
    before = dict(os.environ)
    try:
        os.environ.update(PINNED, SHEPHERD_CACHE=str(work / "cache"))
        for name in ("FORCE_COLOR", "SHEPHERD_DEBUG"):
            os.environ.pop(name, None)
        with contextlib.chdir(work):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
