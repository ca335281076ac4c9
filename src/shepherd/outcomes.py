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


VERDICTS: Mapping[str, str] = {
    "admitted": "the site takes part",
    "approval": "a person at the site has not approved the card yet",
    "declined": "a person at the site has declined the card",
    "card": "the card cannot be read",
    "card-changed": "the run had another card before",
    "version": "the site runs another version",
    "base": "the site has another base model, or its policy allows another one only",
    "tokenizer": "the site has another tokenizer or chat template",
    "method": "the policy does not allow the method, or it is none of the built-in ones",
    "optimizer": "the server optimizer is none of the built-in ones",
    "personalization": "the policy does not allow the personalization, or it is none of the built-in ones",
    "transform": "the policy does not allow a transform of updates, or it is none of the built-in ones",
    "outside-code": "the message names code from outside the package",
    "rounds": "more rounds than the policy allows",
    "runs": "more runs than the policy allows the site to keep",
    "trainings": "more tasks in a run than the policy, or the privacy of the card, allows",
    "measures": "more measures in a run than the policy allows",
    "steps": "more local steps than the policy allows",
    "rates": "a learning rate above the limit of the policy",
    "rows": "a task goes through more rows, or fewer, than the policy allows",
    "size": "an adapter with more parameters, or a larger message, than the policy allows",
    "cohort": "fewer sites in a round than the policy allows",
    "require": "a protection that the policy requires is missing",
    "privacy": "the privacy of the card is none: repeatable noise, or settings that void it",
    "epsilon": "more than the epsilon or delta of the policy, in this run or with what has left already",
    "accountant": "epsilon cannot be computed at the site: the extra dp is not installed",
    "ledger": "lines of the site's privacy ledger are missing or cannot be read",
    "losses": "a run with privacy has no losses of a site's rows",
    "window": "outside the hours of the policy",
    "no-rows": "the site has no usable rows",
    "few-rows": "the site has fewer usable rows than its policy asks for",
    "many-rows": "the site states more rows than a run can have",
    "rows-changed": "the rows are others than at the start of the run",
    "not-admitted": "the site does not take part in the run",
    "left": "the site has left the run",
    "stale": "the round or attempt is over",
    "other-site": "the message is for another site",
    "task": "the task cannot be read, or does not fit the card",
    "few-held-out": "the site has fewer held-out rows than its policy shows",
    "cannot": "the site cannot do this",
}
"""Every verdict of a site and its meaning."""
