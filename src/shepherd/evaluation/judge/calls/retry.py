"""Bounded retries: a fault that may pass is tried again, after the time that the server names or a doubled one.

    with_retries(lambda: complete(…), Retries(tries=5))        # the result, and how many tries it took

The client of the endpoint retries nothing itself, so that the number of tries is true.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from shepherd.evaluation.judge.calls.faults import AGAIN, CallError

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    """How often a call is tried, and how long it waits in between.

    first_wait: seconds after the first failure, doubled after each further one. longest_wait: of one wait, seconds; a
    server that asks for more ends the call. sleep: waits. cancelled: whether no further try is wanted.
    """

    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    sleep: Callable[[float], object] = time.sleep
    cancelled: Callable[[], bool] = lambda: False


def with_retries(attempt: Callable[[], T], retries: Retries) -> tuple[T, int]:
    """The result of the first try that succeeds, and the number of tries. CallError: that of the last try."""
    for tries in range(1, retries.tries + 1):
        try:
            return attempt(), tries
        except CallError as error:
            error.tries = tries
            wait = retries.first_wait * 2 ** (tries - 1) if error.wait is None else error.wait
            if error.reason not in AGAIN or tries == retries.tries:
                raise
            if error.wait is not None and error.wait > retries.longest_wait:
                error.message += f"; it asks for a pause of {error.wait:.0f} s"
                error.args = (error.message,)
                raise
            retries.sleep(min(wait, retries.longest_wait))
            if retries.cancelled():
                raise
    raise AssertionError("at least one try")


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """Seconds of a header Retry-After, a number or a date (RFC 9110, section 10.2.3); None where there is none."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
