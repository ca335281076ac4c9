"""What a person did not expect, said so that they can mend it: message, hint, exit status.

Every error that a user can cause is a `ShepherdError`. The command line prints its message, then `hint: …`, and
exits with `exit_code`; the traceback shows only with `--debug`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DISTRIBUTION = "shepherd-fedit"
"""The name to install. The package index has another project under the name of the import package, `shepherd`."""


class ShepherdError(Exception):
    """A failure that can be explained: what, where and why in `message`, how to mend it in `hint`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ShepherdError):
    """A command, recipe or setting that cannot be carried out (exit status 2)."""

    exit_code = 2


class DataError(ShepherdError):
    """Rows that cannot be read, tokenised or divided over clients (exit status 3)."""

    exit_code = 3


class ModelError(ShepherdError):
    """A base model, tokenizer or adapter that is missing, broken or does not fit (exit status 4)."""

    exit_code = 4


class ResourceError(ShepherdError):
    """Not enough memory, disk or hardware, or a place that cannot be read or written (exit status 5)."""

    exit_code = 5


class ClientError(ShepherdError):
    """Clients failed, so that too few updates were left to go on (exit status 6)."""

    exit_code = 6


class NetworkError(ShepherdError):
    """Something that had to come over the network did not (exit status 7)."""

    exit_code = 7


class EvaluationError(ShepherdError):
    """A result that could not be measured, or that does not hold when measured again (exit status 8)."""

    exit_code = 8


class NumericalError(ShepherdError):
    """Numbers that left the range in which a result means anything: not finite, or singular (exit status 9)."""

    exit_code = 9


EXIT_CODES: dict[int, str] = {
    0: "all well",
    1: "unexpected failure: a bug of ours (run again with --debug and report it)",
    **{kind.exit_code: (kind.__doc__ or "").split(" (exit")[0] for kind in ShepherdError.__subclasses__()},
    130: "Interrupted (Ctrl-C)",
    143: "Terminated (SIGTERM)",
}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def plural(how_many: int, noun: str) -> str:
    """1 client, 2 clients, 0 categories."""
    many = noun if how_many == 1 else noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{how_many:,} {many}"


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing_extra(module: str, extra: str) -> UsageError:
    """The error for an optional dependency that is not installed, with its install line."""
    return UsageError(f"this needs the optional package {module!r}, which is not installed", hint=install_line(extra))
