"""The figures of a comparison: federated loss per round, and the loss of each arm at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from shepherd.report import charts
from shepherd.report.arms import every_arm
from shepherd.report.charts import Dots, Line, Panel
from shepherd.report.comparison.groups import Group, Row, distinct
from shepherd.report.comparison.tables import estimate_text
from shepherd.report.page import Figure, Table
from shepherd.report.wording import HELD_OUT_LOSS, digits

DRAWN = len(charts.SERIES_STYLES)
"""Most curves in one picture: each has a colour and a marker."""
ROUNDS_SHOWN = 60


def curves_figure(rows: Sequence[Row], groups: Sequence[Group]) -> Figure | None:
    """The held-out loss of the federated model per round: of each run, or means over seeds. None without curves."""
    title = "Held-out loss of the federated model per round"
    names = distinct([row.name for row in rows])
    curves = {name: dict(row.curve) for name, row in zip(names, rows, strict=True) if row.curve}
    if not curves:
        return None
    several = any(len(group.seeds) > 1 for group in groups)
    drawn = _group_curves(groups) if several else curves
    lines = [
        Line(name, style, sorted(curve.items()))
        for style, (name, curve) in zip(charts.SERIES_STYLES, drawn.items(), strict=False)
    ]
    picture = charts.line_chart(
        lines,
        title=title,
        description="; ".join(f"{line.name} ends at {digits(line.points[-1][1])}" for line in lines) + ".",
        x_label="round",
        y_label=HELD_OUT_LOSS,
    )
    at = sorted({x for curve in curves.values() for x in curve})
    kept = charts.thin(at, ROUNDS_SHOWN)
    table = Table(
        title,
        ("Round", *curves),
        [[f"{x:g}", *(digits(curve.get(x)) for curve in curves.values())] for x in kept],
        note="" if len(kept) == len(at) else f"{len(at) - len(kept)} rounds of {len(at)} left out, evenly.",
        folded=True,
    )
    caption = "Held-out loss of the federated model after each round"
    caption += ", mean over seeds; the table holds each run." if several else "."
    if len(drawn) > DRAWN:
        caption += f" The first {DRAWN} of {len(drawn)} {'settings' if several else 'runs'} are drawn."
    return Figure(picture, caption, table)


def arms_figure(groups: Sequence[Group], table: Table) -> Figure:
    """The held-out loss of each arm at the end of the run, with standard errors over seeds."""
    spread = " Bars: ± 1 standard error over seeds." if any(len(group.seeds) > 1 for group in groups) else ""
    caption = f"Held-out loss of each arm at the end of the run.{spread}"
    return Figure(_arms_picture(groups), caption, table)


def _arms_picture(groups: Sequence[Group]) -> Markup:
    series = []
    for name, arm in every_arm(name for group in groups for name in group.losses).items():
        found = [group.losses.get(name) for group in groups]
        if any(found):
            ends = [(f[0] - f[1], f[0] + f[1]) if f and f[1] is not None else None for f in found]
            series.append(Dots(arm.label, arm.style, [f[0] if f else None for f in found], ends))
    return charts.dot_plot(
        [group.name for group in groups],
        [Panel("", series)],
        title="Held-out loss at the end, by arm",
        description="; ".join(
            f"{group.name}: " + ", ".join(f"{arm} {estimate_text(v)}" for arm, v in group.losses.items())
            for group in groups
        ),
        x_label=HELD_OUT_LOSS,
    )


def _group_curves(groups: Sequence[Group]) -> Mapping[str, Mapping[float, float]]:
    names = distinct([group.name for group in groups])
    return {name: dict(group.curve) for name, group in zip(names, groups, strict=True) if group.curve}
