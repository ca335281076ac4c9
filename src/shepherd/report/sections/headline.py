"""Headline of a report: differences between federated and every other arm, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from shepherd.report import charts, findings
from shepherd.report.charts import Dots, Panel
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    count,
    digits,
    from_to,
    left_out,
    listing,
    plural,
    sentence,
    signed,
    significant,
)


def headline(record: RunRecord, limits: Limits) -> list[Figure | Table]:
    """A figure and a table of federated against each other arm, with intervals."""
    gaps = findings.headline_differences(record)
    if not gaps:
        return []
    pairs = {frozenset((d.a, d.b)) for d in gaps}
    best = findings.against_best(record)
    if best is not None and best.same_rows:  # an older run has it by the client's name
        pairs |= {frozenset(("federated", f"local:{client}")) for client in best.clients}
    extra = [d for d in findings.differences(record) if d.a != d.b and {d.a, d.b} not in pairs]
    shown = [*gaps, *extra]
    rows = [
        [
            d.label,
            signed(d.value),
            from_to(d.interval),
            _p_value(d.p),
            from_to(d.bootstrap),
            _verdict(d),
        ]
        for d in shown[: limits.rows]
    ]
    table = Table(
        "Differences in held-out loss, first minus second",
        ("Difference", "Value", findings.INTERVAL, "p", "Bootstrap, as a check", "First arm"),
        rows,
        texts=(0, 5),
        note=_how(shown) + left_out(len(shown), limits.rows, "difference"),
    )
    return [
        Figure(
            _picture(gaps),
            f"Held-out loss of federated minus that of each other arm: left of 0 federated is better. Bars: "
            f"{findings.INTERVAL}; one that includes 0 is inconclusive.",
            without_empty(table),
        )
    ]


def _picture(gaps: Sequence[findings.Difference]) -> Markup:
    return charts.dot_plot(
        [_rival(d) for d in gaps],
        [
            Panel(
                "",
                [Dots("difference", "plain", [d.value for d in gaps], [d.interval for d in gaps])],
                [_interval(d) for d in gaps],
            )
        ],
        title="Held-out loss of federated minus that of each other arm",
        description="Difference in held-out loss with 95 % intervals. "
        + sentence([f"{d.label}: {_interval(d)}" for d in gaps]),
        x_label="loss of federated minus loss of the other (left of 0: federated is better)",
        zero=True,
        legend=False,
    )


def _how(shown: Sequence[findings.Difference]) -> str:
    """The method of the intervals, and what they do not cover."""
    if not any(d.interval for d in shown):
        reasons = list(dict.fromkeys(d.reason for d in shown if d.reason))
        return f"There are no intervals: {sentence(reasons)}" if reasons else "No intervals were computed in this run."
    text = "A negative difference favours the first arm."
    sizes = ((d.rows, d.effective_rows) for d in shown if d.interval)
    rows, effective = next((size for size in sizes if all(size)), (None, None))
    if rows and effective:
        text += (
            f" Intervals and p: a ratio of sums over {plural(rows, 'held-out row')} with linearised standard error "
            f"and Student's t with {plural(rows - 1, 'degree')} of freedom. The rows differ in length, so their "
            f"effective number is {count(round(effective))}; where that is small, an interval covers less than "
            "95\N{NO-BREAK SPACE}%."
        )
    text += (
        " Arms are paired by row, which removes the difficulty of a row that all arms share; the standard errors of "
        "single arms include it. p: how often the choice of rows alone gives a difference this large. Neither covers "
        "the variance between seeds (repeat the run with other seeds and compare them), nor is there a correction for "
        "multiple comparisons."
    )
    if best := next((d for d in shown if d.b == findings.BEST), None):
        text += _chosen(best)
    if doubted := [d.label for d in shown if d.doubted]:
        text += f" The bootstrap over rows disagrees about 0 for {listing(doubted)}: treat that as undecided."
    return text


def _chosen(best: findings.Difference) -> str:
    """On which rows the best client was chosen."""
    if not best.same_rows:
        return (
            " The best client is chosen on one half of the rows and compared on the other, both ways (cross-fitting), "
            "so that the choice does not favour it."
        )
    few = " There are too few held-out rows to choose on one half and compare on the other."
    return " The best client is chosen on the same rows, which favours it." + (
        few if best.rows is not None and best.rows < 40 else ""
    )


def _verdict(d: findings.Difference) -> str:
    if not d.interval:
        return "no interval"
    return ("better" if d.value < 0 else "worse") if d.distinguishable else "too small to tell"


def _rival(d: findings.Difference) -> str:
    """A short name of the arm compared with: base, mean alone, best: client-a."""
    if d.b == findings.BEST:
        return f"best: {listing(list(d.clients))}"
    return findings.plain_name(d.b)


def _interval(d: findings.Difference) -> str:
    ends = f" [{signed(d.interval[0])}, {signed(d.interval[1])}]" if d.interval else " (no interval)"
    return signed(d.value) + ends


def _p_value(p: float | None) -> str:
    """p with two significant figures below 0.01; a bound where float64 underflows."""
    return ABSENT if p is None else digits(p) if p >= 0.01 else significant(p, 2) if p > 0 else "< 1e\N{MINUS SIGN}300"
