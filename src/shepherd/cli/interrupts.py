"""Orderly ends on Ctrl-C and SIGTERM: the first signal unwinds the command, later ones are ignored.

Both raise at the current line, as KeyboardInterrupt and SystemExit(143). Whatever they interrupt was either committed
before or is cleaned up by the next writer, so no section needs protection.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []  # signals that came during this command and have not ended it yet


@contextmanager
def handled(*, last: bool) -> Iterator[None]:
    """Raise on the two signals within the block; restore their handlers afterwards.

    With `last` only the end of the process follows, and signals stay ignored: a Ctrl-C must not interrupt the shutdown
    of the interpreter. A process that was started to ignore Ctrl-C (nohup, `&` in a script) ignores it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if number != signal.SIGINT or former[number] is signal.default_int_handler:
            signal.signal(number, _raise)
    _received.clear()
    try:
        yield
    finally:
        if last:
            no_more()
        else:
            _received.clear()
            for number, handler in former.items():
                signal.signal(number, handler)


def no_more() -> None:
    """Ignore signals from here on: the command is ending, and the rest is short."""
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise again for a signal that was lost: Python drops exceptions raised within a finaliser."""
    if _received:
        _raise(_received[0], None)


def _raise(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
