"""What a run says about the arms that were judged: whether their budgets were equal, what they were trained on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from shepherd.arms import shown
from shepherd.report.load import RunRecord
from shepherd.report.sections.budget import SPENT
from shepherd.report.wording import digits, number, significant

NEAR = 0.01
"""Share by which two budgets may differ and count as equal."""
COMPARED = ("optimizer_steps_per_client", "rows", "tokens", "learning_rate")


def budget(record: RunRecord, arms: Collection[str]) -> dict[str, Any] | None:
    """{equal, differences}: what the trained arms among these used, compared with the federated arm; None where the run
    recorded nothing of two of them. A client's arm has the budget of its arm: `local/NAME` that of `local`."""
    given = record.summary.get("budget") or {}
    names = {arm.partition("/")[0] for arm in arms}
    spent = {arm: given[arm] for arm in shown(given) if arm in names and arm != "base"}
    if len(spent) < 2:
        return None
    reference = "federated" if "federated" in spent else next(iter(spent))
    differences = []
    for key in COMPARED:
        own = number(spent[reference].get(key))
        for arm, values in spent.items():
            other = number(values.get(key))
            if arm != reference and own and other is not None and abs(other - own) > NEAR * own:
                write = significant if key == "learning_rate" else lambda value: digits(value, 0)
                differences.append(f"{SPENT[key].lower()} of {arm} {write(other)}, of {reference} {write(own)}")
    return {"equal": not differences, "differences": differences}


def trained_on(record: RunRecord, categories: Collection[str]) -> list[str] | None:
    """The categories of these questions that the clients of a run had rows of; None where neither names categories."""
    known = (record.partition.get("table") or {}).get("categories")
    return sorted(set(known) & set(categories)) if known and categories else None
