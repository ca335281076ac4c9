"""Errors for users: message, hint, exit status.

Every error that a user can cause is a `ShepherdError`. The command line prints its message, then `hint: …`, and
exits with `exit_code`; the traceback shows only with `--debug`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DISTRIBUTION = "shepherd-fedit"
"""Name of the distribution. The package index has another project under the import name, `shepherd`."""


class ShepherdError(Exception):
    """An error with an explanation: what, where and why in `message`, how to fix it in `hint`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ShepherdWarning(UserWarning):
    """What a person should know about a run in Python: rows that were refused, clients that failed."""


class UsageError(ShepherdError):
    """Invalid command, recipe or setting (exit status 2)."""

    exit_code = 2


class DataError(ShepherdError):
    """Data that cannot be read, tokenised or partitioned (exit status 3)."""

    exit_code = 3


class ModelError(ShepherdError):
    """Base model, tokenizer or adapter missing, broken or incompatible (exit status 4)."""

    exit_code = 4


class ResourceError(ShepherdError):
    """Not enough memory, disk or hardware, or a path that cannot be read or written (exit status 5)."""

    exit_code = 5


class ClientError(ShepherdError):
    """Too few usable updates from the clients (exit status 6)."""

    exit_code = 6


class NetworkError(ShepherdError):
    """Network failure (exit status 7)."""

    exit_code = 7


class EvaluationError(ShepherdError):
    """Result that cannot be measured, or cannot be reproduced (exit status 8)."""

    exit_code = 8


class NumericalError(ShepherdError):
    """Non-finite or singular values where a result was to be computed (exit status 9)."""

    exit_code = 9


EXIT_CODES: dict[int, str] = {
    0: "Success",
    1: "Unexpected failure: a bug in Shepherd (run again with --debug and report it)",
    **{kind.exit_code: (kind.__doc__ or "").split(" (exit")[0] for kind in ShepherdError.__subclasses__()},
    130: "Interrupted (Ctrl-C)",
    143: "Terminated (SIGTERM)",
}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def plural(how_many: int, noun: str) -> str:
    """A count with its noun: 1 client, 2 clients, 0 categories."""
    many = noun if how_many == 1 else noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{how_many:,} {many}"


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing_extra(module: str, extra: str) -> UsageError:
    """The error for an optional dependency that is not installed, with its install line."""
    return UsageError(f"this needs the optional package {module!r}, which is not installed", hint=install_line(extra))
