"""Hours in which a site trains: `Mon-Fri 20:00-06:00`, by the local time of the site.

    >>> from datetime import datetime
    >>> nights = "Mon-Fri 20:00-06:00"
    >>> is_open(nights, datetime(2026, 11, 27, 21, 30)), is_open(nights, datetime(2026, 11, 28, 5, 59))  # Friday
    (True, True)
    >>> is_open(nights, datetime(2026, 11, 28, 6, 0)), is_open(nights, datetime(2026, 11, 28, 21, 0))
    (False, False)
    >>> check_window("weekdays")
    ['write it as "Mon-Fri 20:00-06:00", parts separated by ";"']

A night belongs to the day on which it begins. Deadlines never use this clock: they are by a monotonic one.
"""

from __future__ import annotations

import re
from datetime import datetime

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_PART = re.compile(r"(?:(\w{3})(?:-(\w{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")


def check_window(window: str) -> list[str]:
    """What is wrong with a window; nothing where it is one."""
    try:
        _parts(window)
    except ValueError:
        return ['write it as "Mon-Fri 20:00-06:00", parts separated by ";"']
    return []


def is_open(window: str, now: datetime) -> bool:
    """Whether the site trains at this local time. An empty window is always open."""
    if not window:
        return True
    today, minute = now.weekday(), 60 * now.hour + now.minute
    for days, begin, end in _parts(window):
        if begin < end:
            if today in days and begin <= minute < end:
                return True
        elif (today in days and minute >= begin) or ((today - 1) % 7 in days and minute < end):
            return True
    return False


def _parts(window: str) -> list[tuple[frozenset[int], int, int]]:
    """(days, first minute, minute after the last) of each part. Raises ValueError."""
    found = []
    for part in window.split(";") if window else ():
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(part)
        first, last, *times = match.groups()
        hour, minute, to_hour, to_minute = map(int, times)
        if hour > 23 or to_hour > 24 or max(minute, to_minute) > 59:
            raise ValueError(part)
        begin = DAYS.index(first) if first else 0  # ValueError for another word
        until = DAYS.index(last) if last else begin if first else 6
        days = frozenset((begin + i) % 7 for i in range((until - begin) % 7 + 1))
        found.append((days, 60 * hour + minute, 60 * to_hour + to_minute))
    return found
