"""The participation of clients as a value: each client's outcome in each round, and the updates that did not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from shepherd.report.load import RunRecord
from shepherd.report.wording import ABSENT

OUTCOMES = ("trained", "missing", "late", "rejected")
"""What becomes of a client in a round of its cohort."""
TROUBLES = frozenset(OUTCOMES[1:])


class Incident(NamedTuple):
    """One update that did not count, or a client that was quarantined."""

    round: int
    client: str
    state: str
    reason: str
    detail: str = ""
    coded: bool = False
    """Whether `reason` is a code of the gate, of an engine, or of the client's training."""


@dataclass(frozen=True)
class Attendance:
    """Outcomes by client and round, how often each client was drawn, and every incident in order."""

    outcomes: Mapping[str, Mapping[int, str]]
    drawn: Counter[str]
    incidents: Sequence[Incident]

    @cached_property
    def clients(self) -> list[str]:
        return sorted(self.outcomes)

    @cached_property
    def lost(self) -> Counter[str]:
        """Updates that did not count, by outcome."""
        states = (state for rounds in self.outcomes.values() for state in rounds.values())
        return Counter(state for state in states if state in TROUBLES)


def attendance(record: RunRecord) -> Attendance:
    """The attendance of a run, over its committed rounds."""
    outcomes: dict[str, dict[int, str]] = {client: {} for client in record.partition.get("clients") or {}}
    incidents: list[Incident] = []
    for line in record.rounds:
        incidents += _incidents(line)
        for client, outcome in outcomes_of(line).items():
            outcomes.setdefault(client, {})[line["round"]] = outcome
    drawn = Counter(client for line in record.rounds for client in line["cohort"])
    return Attendance(outcomes, drawn, incidents)


def outcomes_of(line: Mapping[str, Any]) -> dict[str, str]:
    """The outcome of each client of a round."""
    found = dict.fromkeys(line["cohort"], "trained")
    found |= dict.fromkeys(line.get("late") or (), "late")
    found |= dict.fromkeys(line.get("missing") or (), "missing")
    return found | {entry["client"]: "rejected" for entry in line.get("rejected") or ()}


def _incidents(line: Mapping[str, Any]) -> list[Incident]:
    number = line["round"]

    def coded(entry: Mapping[str, Any], state: str) -> Incident:
        code, detail = str(entry.get("code") or ABSENT), str(entry.get("detail") or "")
        return Incident(number, entry["client"], state, code, detail, coded=True)

    rejected = sorted(line.get("rejected") or (), key=lambda entry: entry["client"])
    return [
        *(coded(entry, "rejected") for entry in rejected),
        *(Incident(number, c, "missing", "no update came back") for c in sorted(line.get("missing") or ())),
        *(Incident(number, c, "late", "after the deadline or enough others") for c in sorted(line.get("late") or ())),
        *(coded(entry, "ignored") for entry in line.get("ignored") or ()),
        *(
            Incident(number, c, "quarantined", "asked no more from here on")
            for c in sorted(line.get("quarantined") or ())
        ),
    ]
