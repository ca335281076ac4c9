"""Sample answers: held-out prompts before and after tuning, and the scores of the generated answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.report import findings
from shepherd.report.arms import every_arm
from shepherd.report.load import RunRecord
from shepherd.report.metrics import Metric, metric
from shepherd.report.page import Limits, Table, without_empty
from shepherd.report.sections.guarantee import withholds
from shepherd.report.wording import count, left_out, listing, number, shorten

OTHERS = 8
"""Most answers of other arms below a sample."""


def samples(record: RunRecord, limits: Limits) -> dict[str, Any]:
    """Held-out prompts with the answers before and after, and the scores of the generated answers."""
    scored = [(arm.title, arm.generation) for arm in findings.arms(record) if arm.generation]
    shown = [_sample(entry) for entry in record.generations[: limits.samples]]
    if shown:
        text = "Held-out prompts with the answers of the base model and the federated model, and the reference."
        if most := number(record.setting("evaluation", "max_new_tokens", None)):
            text += f" Answers are cut off after {count(most)} tokens (evaluation.max_new_tokens) and marked."
        text += left_out(len(record.generations), limits.samples, "sample")
    else:
        text = "No answers have been generated yet."
        if record.state != "unfinished":
            text = "No answers were generated in this run (evaluation.generate)."
        if withholds(record):
            text = "Withheld: the texts of held-out rows. The operator of the run finds the answers in private/."
    unanswered = record.summary.get("unanswered")
    lost = [f"{shorten(unanswered, 300)}."] if isinstance(unanswered, str) and unanswered else []
    items = [_scores(record, scored)] if scored else []
    return {"samples": shown, "samples_text": [text, *lost], "samples_items": items, "length": limits.text}


def _scores(record: RunRecord, scored: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    counts = {"rows": "Rows", "cut_off": "Cut off"}
    keys = dict.fromkeys(k for _, scores in scored for k in scores if k not in counts)
    metrics = [metric(record, key) for key in keys]
    rows = [
        [title, *(m.shown(scores.get(m.key)) for m in metrics), *(count(scores.get(k)) for k in counts)]
        for title, scores in scored
    ]
    note = (
        f"{_directions(metrics)} These scores are coarse, because they rest on a few short answers; the "
        "losses above rest on all held-out rows. Cut off: answers that reached the limit on tokens; they are scored as "
        "they are."
    )
    columns = ("Arm", *(m.label for m in metrics), *counts.values())
    return without_empty(Table("Scores of the generated answers", columns, rows, note=note))


def _directions(metrics: Sequence[Metric]) -> str:
    """A sentence about the direction in which scores are better."""
    lower = [m.label for m in metrics if not m.higher_is_better]
    if len(lower) == len(metrics) > 0:
        return "Lower is better."
    if lower:
        return f"Higher is better, but for {listing(lower)}, where lower is better."
    return "Higher is closer to the reference."


def _sample(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One prompt with its answers, as the template prints it."""
    answers = dict(entry["answers"])
    main = [
        ("Before: base model", "base", answers.pop("base", None)),
        ("After: federated", "federated", answers.pop("federated", None)),
    ]
    cut = {arm for arm, reason in (entry.get("finish_reason") or {}).items() if reason == "length"}
    shown = [{"name": n, "style": s, "text": _or_nothing(t), "cut": s in cut} for n, s, t in main if t is not None]
    shown.append({"name": "Reference", "style": "plain", "text": _or_nothing(entry.get("reference")), "cut": False})
    arms = every_arm(arm for arm in answers if not arm.startswith("local:"))
    others = [
        {
            "name": arms[arm].title if arm in arms else arm.removeprefix("local:") + " alone",
            "style": arms[arm if arm in arms else "local"].style,
            "text": _or_nothing(text),
            "cut": arm in cut,
        }
        for arm, text in list(answers.items())[:OTHERS]
    ]
    return {
        "id": str(entry.get("id", "")),
        "category": str(entry.get("category", "")),
        "prompt": [{"role": t["role"], "content": t["content"]} for t in entry["prompt"]],
        "answers": shown,
        "others": others,
    }


def _or_nothing(text: Any) -> str:
    return text if isinstance(text, str) and text.strip() else "(empty)"
