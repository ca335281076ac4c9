"""The outcome of a client in a round, one word for each event, from a line of rounds.jsonl.

    trained    its update counts
    failed     its own training went wrong
    lost       no reply: its process ended or hung, or nothing came back
    late       a straggler: after the deadline, or after enough others
    rejected   its update did not pass the gate

A line has `cohort`, `missing`, `late`, and `rejected`: [{client, code, detail}], which holds all three of failures,
losses and rejections; `outcome_of` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

OUTCOMES = ("trained", "failed", "lost", "late", "rejected")
TROUBLES = frozenset(OUTCOMES[1:])

STRIKES = frozenset({"failed", "rejected"})
"""Outcomes that count towards quarantine (docs/decisions/0014)."""
FAILED = frozenset({"diverged", "out-of-memory", "error", "no-state"})
"""Codes of a client's training; `error:ValueError` names the class of an exception."""
LOST = frozenset({"lost", "hang", "refused"})
"""Codes of an engine whose process, site or connection gave no update: there is none to judge."""
_TRAINING = re.compile(r"the (held-out )?(loss|gradient) became |its loss is not finite")
"""Details that a client's training gave with the code `non-finite`, before it had the code `diverged`."""


def code_of(error: Exception) -> str:
    """The part of an exception that may leave a client: that memory ran out, or the name of its class."""
    if isinstance(error, MemoryError):
        return "out-of-memory"
    name = re.sub(r"[^A-Za-z0-9_]", "", type(error).__name__)[:64]
    return f"error:{name}" if re.match("[A-Za-z_]", name) else "error:Exception"


def outcome_of(code: str, detail: str = "") -> Literal["failed", "lost", "rejected"]:
    """The outcome "failed", "lost" or "rejected" of an entry of `rejected`. An unknown code is a rejection."""
    kind = code.partition(":")[0]
    if kind in FAILED or (kind == "non-finite" and _TRAINING.search(detail)):
        return "failed"
    return "lost" if kind in LOST else "rejected"


def outcomes_of(line: Mapping[str, Any]) -> dict[str, str]:
    """{client: outcome} of a round. A client with several entries has the one of its last."""
    found = dict.fromkeys(line["cohort"], "trained")
    found |= dict.fromkeys(line.get("late") or (), "late")
    found |= dict.fromkeys(line.get("missing") or (), "lost")
    return found | {entry["client"]: entry_outcome(entry) for entry in line.get("rejected") or ()}


def entry_outcome(entry: Mapping[str, Any]) -> str:
    """The outcome of one entry of `rejected`."""
    return outcome_of(str(entry.get("code") or ""), str(entry.get("detail") or ""))
