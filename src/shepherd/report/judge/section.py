"""The section of judged answers on a page, and its tables for a terminal."""

from __future__ import annotations

from shepherd.report import charts
from shepherd.report.charts import SERIES_STYLES, Dots, Panel
from shepherd.report.judge import facts, figures
from shepherd.report.judge.figures import Judged
from shepherd.report.judge.sentences import cautions, verdicts
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import left_out, plural, sentence, signed

FEW = 5
"""Below this number of questions an interval of a category is so wide that it would set the scale of the figure."""
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
    items: list[Figure | Table] = [_differences(judged, limits, first)]
    for table in others:
        items.append(_categories(judged, limits, table) if table.caption == figures.CATEGORIES else table)
    return items


def _differences(judged: Judged, limits: Limits, table: Table) -> Figure:
    pairs = judged["pairs"][: limits.drawn]
    names, common = figures.short_labels(pairs)
    notes = [f"{signed(pair['difference'])}  {pair['verdict']}" for pair in pairs]
    picture = charts.dot_plot(
        names,
        [Panel("", [Dots("difference", "plain", [p["difference"] for p in pairs], [p["ci95"] for p in pairs])], notes)],
        title="Difference in points per question",
        description=sentence([f"{name}: {note}" for name, note in zip(names, notes, strict=True)]),
        x_label="difference in points per question (right of 0: the first of the pair is rated higher)",
        zero=True,
        legend=False,
    )
    caption = (
        "Points per question of the first of a pair minus those of the second: right of 0 the judge prefers the first. "
        f"Bars: 95 % interval. {common}".rstrip()
        + left_out(len(judged["pairs"]), limits.drawn, "pair")
    )
    return Figure(picture, caption, table)


def _categories(judged: Judged, limits: Limits, table: Table) -> Figure:
    pairs = [pair for pair in judged["pairs"] if pair["categories"]]
    shown, common = pairs[:DRAWN_PAIRS], figures.short_labels(pairs[:DRAWN_PAIRS])
    each = [{str(found["category"]): found for found in pair["categories"]} for pair in shown]
    names = list(dict.fromkeys(name for found in each for name in found))[: limits.drawn]
    series = [
        Dots(label, style, [found.get(name, {}).get("difference") for name in names], [_ends(found, n) for n in names])
        for label, style, found in zip(common[0], SERIES_STYLES, each, strict=False)
    ]
    picture = charts.dot_plot(
        [name or "no category" for name in names],
        [Panel("", series)],
        title="Difference per category",
        description=f"{plural(len(names), 'category')} of {plural(len(shown), 'pair')}.",
        x_label="difference in points per question",
        zero=True,
    )
    caption = (
        f"The same by category of question. Bars: 95 % interval, not adjusted for the number of categories; below "
        f"{FEW} questions it is in the table only. {common[1]}".rstrip()
        + left_out(len(pairs), DRAWN_PAIRS, "pair")
    )
    return Figure(picture, caption, table)


def _ends(found: Judged, name: str) -> tuple[float, float] | None:
    category = found.get(name)
    return category["ci95"] if category and category["questions"] >= FEW else None
