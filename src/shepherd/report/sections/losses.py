"""What a run brought, as sections: headline, loss per round, per client, per category. RunRecord -> Section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from shepherd.report import charts, findings
from shepherd.report.charts import Band, Dots, Line, Panel
from shepherd.report.findings import gap, mean_of
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    count,
    digits,
    left_out,
    number,
    percent,
    plural,
    sentence,
    shorten,
    signed,
    significant,
)

T = TypeVar("T")

AGAINST_BASE = "loss minus that of the base model"


def cards(record: RunRecord) -> list[dict[str, Any]]:
    """One card per arm; the local one names its best and worst client."""
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
                "key": arm.key,
                "name": arm.name,
                "loss": arm.loss,
                "perplexity": arm.perplexity,
                "token_accuracy": arm.token_accuracy,
                "extra": extra,
            }
        )
    return found


def measure(record: RunRecord) -> str:
    if not findings.arms(record):
        return ""
    rows, tokens = record.metrics.get("held_out_rows"), record.metrics.get("held_out_tokens")
    over = f" ({count(rows)} rows, {count(tokens)} response tokens)" if number(rows) else ""
    text = f"Loss is the cross entropy on the response tokens of the held-out rows{over}; lower is better."
    text += " Perplexity is exp(loss)."
    brought = findings.difference(record, "federated", "base")
    if brought and abs(brought.value) < 20:
        text += (
            f" The difference of {digits(abs(brought.value))} between federated and base means that federated gives "
            f"each right token {significant(math.exp(-brought.value))} times the probability that base gives it, on "
            "(geometric) average."
        )
    if findings.local_arms(record):
        over = f" {findings.trained_alone(record)}," if findings.some_alone(record) else " clients;"
        text += f" For the clients alone the figures are means over{over} their perplexity is exp(mean loss)."
    return text


def rounds(record: RunRecord, limits: Limits) -> Section:
    """Held-out loss over rounds: federated, centralised, the clients alone and the base."""
    curves = record.metrics.get("curves") or {}
    federated = _curve(curves.get("federated")) or [
        (line["round"], loss) for line in record.rounds if (loss := number(line.get("held_out_loss"))) is not None
    ]
    centralised = _curve(curves.get("centralised"))
    alone = {c: dict(_curve(points)) for c, points in (curves.get("local") or {}).items()}
    at = sorted({x for points in alone.values() for x in points})
    spread = {x: [v for points in alone.values() if (v := points.get(x)) is not None] for x in at}
    mean = [(x, mean_of(spread[x])) for x in at]
    base = next((arm.loss for arm in findings.arms(record) if arm.key == "base"), None)
    if base is None:
        base = dict(federated).get(0, dict(centralised).get(0))
    ends = [x for x, _ in [*federated, *centralised, *mean]] or [
        0,
        max([line["round"] for line in record.rounds], default=1),
    ]
    lines = []
    if base is not None:
        lines.append(Line("base", "base", [(min(ends), base), (max(ends), base)], dashed=True))
    if mean:
        lines.append(Line("mean alone" if len(alone) > 1 else "alone", "local", mean))
    if centralised:
        lines.append(Line("centralised", "centralised", centralised))
    if federated:
        lines.append(Line("federated", "federated", federated))
    band = None
    if len(alone) > 1:
        band = Band(
            "clients alone, range",
            "local",
            [(x, min(v, default=None), max(v, default=None)) for x, v in spread.items()],
        )
    every = record.setting("evaluation", "every", 1)
    text = (
        []
        if every == 1
        else [
            "The held-out loss was measured at the end only."
            if every == 0
            else f"The held-out loss was measured every {every} rounds."
        ]
    )
    if not federated and not centralised and not mean:
        text = ["No held-out loss was measured over the rounds."]
    picture = charts.line_chart(
        lines,
        title="Held-out loss per round",
        description=sentence([f"{s.name} ends at {digits(s.points[-1][1])}" for s in lines]),
        x_label="round",
        y_label="held-out loss (nats per token)",
        band=band,
    )
    logged = {line["round"]: line for line in record.rounds}
    every_round = sorted({*logged, *(x for x, _ in [*federated, *centralised, *mean])})
    shown = charts.thin(every_round, limits.rows)
    rows = []
    for x in shown:
        line = logged.get(x, {})
        counted = {} if line.get("skipped") else line
        low, high = (min(spread[x], default=None), max(spread[x], default=None)) if x in spread else (None, None)
        rows.append(
            [
                f"{x:g}",
                digits(dict(federated).get(x)),
                digits(dict(centralised).get(x)),
                digits(dict(mean).get(x)),
                f"{digits(low)} to {digits(high)}" if low is not None else ABSENT,
                digits(mean_of((line.get("train_loss") or {}).values())),
                _rates(counted.get("learning_rate")),
                significant(counted.get("deviation")),
            ]
        )
    table = Table(
        "Losses per round",
        (
            "Round",
            "Federated",
            "Centralised",
            "Mean alone",
            "Clients alone, range",
            "Training loss, mean of the cohort",
            "Learning rate",
            "Deviation",
        ),
        rows,
        note=left_out(len(every_round), limits.rows, "round", "evenly spaced ones are shown")
        + " Deviation: ‖Σ wBA − (Σ wB)(Σ wA)‖ / ‖Σ wBA‖, what averaging A and B apart loses.",
    )
    caption = "Loss on all held-out rows after each round."
    caption += " Round 0 is the model before tuning." if min(ends) == 0 else ""
    return Section("rounds", "Loss per round", text, [Figure(picture, caption, without_empty(table))])


def categories(record: RunRecord, limits: Limits) -> Section:
    """Each category of held-out rows in each arm."""
    heading = "Per category"
    arms = findings.measured(record)
    alone = findings.local_arms(record)

    def table_of(arm: Any) -> Mapping[str, Any]:
        return (arm or {}).get("per_category") or {}

    single = {key: table_of(arms.get(key)) for key in ("base", "federated", "centralised")}
    known = sorted({c for t in [*single.values(), *(table_of(v) for v in alone.values())] for c in t})
    if not known:
        return Section("categories", heading, ["No losses per category were measured."])
    losses = {key: {c: number(t[c].get("loss")) for c in t} for key, t in single.items()}
    losses["local"] = {c: mean_of(table_of(v).get(c, {}).get("loss") for v in alone.values()) for c in known}
    order = [key for key in findings.ARMS if any(v is not None for v in losses[key].values())]
    shown = known[: limits.drawn]
    names = {"base": "base", "local": "mean alone", "federated": "federated", "centralised": "centralised"}
    zero = "base" in order and len(order) > 1
    series = [
        Dots(names[key], key, [gap(losses[key].get(c), losses["base"].get(c) if zero else 0.0) for c in shown])
        for key in order
        if not (zero and key == "base")
    ]
    picture = charts.dot_plot(
        shown,
        [Panel("", series)],
        title="Held-out loss per category" + (", against the base model" if zero else ""),
        description=f"{plural(len(shown), 'category')} in {plural(len(order), 'arm')}.",
        x_label=AGAINST_BASE if zero else "held-out loss (nats per token)",
        zero=zero,
    )
    first = next(t for t in [single["federated"], single["base"], single["centralised"], {}] if t or t == {})
    rows = [
        [
            c,
            count(first.get(c, {}).get("rows")),
            count(first.get(c, {}).get("tokens")),
            *(digits(losses[key].get(c)) for key in order),
            signed(gap(losses["federated"].get(c), losses["local"].get(c))),
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
            *(findings.ARM_NAMES[k] if k != "local" else "Mean alone" for k in order),
            "Federated − mean alone",
            "Accuracy, base",
            "Accuracy, federated",
        ),
        rows,
        note=left_out(len(known), limits.rows, "category"),
    )
    caption = "Loss of each arm on the held-out rows of each category" + (
        ", minus that of the base model (dotted line): further left is better." if zero else "."
    )
    caption += left_out(len(known), limits.drawn, "category")
    return Section("categories", heading, [], [Figure(picture, caption, without_empty(table))])


def _curve(points: Sequence[Sequence[Any]] | None) -> list[tuple[float, float]]:
    found = ((number(p[0]), number(p[1])) for p in points or () if len(p) == 2)
    return sorted((x, y) for x, y in found if x is not None and y is not None)


def extremes(lines: Sequence[T], limit: int) -> tuple[list[T], int | None]:
    """The first and the last of the lines, `limit` together, and the position after which some are left out."""
    if len(lines) <= limit:
        return list(lines), None
    head = (limit + 1) // 2
    return [*lines[:head], *lines[len(lines) - (limit - head) :]], head - 1


def _rates(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        ends = [ABSENT if number(v) is None else f"{v:.2g}" for v in value]
        return ends[0] if ends[0] == ends[1] else " to ".join(ends)
    return ABSENT
