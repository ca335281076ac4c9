"""The guarantee of a run with differential privacy, and sections whose numbers it withholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shepherd.report.guarantee import guarantee_sentence, published_sentence
from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Section, Table

WITHHELD = (
    "Withheld: these numbers depend on the clients' rows or on who took part, and carry no noise. The operator of the "
    "run finds them in private/ of its directory."
)


def withholds(record: RunRecord) -> bool:
    """Whether the run withholds what depends on the clients' rows."""
    return record.setting("privacy", "unit", "none") != "none"


def withheld(build: Callable[[RunRecord, Limits], Section], record: RunRecord, limits: Limits) -> Section:
    """The heading of a section, and that its numbers are withheld."""
    empty = replace(record, rounds=(), summary={}, metrics={}, partition={}, left_out=())
    return replace(build(empty, limits), text=[WITHHELD], items=[])


def without_rounds(record: RunRecord) -> RunRecord:
    """The record as a section takes it that counts clients in the rounds, where that is withheld."""
    return replace(record, rounds=()) if withholds(record) else record


def guarantee(record: RunRecord) -> list[str]:
    """The guarantee in sentences; empty without differential privacy."""
    if not withholds(record):
        return []
    found = record.summary.get("privacy")
    if not found:
        unit = record.setting("privacy", "unit")
        return [f'A run with differential privacy (unit "{unit}"): the guarantee is stated when the run is finished.']
    return [text for text in (guarantee_sentence(found), published_sentence(found)) if text]


def private_section(record: RunRecord) -> Section:
    """What a run with differential privacy guarantees, publishes, withholds, and does not cover."""
    found = record.summary.get("privacy") or {}
    text = [
        *guarantee(record),
        "This page is made from the released files alone: the models, the settings, and figures on the server's "
        "held-out rows. What depends on the clients' rows or on who took part is in private/ of the run directory.",
    ]
    rows = [[line] for line in found.get("not_covered") or ()]
    items = [Table("Not covered", ("What the guarantee does not cover",), rows)] if rows else []
    return Section("privacy", "Privacy", text, items)
