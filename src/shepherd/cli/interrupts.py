"""Ctrl-C and SIGTERM end a command in order: the first unwinds it, one that comes while it is ending changes nothing.

Both raise where the program stands, as KeyboardInterrupt and SystemExit(143); whatever that cuts off was either
committed before or is swept away by the next writer, so no place needs to be protected from them.
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
    """Within the block the two signals raise; afterwards they do what they did before.

    With `last` nothing follows but the end of the process, and they stay without effect: a Ctrl-C must not strike the
    interpreter while it shuts down. A process that was started to ignore Ctrl-C (nohup, `&` in a script) ignores it.
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
    """The command is ending: signals are ignored from here on, what is left to do is short."""
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise for a signal that came and was lost: Python drops what is raised within a finaliser."""
    if _received:
        _raise(_received[0], None)


def _raise(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
