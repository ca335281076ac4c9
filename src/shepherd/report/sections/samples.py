"""The section of sample answers."""

from __future__ import annotations

from typing import Any

from shepherd.report import findings
from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Table, without_empty
from shepherd.report.sections.facts import _said
from shepherd.report.wording import (
    count,
    left_out,
    number,
    percent,
    shorten,
)

IDS_TEXT = 20_000
"""Most characters of ids in a cell."""


def samples(record: RunRecord, limits: Limits) -> dict[str, Any]:
    """Held-out prompts with the answers before and after, and the scores of the generated answers."""
    arms = [a for a in findings.arms(record) if a.generation]
    items: list[Table] = []
    if arms:
        counts = {"rows": "Rows", "cut_off": "Cut off"}
        keys = [k for k in dict.fromkeys(k for a in arms for k in a.generation or {}) if k not in counts]
        names = {"exact_match": "Exact match", "token_f1": "Token F1", "rouge_l": "ROUGE-L"}
        rows = [
            [a.name, *(percent(a.generation.get(k)) for k in keys), *(count(a.generation.get(k)) for k in counts)]
            for a in arms
        ]
        note = "Higher is nearer to the reference. A few short answers: these scores are coarse; the losses above rest "
        note += (
            "on all held-out rows. Cut off: answers that did not end by themselves; their scores are of what there is."
        )
        columns = ("Arm", *(names.get(k, k) for k in keys), *counts.values())
        items.append(without_empty(Table("Scores of the generated answers", columns, rows, note=note)))
    shown = []
    for entry in record.generations[: limits.samples]:
        answers = dict(entry["answers"])
        main = [
            ("Before: base model", "base", answers.pop("base", None)),
            ("After: federated", "federated", answers.pop("federated", None)),
        ]
        ended = entry.get("finish_reason") or {}
        cut = {arm for arm, reason in ended.items() if reason == "length"}
        told = [{"name": n, "style": s, "text": _said(t), "cut": s in cut} for n, s, t in main if t is not None]
        told.append({"name": "Reference", "style": "plain", "text": _said(entry.get("reference")), "cut": False})
        others = [
            {
                "name": "Centralised" if arm == "centralised" else arm.removeprefix("local:") + " alone",
                "style": "centralised" if arm == "centralised" else "local",
                "text": _said(text),
                "cut": arm in cut,
            }
            for arm, text in list(answers.items())[:8]
        ]
        shown.append(
            {
                "id": str(entry.get("id", "")),
                "category": str(entry.get("category", "")),
                "prompt": [{"role": t["role"], "content": t["content"]} for t in entry["prompt"]],
                "answers": told,
                "others": others,
            }
        )
    if shown:
        text = "Held-out prompts, answered by the base model and by the federated one, beside the reference."
        if most := number(record.setting("evaluation", "max_new_tokens", None)):
            text += f" An answer is cut off after {count(most)} tokens (evaluation.max_new_tokens), and marked so."
        text += left_out(len(record.generations), limits.samples, "sample")
    else:
        text = "No answers have been generated yet."
        if record.state != "unfinished":
            text = "No answers were generated in this run (evaluation.generate)."
    unanswered = record.summary.get("unanswered")
    lost = [f"{shorten(unanswered, 300)}."] if isinstance(unanswered, str) and unanswered else []
    return {"samples": shown, "samples_text": [text, *lost], "samples_items": items, "length": limits.text}
