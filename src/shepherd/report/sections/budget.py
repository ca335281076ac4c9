"""The budget of each arm: optimizer steps, rows, tokens, learning rate."""

from __future__ import annotations

from typing import Any

from shepherd.arms import shown
from shepherd.report.load import RunRecord
from shepherd.report.page import Section, Table
from shepherd.report.wording import number, plain

SPENT = {
    "optimizer_steps_per_client": "Steps in sequence",
    "optimizer_steps": "Optimizer steps",
    "rows": "Rows",
    "tokens": "Tokens",
    "target_tokens": "Response tokens",
    "learning_rate": "Peak learning rate",
}


def budget(record: RunRecord) -> Section:
    """What each arm used."""
    heading = "Budget of each arm"
    given = record.summary.get("budget") or {}
    if not given:
        return Section("budget", heading, ["No budget is recorded for this run yet."])
    text = "What each arm used. Steps in sequence: the steps of one client that takes part in every round."
    steps = [number(v.get("optimizer_steps_per_client")) for v in given.values()]
    sequence = [value for value in steps if value is not None]
    if len(sequence) == len(steps) and max(sequence) - min(sequence) > 0.01 * max(sequence):
        text += " They differ between arms, which the losses above do not correct for."
    if len({number(v.get("learning_rate")) for v in given.values()} - {None}) > 1:
        text += " Their learning rates differ, because [evaluation] sets one for an arm."
    keys = [key for key in SPENT if any(key in v for v in given.values())]
    keys += sorted({key for v in given.values() for key in v} - SPENT.keys())
    rows = [[arm.spent, *(_amount(key, given[name].get(key)) for key in keys)] for name, arm in shown(given).items()]
    columns = ("Arm", *(SPENT.get(key, key.replace("_", " ")) for key in keys))
    return Section("budget", heading, [text], [Table(heading, columns, rows)])


def _amount(key: str, value: Any) -> str:
    return f"{value:g}" if key == "learning_rate" and number(value) is not None else plain(value)
