"""Progress of a run: events in; a live table, plain lines or JSON lines out.

    with observer() as watch:
        experiment.run(config, observer=watch)

An observer is called with the dicts of `experiment/events.py`, listed in docs/events.md. Table and lines go to stderr,
JSON goes to stdout. Observers do not change the run.
"""

from __future__ import annotations

import sys

from shepherd.cli import output
from shepherd.cli.event_lines import JsonLines, Observer, PlainLines, describe, named

__all__ = ["JsonLines", "Observer", "PlainLines", "describe", "named", "observer"]


def observer(as_json: bool = False, plain: bool = False) -> Observer:
    """JSON lines on request; a live table if stderr is a colour terminal; plain lines otherwise."""
    if as_json:
        return JsonLines()
    if plain or not output.colours(sys.stderr):
        return PlainLines()
    from shepherd.cli.live_table import LiveTable

    return LiveTable()
