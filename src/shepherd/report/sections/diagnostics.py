"""What the rounds looked like in the space of increments, as a section of small charts: RunRecord -> Section.

The numbers are those of server/diagnostics.py in rounds.jsonl; a run without them shows what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shepherd.report import charts
from shepherd.report.charts import Line
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import left_out, listing, number, sentence, significant

Points = list[tuple[float, float | None]]


def diagnostics(record: RunRecord, limits: Limits) -> Section:
    """How far clients agreed, what the merge lost, how the adapter moved: a chart each, and how to read it."""
    heading = "Inside the rounds"
    lines = record.rounds
    if not lines:
        return Section("diagnostics", heading, ["No round was federated."])
    r = number(record.setting("lora", "r"))

    def of(key: str) -> Points:
        return [(line["round"], _measured(line, key)) for line in lines]

    def norms(choose: Callable[[Sequence[float]], float]) -> Points:
        return [(line["round"], choose(found) if (found := _norms(line)) else None) for line in lines]

    full = [(line["round"], r) for line in lines] if r else []
    charted = (
        (
            "Deviation",
            "‖Σ wBA − (Σ wB)(Σ wA)‖ / ‖Σ wBA‖",
            [Line("lost", "federated", of("deviation"))],
            "What a mean of A and a mean of B would lose of the mean of their products: at 0 nothing. Methods that "
            "keep the product do not lose it; for them it says how far clients disagree.",
        ),
        (
            "Agreement of clients",
            "cosine of two clients' changes",
            [Line("mean", "s1", of("cosine_mean")), Line("least", "s2", of("cosine_min"))],
            "Between what two clients changed: 1 is the same direction, 0 has nothing in common, below 0 one undoes "
            "what the other does. Falling lines are clients that drift apart. It takes two clients.",
        ),
        (
            "Effective rank",
            "(Σσ)² / Σσ²",
            [
                Line("used", "federated", of("effective_rank")),
                Line("r", "base", full if any(v is not None for _, v in of("effective_rank")) else [], dashed=True),
            ],
            "How many directions the mean increment of a module uses, of the r that the adapter has (dashed). Near r "
            "or above, a higher rank may help; far below, a lower one would do.",
        ),
        (
            "Energy at rank r",
            "share of Σσ²",
            [Line("kept", "federated", of("energy_at_rank"))],
            "How much of the mean increment fits into rank r: at 1 all of it. What is missing is lost where the method "
            "truncates, and kept beside the adapter where it has a remainder.",
        ),
        (
            "Move of the subspace",
            "0 same, 1 orthogonal",
            [Line("move", "federated", of("subspace_move"))],
            "How far the directions that A reads turned in this round. A line that sinks is a federation that settles; "
            "0 throughout is an A that is frozen.",
        ),
        (
            "Size of the changes",
            "norm of a client's change",
            [Line("most", "s2", norms(max)), Line("mean", "s1", norms(_mean)), Line("least", "s3", norms(min))],
            "How much clients changed the model. One far above the others pulls the mean its way; "
            "federation.max_weight and federation.max_update_norm bound that.",
        ),
    )
    figures = []
    for title, y_label, series, reading in charted:
        series = [s for s in series if any(y is not None for _, y in s.points)]
        if not series:
            continue
        ends = [
            f"{s.name} ends at {significant(last)}" for s in series if (last := s.points[-1][1]) is not None
        ]  # fmt: skip
        picture = charts.line_chart(
            series,
            title=f"{title} per round",
            description=sentence(ends),
            x_label="round",
            y_label=f"{title}: {y_label}",
            height=280,
            width=charts.HALF,
            write=significant,
        )
        figures.append(Figure(picture, reading, half=True))
    if not figures:
        return Section("diagnostics", heading, ["No diagnostics were recorded for the rounds of this run."])
    text = ["What clients changed and what became of it, as the server measured it in each round."]
    skipped = [f"{line['round']}" for line in lines if line.get("skipped")]
    if skipped:
        text.append(f"Rounds that were skipped leave a gap: {listing(skipped)}.")
    measured = {int(m) for line in lines if (m := number((line.get("diagnostics") or {}).get("modules")))}
    if measured:
        text.append(f"Means are over {listing([f'{m}' for m in sorted(measured)])} modules of the adapter.")
    return Section("diagnostics", heading, text, [*figures, _numbers(lines, limits)])


def _numbers(lines: Sequence[Mapping[str, Any]], limits: Limits) -> Table:
    keys = ("deviation", "cosine_mean", "cosine_min", "effective_rank", "energy_at_rank", "subspace_move")
    rows = []
    for line in charts.thin(lines, limits.rows):
        norms = _norms(line)
        ends = (min(norms), _mean(norms), max(norms)) if norms else (None,) * 3
        rows.append([f"{line['round']}", *(significant(_measured(line, key)) for key in keys), *map(significant, ends)])
    names = ("Deviation", "Cosine, mean", "Cosine, least", "Effective rank", "Energy at r", "Subspace move")
    table = Table(
        "Diagnostics of each round",
        ("Round", *names, "Norm, least", "Norm, mean", "Norm, most"),
        rows,
        note=left_out(len(lines), limits.rows, "round", "evenly spaced ones are shown"),
        folded=True,
    )
    return without_empty(table)


def _measured(line: Mapping[str, Any], key: str) -> float | None:
    """A diagnostic of a round; nothing for a round that was skipped. Older runs have the deviation alone."""
    if line.get("skipped"):
        return None
    return number((line.get("diagnostics") or line).get(key))


def _norms(line: Mapping[str, Any]) -> list[float]:
    """‖X_k‖ of the clients of a round; in older runs the norm of what they sent."""
    given = (line.get("diagnostics") or {}).get("increment_norm") or line.get("update_norm") or {}
    return [value for raw in given.values() if (value := number(raw)) is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
