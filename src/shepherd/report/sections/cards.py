"""Cards of the headline, one per arm, and the meaning of their numbers."""

from __future__ import annotations

import math
from typing import Any

from shepherd.report import findings
from shepherd.report.load import RunRecord
from shepherd.report.wording import count, digits, number, shorten, significant


def cards(record: RunRecord) -> list[dict[str, Any]]:
    """One card per arm; the local card names its best and worst client."""
    found = []
    ends = findings.best_and_worst_local(record)
    alone = findings.local_arms(record)
    for arm in findings.arms(record):
        extra = ""
        if arm.stderr is not None:
            extra = f"standard error {digits(arm.stderr)}"
        if arm.key == "local" and ends and len(alone) > 1:
            best, worst = ends
            extra = (
                f"mean of {findings.trained_alone(record)}; "
                f"best {digits(alone[best].get('loss'))} ({shorten(best, 24, middle=True)}), "
                f"worst {digits(alone[worst].get('loss'))} ({shorten(worst, 24, middle=True)})"
            )
        elif arm.key == "local" and ends:
            of = f", {findings.trained_alone(record)}" if findings.some_alone(record) else ""
            extra = f"only {shorten(ends[0], 24, middle=True)}{of}"
        found.append(
            {
                "style": arm.arm.style,
                "name": arm.title,
                "loss": arm.loss,
                "perplexity": arm.perplexity,
                "token_accuracy": arm.token_accuracy,
                "extra": extra,
            }
        )
    return found


def measure(record: RunRecord) -> str:
    """The unit of the losses, and the federated gain as a ratio of probabilities."""
    if not findings.arms(record):
        return ""
    rows, tokens = record.metrics.get("held_out_rows"), record.metrics.get("held_out_tokens")
    over = f" ({count(rows)} rows, {count(tokens)} response tokens)" if number(rows) else ""
    text = f"Loss is the cross entropy on the response tokens of the held-out rows{over}; lower is better."
    text += " Perplexity is exp(loss)."
    gain = findings.difference(record, "federated", "base")
    if gain and abs(gain.value) < 20:
        text += (
            f" The difference of {digits(abs(gain.value))} between federated and base means that the federated model "
            f"assigns {significant(math.exp(-gain.value))} times the base model's probability to each correct token, "
            "in the geometric mean."
        )
    if findings.local_arms(record):
        over = findings.trained_alone(record) if findings.some_alone(record) else "clients"
        text += f" The figures of the clients alone are means over {over}; their perplexity is exp(mean loss)."
    return text
