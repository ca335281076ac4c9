"""What runs and answers add to judge.json: the question set, the arms, and whether their budgets are equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shepherd.evaluation.answer_files import AnswerLine
from shepherd.evaluation.judge.calls.material import Asked
from shepherd.evaluation.judge.summary import OF_ARM
from shepherd.updates.privacy.publication import place_of

SAME = 0.01
"""Relative difference of steps below which budgets count as equal: rounding of epochs to steps."""


def questions_of(asked: Asked) -> dict[str, Any]:
    """Source, licence and digest of the question set."""
    from shepherd.evaluation.questions import BENCHES

    bench = BENCHES.get(asked.name)
    return {
        "source": asked.source,
        "licence": asked.licence or (bench.licence if bench else None),
        "sha256": asked.digest or (bench.digest if bench else None),
    }


def arms_of(lines: Mapping[str, AnswerLine]) -> dict[str, dict[str, Any]]:
    """What answered, by name in the table."""
    return {name: {key: getattr(line, key) or None for key in OF_ARM} for name, line in lines.items()}


def budget_of(runs: Iterable[Path]) -> dict[str, Any] | None:
    """{equal, differences} of the trained arms of these runs, by their summary.json; None where none has one."""
    found, differences = False, []
    for run in runs:
        arms = _budget(run)
        found = found or bool(arms)
        steps = {arm: spent["optimizer_steps_per_client"] for arm, spent in arms.items()
                 if isinstance(spent.get("optimizer_steps_per_client"), int | float)}  # fmt: skip
        if steps and max(steps.values()) - min(steps.values()) > SAME * max(steps.values()):
            differences.append(f"{run.name}: steps in sequence {_listed(steps)}")
        rates = {arm: spent["learning_rate"] for arm, spent in arms.items() if spent.get("learning_rate") is not None}
        if len(set(rates.values())) > 1:
            differences.append(f"{run.name}: learning rates {_listed(rates)}")
    return {"equal": not differences, "differences": differences} if found else None


def _budget(run: Path) -> dict[str, dict[str, Any]]:
    try:
        arms = json.loads(place_of(run, "summary.json").read_text(encoding="utf-8")).get("budget") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: spent for name, spent in arms.items() if isinstance(spent, dict)} if isinstance(arms, dict) else {}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
