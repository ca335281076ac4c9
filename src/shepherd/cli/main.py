"""The console entry: environment, signals and errors around one command.

Errors become two lines on stderr and an exit status. stdout is data, stderr is talk. Exit statuses are listed in
`errors.EXIT_CODES`; `--debug`, or SHEPHERD_DEBUG=1, adds the traceback. The environment for torch is prepared here,
before any command can load it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from shepherd.cli import interrupts

if TYPE_CHECKING:
    import click

    from shepherd.experiment.events import ErrorEvent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process, which then ends) and return its exit status."""
    is_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("SHEPHERD_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `shepherd run >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, for good
        if hasattr(stream := getattr(sys, name), "reconfigure"):  # a narrow console encoding must not end a run
            stream.reconfigure(errors="replace")
    try:
        with interrupts.handled(last=is_process), _log_of_clients_errors() if debug else contextlib.nullcontext():
            from shepherd.model.threads import prepare_environment

            prepare_environment()
            return _run(arguments, debug)
    except KeyboardInterrupt:  # before the command began, or again while the first one was being reported
        return 128 + signal.SIGINT
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _run(arguments: list[str], debug: bool) -> int:
    import click

    from shepherd.cli.commands import cli
    from shepherd.errors import ShepherdError

    as_json = arguments[0] in ("run", "resume") and "--json" in arguments
    fail = functools.partial(_fail, debug=debug, as_json=as_json)
    try:
        cli.main(arguments, prog_name="shepherd", standalone_mode=False)
        sys.stdout.flush()
        return 0
    except ShepherdError as error:
        return fail(error.message, error.hint, error.exit_code)
    except click.NoSuchOption as error:
        return fail(error.format_message(), _setting_hint(error) or _help(error), 2)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help of a group
            print(error.format_message(), file=sys.stderr)
            return 2
        return fail(error.format_message(), _help(error), 2)
    except click.ClickException as error:
        return fail(error.format_message(), "", error.exit_code)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        interrupts.no_more()
        return fail("interrupted", "", 130)
    except SystemExit as stop:
        interrupts.no_more()
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return fail("terminated", "", status) if status == 128 + signal.SIGTERM else status
    except BrokenPipeError:
        # The reader of our output has closed it (`shepherd list | head`).
        _give_up(sys.stdout)
        return 1
    except OSError as error:
        place = error.filename or "a file, or the output of this command,"
        hint = "check that it exists, is writable and has free space; --debug prints the traceback"
        return fail(f"{place} cannot be read or written: {error.strerror or error}", "" if debug else hint, 5)
    except Exception as error:
        hint = "" if debug else "this is a bug in Shepherd: run again with --debug and report the traceback"
        return fail(f"unexpected {type(error).__name__}: {error}", hint, 1)


def _help(error: click.UsageError) -> str:
    return f"{error.ctx.command_path if error.ctx else 'shepherd'} --help"


def _setting_hint(error: click.NoSuchOption) -> str:
    """The --set that corresponds to an option such as `--lora.r` or `--rounds`. Empty when there is no such key."""
    from shepherd.config import keys, keys_named

    name = error.option_name.lstrip("-").replace("-", "_")
    meant = [name] if name in keys() else keys_named(name)
    return f"set it with --set {meant[0]}=VALUE" if meant else ""


def _fail(message: str, hint: str, status: int, debug: bool, as_json: bool) -> int:
    """Print an error on stderr, and for `run --json` and `resume --json` also as the last event on stdout."""
    if debug:
        traceback.print_exc()
    lines = [(sys.stderr, f"error: {message}"), *([(sys.stderr, f"hint: {hint}")] if hint else [])]
    if as_json:
        event: ErrorEvent = {"event": "error", "message": message, "hint": hint, "exit_status": status}
        lines.append((sys.stdout, json.dumps(event, ensure_ascii=False)))
    for stream, line in lines:
        try:
            print(line, file=stream, flush=True)
        except OSError:  # a full disk, or a reader that went away
            _give_up(stream)
    return status


def _give_up(stream: TextIO) -> None:
    """Redirect a closed stream to the null device, so that its buffer does not fail a second time at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _log_of_clients_errors() -> Iterator[None]:
    """Log the exceptions of clients in this process to stderr. They may quote rows, so only `--debug` shows them."""
    import logging

    log, handler = logging.getLogger("shepherd"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
