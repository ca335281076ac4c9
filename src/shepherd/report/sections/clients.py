"""The section on clients: what each brought in, and what the shared model does for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report import charts, findings
from shepherd.report.charts import Dots, Panel
from shepherd.report.findings import gap
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.sections.losses import AGAINST_BASE, extremes
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
    shorten,
    signed,
)


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


def _mostly(client: str, held: Mapping[str, int]) -> str:
    """The category of which a client holds most rows; not told of a client that is named after all it holds."""
    if not sum(held.values()):
        return ABSENT
    most = min(held, key=lambda c: (-held[c], c))
    if most == client and held[most] == sum(held.values()):
        return ABSENT
    return f"{shorten(most, 24)} {percent(held[most] / sum(held.values()), 0)}"
