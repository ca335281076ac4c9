"""Diagnostics of the rounds in the space of increments, as small charts.

The numbers are those of server/diagnostics.py in rounds.jsonl; runs without them have fewer charts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from shepherd.report import charts
from shepherd.report.charts import Line
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import left_out, listing, number, sentence, significant

RoundLine = Mapping[str, Any]
"""One line of rounds.jsonl."""


@dataclass(frozen=True)
class Chart:
    """One small chart: its title, what its axis measures, how to read it, and its lines as (name, style, value).

    A value is a function of a round's line in rounds.jsonl; None leaves a gap. to_rank: with the adapter's rank as a
    dashed line.
    """

    title: str
    axis: str
    reading: str
    lines: Sequence[tuple[str, str, Callable[[RoundLine], float | None]]]
    to_rank: bool = False


def _diagnostic(key: str) -> Callable[[RoundLine], float | None]:
    return lambda line: _measured(line, key)


def _of_norms(choose: Callable[[Sequence[float]], float]) -> Callable[[RoundLine], float | None]:
    return lambda line: choose(norms) if (norms := _norms(line)) else None


CHARTS = (
    Chart(
        "Deviation",
        "‖Σ wBA − (Σ wB)(Σ wA)‖ / ‖Σ wBA‖",
        "Relative error of averaging A and B separately instead of their products BA; 0 is exact. Methods that "
        "average products do not make this error; for them it measures how far clients disagree.",
        [("deviation", "federated", _diagnostic("deviation"))],
    ),
    Chart(
        "Agreement of clients",
        "cosine of two clients' increments",
        "Cosine similarity of two clients' increments: 1 is the same direction, 0 orthogonal, below 0 opposing. "
        "Falling lines indicate client drift. It needs two clients.",
        [("mean", "s1", _diagnostic("cosine_mean")), ("min", "s2", _diagnostic("cosine_min"))],
    ),
    Chart(
        "Effective rank",
        "(Σσ)² / Σσ²",
        "Number of directions that the mean increment of a module uses, against the adapter's r (dashed). Near r "
        "or above, a higher rank may help; far below, a lower one would suffice.",
        [("used", "federated", _diagnostic("effective_rank"))],
        to_rank=True,
    ),
    Chart(
        "Energy at rank r",
        "share of Σσ²",
        "Share of the mean increment's energy in its first r directions; 1 is all of it. Methods that truncate lose "
        "the rest; methods with a remainder keep it outside the adapter.",
        [("kept", "federated", _diagnostic("energy_at_rank"))],
    ),
    Chart(
        "Subspace movement",
        "0 same, 1 orthogonal",
        "Rotation of the row space of A in a round. A falling line indicates convergence; 0 throughout is a frozen A.",
        [("movement", "federated", _diagnostic("subspace_move"))],
    ),
    Chart(
        "Norm of the increments",
        "norm of a client's increment",
        "Norm of the clients' increments. A client far above the others dominates the mean; federation.max_weight and "
        "federation.max_update_norm bound its influence.",
        [("max", "s2", _of_norms(max)), ("mean", "s1", _of_norms(fmean)), ("min", "s3", _of_norms(min))],
    ),
)


def diagnostics(record: RunRecord, limits: Limits) -> Section:
    """Agreement of clients, error of the merge, movement of the adapter: a chart each, with a reading aid."""
    heading = "Diagnostics"
    if not record.rounds:
        return Section("diagnostics", heading, ["No federated round was run."])
    figures = [figure for chart in CHARTS if (figure := _figure(chart, record))]
    if not figures:
        return Section("diagnostics", heading, ["No diagnostics were recorded for the rounds of this run."])
    text = ["The clients' increments and the aggregated one in each round, as measured by the server."]
    skipped = [f"{line['round']}" for line in record.rounds if line.get("skipped")]
    if skipped:
        text.append(f"Skipped rounds leave a gap: {listing(skipped)}.")
    counts = (number((line.get("diagnostics") or {}).get("modules")) for line in record.rounds)
    modules = sorted({int(count) for count in counts if count})
    if modules:
        text.append(f"Means are over {listing([f'{count}' for count in modules])} modules of the adapter.")
    return Section("diagnostics", heading, text, [*figures, _numbers(record.rounds, limits)])


def _figure(chart: Chart, record: RunRecord) -> Figure | None:
    """The chart of a run; None without measurements."""
    lines = [
        Line(name, style, [(line["round"], value(line)) for line in record.rounds])
        for name, style, value in chart.lines
    ]
    lines = [line for line in lines if any(y is not None for _, y in line.points)]
    if not lines:
        return None
    rank = number(record.setting("lora", "r"))
    if chart.to_rank and rank:
        lines.append(Line("r", "base", [(line["round"], rank) for line in record.rounds], dashed=True))
    ends = [f"{line.name} ends at {significant(last)}" for line in lines if (last := line.points[-1][1]) is not None]
    picture = charts.line_chart(
        lines,
        title=f"{chart.title} per round",
        description=sentence(ends),
        x_label="round",
        y_label=f"{chart.title}: {chart.axis}",
        height=280,
        width=charts.HALF,
        write=significant,
    )
    return Figure(picture, chart.reading, half=True)


def _numbers(lines: Sequence[RoundLine], limits: Limits) -> Table:
    keys = ("deviation", "cosine_mean", "cosine_min", "effective_rank", "energy_at_rank", "subspace_move")
    rows = []
    for line in charts.thin(lines, limits.rows):
        norms = _norms(line)
        ends = (min(norms), fmean(norms), max(norms)) if norms else (None,) * 3
        rows.append([f"{line['round']}", *(significant(_measured(line, key)) for key in keys), *map(significant, ends)])
    names = ("Deviation", "Cosine, mean", "Cosine, min", "Effective rank", "Energy at r", "Subspace movement")
    table = Table(
        "Diagnostics of each round",
        ("Round", *names, "Norm, min", "Norm, mean", "Norm, max"),
        rows,
        note=left_out(len(lines), limits.rows, "round", "evenly spaced ones are shown"),
        folded=True,
    )
    return without_empty(table)


def _measured(line: RoundLine, key: str) -> float | None:
    """A diagnostic of a round; None for a skipped round. Older runs have only the deviation."""
    if line.get("skipped"):
        return None
    return number((line.get("diagnostics") or line).get(key))


def _norms(line: RoundLine) -> list[float]:
    """‖X_k‖ of the clients of a round; in older runs the norms of their updates."""
    given = (line.get("diagnostics") or {}).get("increment_norm") or line.get("update_norm") or {}
    return [value for raw in given.values() if (value := number(raw)) is not None]
