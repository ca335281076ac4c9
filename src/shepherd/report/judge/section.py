"""The section of judged answers on a page, and its tables for a terminal."""

from __future__ import annotations

from markupsafe import Markup

from shepherd.report import charts
from shepherd.report.charts import SERIES_STYLES, Dots, Panel
from shepherd.report.judge import facts, figures
from shepherd.report.judge.figures import Judged
from shepherd.report.judge.sentences import cautions, verdicts
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import number, sentence, signed

DRAWN_PAIRS = 4
"""Most pairs in the figure of categories."""


def section(judged: Judged, limits: Limits) -> Section:
    """Judged answers: verdicts in words, differences in a figure, and the tables of how they were made."""
    return Section("judge", "Judged answers", [*verdicts(judged), " ".join(cautions(judged))], _items(judged, limits))


def tables(judged: Judged, limits: Limits) -> list[Table]:
    """All tables, in order."""
    found = [
        figures.differences(judged, limits), figures.totals(judged, limits), figures.orders(judged, limits),
        figures.lengths(judged, limits), figures.categories(judged, limits), *facts.gaps(judged, limits),
        facts.agreements(judged, limits), facts.arms(judged, limits), facts.facts(judged, limits),
    ]  # fmt: skip
    return [table for table in found if table is not None]


def _items(judged: Judged, limits: Limits) -> list[Figure | Table]:
    first, *others = tables(judged, limits)
    caption = (
        "Points per question of the first of a pair minus those of the second: right of 0 the judge prefers the first. "
        "Bars: 95 % interval."
    )
    items: list[Figure | Table] = [Figure(_differences(judged, limits), caption, first)]
    for table in others:
        by_category = table.caption == figures.CATEGORIES
        items.append(Figure(_categories(judged, limits), _OF_CATEGORIES, table) if by_category else table)
    return items


_OF_CATEGORIES = "The same by category of question, with 95 % intervals that are not adjusted for their number."


def _differences(judged: Judged, limits: Limits) -> Markup:
    pairs = judged["pairs"][: limits.drawn]
    names = figures.labels(pairs)
    notes = [f"{signed(pair['difference'])}  {pair['verdict']}" for pair in pairs]
    return charts.dot_plot(
        names,
        [Panel("", [Dots("difference", "plain", [p["difference"] for p in pairs], [p["ci95"] for p in pairs])], notes)],
        title="Difference in points per question",
        description=sentence([f"{name}: {note}" for name, note in zip(names, notes, strict=True)]),
        x_label="difference in points per question (right of 0: the first of the pair is rated higher)",
        zero=True,
        legend=False,
    )


def _categories(judged: Judged, limits: Limits) -> Markup:
    pairs = [pair for pair in judged["pairs"] if pair["categories"]][:DRAWN_PAIRS]
    each = [{str(found["category"]): found for found in pair["categories"]} for pair in pairs]
    names = list(dict.fromkeys(name for found in each for name in found))[: limits.drawn]
    series = [
        Dots(
            label,
            style,
            [number(found.get(name, {}).get("difference")) for name in names],
            [found.get(name, {}).get("ci95") for name in names],
        )
        for label, style, found in zip(figures.labels(pairs), SERIES_STYLES, each, strict=False)
    ]
    return charts.dot_plot(
        [name or "no category" for name in names],
        [Panel("", series)],
        title="Difference per category",
        description=f"{len(names)} categories of {len(pairs)} pairs.",
        x_label="difference in points per question",
        zero=True,
    )
