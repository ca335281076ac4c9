"""Held-out loss per round: the arms of one model, the clients alone and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup

from shepherd.report import charts, findings
from shepherd.report.arms import every_arm
from shepherd.report.charts import Band, Line
from shepherd.report.findings import mean_of
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import ABSENT, HELD_OUT_LOSS, digits, left_out, number, sentence, significant

Curve = Mapping[float, float]
"""{round: held-out loss}, by round."""


@dataclass(frozen=True)
class Curves:
    """The held-out loss over rounds: `single` of each arm that has one model, federated first; `alone` by client,
    `base` a level that does not move."""

    single: Mapping[str, Curve]
    alone: Mapping[str, Curve]
    base: float | None

    @cached_property
    def alone_at(self) -> dict[float, list[float]]:
        """{round: the losses of the clients alone}, by round."""
        at = sorted({x for curve in self.alone.values() for x in curve})
        return {x: [curve[x] for curve in self.alone.values() if x in curve] for x in at}

    @cached_property
    def mean_alone(self) -> dict[float, float]:
        return {x: mean for x, losses in self.alone_at.items() if (mean := mean_of(losses)) is not None}

    @property
    def rounds(self) -> list[float]:
        """The rounds at which a loss of a trained arm was measured."""
        return sorted({*self.mean_alone}.union(*self.single.values()))


def curves(record: RunRecord) -> Curves:
    """The curves of a run; those of the federated arm from its rounds where no other are recorded."""
    given = record.metrics.get("curves") or {}
    federated = _curve(given.get("federated")) or {
        line["round"]: loss for line in record.rounds if (loss := number(line.get("held_out_loss"))) is not None
    }
    others = {name: _curve(given.get(name)) for name, arm in every_arm(given).items() if not arm.per_client}
    single = {"federated": federated} | {name: curve for name, curve in others.items() if name != "federated"}
    base = next((arm.loss for arm in findings.arms(record) if arm.key == "base"), None)
    if base is None:
        base = next((curve[0] for curve in single.values() if 0 in curve), None)
    alone = {client: _curve(points) for client, points in (given.get("local") or {}).items()}
    return Curves({name: curve for name, curve in single.items() if curve}, alone, base)


def rounds(record: RunRecord, limits: Limits) -> Section:
    """The held-out loss of each arm after each round."""
    measured = curves(record)
    every = record.setting("evaluation", "every", 1)
    text = []
    if not measured.rounds:
        text = ["No held-out loss was measured over the rounds."]
    elif every == 0:
        text = ["The held-out loss was measured only at the end."]
    elif every != 1:
        text = [f"The held-out loss was measured every {every} rounds."]
    ends = measured.rounds or [0, max([line["round"] for line in record.rounds], default=1)]
    caption = "Loss on all held-out rows after each round."
    caption += " Round 0 is the model before tuning." if ends[0] == 0 else ""
    figure = Figure(_picture(measured, (ends[0], ends[-1])), caption, _table(record, measured, limits))
    return Section("rounds", "Loss per round", text, [figure])


def _picture(measured: Curves, ends: tuple[float, float]) -> Markup:
    lines = []
    if measured.base is not None:
        lines.append(Line("base", "base", [(x, measured.base) for x in ends], dashed=True))
    several, arms = len(measured.alone) > 1, every_arm(measured.single)
    drawn = {**measured.single}
    last = {name: drawn.pop(name) for name in ("federated",) if name in drawn}
    if measured.mean_alone:
        label = arms["local"].label if several else "alone"
        lines.append(Line(label, arms["local"].style, list(measured.mean_alone.items())))
    for name, curve in {**drawn, **last}.items():
        lines.append(Line(arms[name].label, arms[name].style, list(curve.items())))
    spread = [(x, min(losses), max(losses)) for x, losses in measured.alone_at.items()]
    return charts.line_chart(
        lines,
        title="Held-out loss per round",
        description=sentence([f"{line.name} ends at {digits(line.points[-1][1])}" for line in lines]),
        x_label="round",
        y_label=HELD_OUT_LOSS,
        band=Band("clients alone, range", arms["local"].style, spread) if several else None,
    )


def _table(record: RunRecord, measured: Curves, limits: Limits) -> Table:
    logged = {line["round"]: line for line in record.rounds}
    every_round = sorted({*logged, *measured.rounds})
    arms, rows = every_arm(measured.single), []
    for x in charts.thin(every_round, limits.rows):
        line = logged.get(x, {})
        counted = {} if line.get("skipped") else line
        alone = measured.alone_at.get(x)
        rows.append(
            [
                f"{x:g}",
                *(digits(curve.get(x)) for curve in measured.single.values()),
                digits(measured.mean_alone.get(x)),
                f"{digits(min(alone))} to {digits(max(alone))}" if alone else ABSENT,
                digits(mean_of((line.get("train_loss") or {}).values())),
                _rates(counted.get("learning_rate")),
                significant(counted.get("deviation")),
            ]
        )
    table = Table(
        "Losses per round",
        (
            "Round",
            *(arms[name].column for name in measured.single),
            arms["local"].column,
            "Clients alone, range",
            "Training loss, mean of the cohort",
            "Learning rate",
            "Deviation",
        ),
        rows,
        note=left_out(len(every_round), limits.rows, "round", "evenly spaced ones are shown")
        + " Deviation: ‖Σ wBA − (Σ wB)(Σ wA)‖ / ‖Σ wBA‖, the error of averaging A and B separately.",
    )
    return without_empty(table)


def _curve(points: Any) -> dict[float, float]:
    """The points of a curve; empty for anything else, as an arm that is not registered here may have."""
    pairs = [p for p in points if isinstance(p, Sequence) and len(p) == 2] if isinstance(points, list) else []
    found = ((number(p[0]), number(p[1])) for p in pairs)
    return dict(sorted((x, y) for x, y in found if x is not None and y is not None))


def _rates(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        ends = [ABSENT if number(v) is None else f"{v:.2g}" for v in value]
        return ends[0] if ends[0] == ends[1] else " to ".join(ends)
    return ABSENT
