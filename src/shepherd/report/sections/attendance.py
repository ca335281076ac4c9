"""The participation of clients as a value: each client's outcome in each round, and the updates that did not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from shepherd.outcomes import TROUBLES, entry_outcome, outcomes_of
from shepherd.report.load import RunRecord
from shepherd.report.wording import ABSENT


class Incident(NamedTuple):
    """One update that did not count, or a client that was quarantined."""

    round: int
    client: str
    outcome: str
    reason: str
    detail: str = ""
    coded: bool = False
    """Whether `reason` is a code of the gate, of an engine, or of the client's training."""


@dataclass(frozen=True)
class Attendance:
    """Outcomes by client and round, how often each client was sampled, and every incident in order."""

    outcomes: Mapping[str, Mapping[int, str]]
    sampled: Counter[str]
    incidents: Sequence[Incident]

    @cached_property
    def clients(self) -> list[str]:
        return sorted(self.outcomes)

    @cached_property
    def troubles(self) -> Counter[str]:
        """Updates that did not count, by outcome."""
        found = (outcome for rounds in self.outcomes.values() for outcome in rounds.values())
        return Counter(outcome for outcome in found if outcome in TROUBLES)


def attendance(record: RunRecord) -> Attendance:
    """The attendance of a run, over its committed rounds."""
    outcomes: dict[str, dict[int, str]] = {client: {} for client in record.partition.get("clients") or {}}
    incidents: list[Incident] = []
    for line in record.rounds:
        incidents += _incidents(line)
        for client, outcome in outcomes_of(line).items():
            outcomes.setdefault(client, {})[line["round"]] = outcome
    sampled = Counter(client for line in record.rounds for client in line["cohort"])
    return Attendance(outcomes, sampled, incidents)


def _incidents(line: Mapping[str, Any]) -> list[Incident]:
    number = line["round"]

    def coded(entry: Mapping[str, Any], outcome: str) -> Incident:
        code, detail = str(entry.get("code") or ABSENT), str(entry.get("detail") or "")
        return Incident(number, entry["client"], outcome, code, detail, coded=True)

    rejected = sorted(line.get("rejected") or (), key=lambda entry: entry["client"])
    return [
        *(coded(entry, entry_outcome(entry)) for entry in rejected),
        *(Incident(number, c, "lost", "no reply") for c in sorted(line.get("missing") or ())),
        *(
            Incident(number, c, "late", "after the deadline, or after enough others")
            for c in sorted(line.get("late") or ())
        ),
        *(coded(entry, "ignored") for entry in line.get("ignored") or ()),
        *(
            Incident(number, c, "quarantined", "not sampled from here on")
            for c in sorted(line.get("quarantined") or ())
        ),
    ]
