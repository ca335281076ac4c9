"""Codes of a site's answer to a run card, a task or a measure. The code leaves the site, the text does not."""

from __future__ import annotations

from shepherd.outcomes import VERDICTS

ADMITTED = "admitted"
WAITING = "approval"
DECLINED = "declined"

__all__ = ["ADMITTED", "DECLINED", "VERDICTS", "WAITING", "Refused"]


class Refused(Exception):
    """A task or measure that the site does not take: a code of VERDICTS."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict
