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
    from_to,
    left_out,
    listing,
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


def clients(record: RunRecord, limits: Limits) -> Section:
    """Each client: base, alone and federated, on its own held-out rows and on all of them."""
    heading = "Per client"
    arms = findings.measured(record)
    alone = findings.local_arms(record)
    names = sorted(record.partition.get("clients") or alone)
    base, federated = arms.get("base") or {}, arms.get("federated") or {}
    if not names or not (alone or federated.get("per_client")):
        return Section("clients", heading, ["No losses per client were measured."])

    def own(arm: Mapping[str, Any], client: str) -> float | None:
        return number((arm.get("per_client") or {}).get(client, {}).get("loss"))

    lines = []
    for c in names:
        mine = alone.get(c, {})
        lines.append(
            {
                "client": c,
                "own": (own(base, c), own(mine, c), own(federated, c)),
                "all": (number(base.get("loss")), number(mine.get("loss")), number(federated.get("loss"))),
            }
        )
    told = findings.own_rows(record)
    for line in lines:
        line["gain_own"], line["gain_all"] = (gap(line[k][2], line[k][1]) for k in ("own", "all"))
        line["interval"] = told[line["client"]].interval if line["client"] in told else None
    lines.sort(key=lambda line: (line["gain_own"] is None, line["gain_own"] or 0.0, line["client"]))
    text = []
    judged = [line for line in lines if line["gain_own"] is not None]
    if judged:
        better = sum(line["gain_own"] < 0 for line in judged)
        better_all = sum((line["gain_all"] or 0) < 0 for line in judged)
        losers = [line["client"] for line in judged if line["gain_own"] > 0]
        text.append(
            "On its own held-out rows the federated model has a lower loss than the client's own "
            f"model for {better} of {plural(len(judged), 'client')}; on all held-out rows for {better_all} of "
            f"{len(judged)}."
            + (
                f" Better off alone on their own rows: {listing([shorten(c, 32, middle=True) for c in losers])}."
                if losers
                else ""
            )
        )
        if not any(line["interval"] for line in lines):
            text.append("These are single numbers without intervals: read small differences with care.")
    failed = [f"{f.get('client')} ({f.get('detail')})" for f in record.summary.get("failed") or []]
    if failed:
        text.append(f"Trained alone and failed, so they are in no figure: {listing([shorten(f, 80) for f in failed])}.")
    if alone and len(alone) < len(names):
        text.append(
            f"{len(alone)} of {plural(len(names), 'client')} trained alone; the others have no loss of their own."
        )
    drawn, cut = extremes(lines, limits.drawn)
    between = len(lines) - len(drawn)
    zero = any(line[key][0] is not None for line in lines for key in ("own", "all"))
    panels = [
        Panel(
            title,
            [
                Dots(name, style, [gap(line[key][i], line[key][0]) if zero else line[key][i] for line in drawn])
                for i, name, style in ((1, "alone", "local"), (2, "federated", "federated"))
            ],
        )
        for title, key in (("on its own held-out rows", "own"), ("on all held-out rows", "all"))
    ]
    picture = charts.dot_plot(
        [line["client"] for line in drawn],
        panels,
        title="Loss of each client, alone and federated" + (", against the base model" if zero else ""),
        description=f"{plural(len(drawn), 'client')}, sorted by what federation brings on their own held-out rows. "
        + " ".join(text[:1]),
        x_label=AGAINST_BASE if zero else "held-out loss (nats per token)",
        zero=zero,
        gap_after=cut,
        gap_text=f"… {plural(between, 'client')} between these are left out of the picture",
    )
    table_rows, _ = extremes(lines, limits.rows)
    held = findings.rows_held(record)
    rows = [
        [
            line["client"],
            count(sum(held[line["client"]].values())) if line["client"] in held else ABSENT,
            _mostly(line["client"], held.get(line["client"], {})),
            *(digits(v) for v in line["own"]),
            signed(line["gain_own"]),
            from_to(line["interval"]),
            *(digits(v) for v in line["all"][1:]),
            signed(line["gain_all"]),
        ]
        for line in table_rows
    ]
    table = Table(
        "Loss of each client",
        (
            "Client",
            "Rows",
            "Mostly",
            "Base",
            "Alone",
            "Federated",
            "Difference",
            findings.INTERVAL,
            "Alone",
            "Federated",
            "Difference",
        ),
        rows,
        texts=(0, 2),
        groups=(("", 3), ("On its own held-out rows", 5), ("On all held-out rows", 3)),
        note="Own rows: those of the categories that the client holds, or of its sources where these divide. "
        "Difference: federated minus alone; a negative one is a gain. Interval: of the difference on its own rows, "
        "by Student's t over them."
        + left_out(len(lines), limits.rows, "client", "those that gain and lose most are shown"),
    )
    caption = "Each client, sorted by what federation brings it over training alone: gains first, losses last."
    if zero:
        caption += " The dotted line is the base model on the same rows; further left is better."
    return Section(
        "clients",
        heading,
        text,
        [Figure(picture, caption, without_empty(table))],
    )


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


def knowledge(record: RunRecord, limits: Limits) -> list[Figure | Table]:
    """Client × category: loss of the federated model minus loss of the client alone."""
    alone = findings.local_arms(record)
    federated = (findings.measured(record).get("federated") or {}).get("per_category") or {}
    columns = sorted(federated)[: limits.columns]
    most = limits.drawn + 20
    names = list(alone)[:most]
    values = [
        [
            gap(number(federated[k].get("loss")), number((alone[c].get("per_category") or {}).get(k, {}).get("loss")))
            for k in columns
        ]
        for c in names
    ]
    if len(columns) < 2 or not any(v is not None for line in values for v in line):
        return []
    picture = charts.heat_map(
        names,
        columns,
        values,
        title="The federated model against each client alone, per category",
        description="Loss of the federated model minus loss of the client's own model; negative cells are categories "
        "in which federation helps that client.",
        x_label="category",
        y_label="alone",
        write=lambda v: signed(v, 2),
        diverging=True,
        ends=("federated is better", "alone is better"),
    )
    table = Table(
        "Loss federated minus loss alone, by client and category",
        ("Trained alone", *columns),
        [[c, *(signed(v) for v in line)] for c, line in zip(names, values, strict=True)],
        folded=True,
    )
    caption = (
        "Loss of the federated model minus loss of each client's own model on each category. Blue, below 0: the "
        "federated model is better; orange, above 0: the client alone is."
        + left_out(len(alone), most, "client")
        + left_out(len(federated), limits.columns, "category")
    )
    return [Figure(picture, caption, table)]


def _curve(points: Sequence[Sequence[Any]] | None) -> list[tuple[float, float]]:
    found = ((number(p[0]), number(p[1])) for p in points or () if len(p) == 2)
    return sorted((x, y) for x, y in found if x is not None and y is not None)


def _mostly(client: str, held: Mapping[str, int]) -> str:
    """The category of which a client holds most rows; not told of a client that is named after all it holds."""
    if not sum(held.values()):
        return ABSENT
    most = min(held, key=lambda c: (-held[c], c))
    if most == client and held[most] == sum(held.values()):
        return ABSENT
    return f"{shorten(most, 24)} {percent(held[most] / sum(held.values()), 0)}"


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
