"""Losses per category: each category of held-out rows in each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from markupsafe import Markup

from shepherd.report import charts, findings
from shepherd.report.arms import every_arm
from shepherd.report.charts import Dots, Panel
from shepherd.report.findings import gap, mean_of
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import (
    AGAINST_BASE,
    HELD_OUT_LOSS,
    count,
    digits,
    left_out,
    number,
    percent,
    plural,
    signed,
)

Losses = Mapping[str, Mapping[str, float | None]]
"""{arm: {category: loss}}, for the arms with a loss, in their order."""


def categories(record: RunRecord, limits: Limits) -> Section:
    """The loss and token accuracy of each category of held-out rows in each arm."""
    heading = "Per category"
    values = findings.measured(record)
    single, each = {}, {}
    for key, arm in every_arm(values).items():
        value = values.get(key) or {}
        if arm.per_client or findings.models_of(arm, value):
            each[key] = [_per_category(model) for model in findings.models_of(arm, value)]
        else:
            single[key] = _per_category(value)
    known = sorted({category for table in (*single.values(), *chain(*each.values())) for category in table})
    if not known:
        return Section("categories", heading, ["No losses per category were measured."])
    losses = {
        key: {
            c: mean_of(table.get(c, {}).get("loss") for table in each[key])
            if key in each
            else number(single[key].get(c, {}).get("loss"))
            for c in known
        }
        for key in every_arm(values)
    }
    losses = {key: found for key, found in losses.items() if any(v is not None for v in found.values())}
    zero = "base" in losses and len(losses) > 1
    caption = "Loss of each arm on the held-out rows of each category" + (
        ", minus that of the base model (dotted line): further left is better." if zero else "."
    )
    caption += left_out(len(known), limits.drawn, "category")
    picture = _picture(known[: limits.drawn], losses, zero)
    return Section("categories", heading, [], [Figure(picture, caption, _table(known, losses, single, limits))])


def _picture(shown: Sequence[str], losses: Losses, zero: bool) -> Markup:
    arms = every_arm(losses)
    series = [
        Dots(arms[key].label, arms[key].style, [gap(found[c], losses["base"][c] if zero else 0.0) for c in shown])
        for key, found in losses.items()
        if not (zero and key == "base")
    ]
    return charts.dot_plot(
        shown,
        [Panel("", series)],
        title="Held-out loss per category" + (", against the base model" if zero else ""),
        description=f"{plural(len(shown), 'category')} in {plural(len(losses), 'arm')}.",
        x_label=AGAINST_BASE if zero else HELD_OUT_LOSS,
        zero=zero,
    )


def _table(known: Sequence[str], losses: Losses, single: Mapping[str, Mapping[str, Any]], limits: Limits) -> Table:
    sized = next((table for table in single.values() if table), {})
    arms, federated, alone = every_arm(losses), losses.get("federated", {}), losses.get("local", {})
    rows = [
        [
            c,
            count(sized.get(c, {}).get("rows")),
            count(sized.get(c, {}).get("tokens")),
            *(digits(found[c]) for found in losses.values()),
            signed(gap(federated.get(c), alone.get(c))),
            percent(single["base"].get(c, {}).get("token_accuracy")),
            percent(single["federated"].get(c, {}).get("token_accuracy")),
        ]
        for c in known[: limits.rows]
    ]
    table = Table(
        "Loss and token accuracy of each category",
        (
            "Category",
            "Rows",
            "Tokens",
            *(arms[key].column if arms[key].per_client else arms[key].title for key in losses),
            "Federated − mean alone",
            "Accuracy, base",
            "Accuracy, federated",
        ),
        rows,
        note=left_out(len(known), limits.rows, "category"),
    )
    return without_empty(table)


def _per_category(arm: Any) -> Mapping[str, Any]:
    return (arm or {}).get("per_category") or {}
