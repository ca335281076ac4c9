"""report.html of a study: verdicts, comparisons with intervals, losses by seed, curves, runs, and how to repeat it."""

from __future__ import annotations

from dataclasses import replace

from shepherd.report import charts
from shepherd.report.charts import Dots, Line, Panel
from shepherd.report.page import Figure, Section, Table, render, without_empty
from shepherd.report.study import tables
from shepherd.report.study.words import (
    PLACES,
    Document,
    chart_label,
    facts,
    interval_text,
    method_text,
    sentences,
    title,
    warnings,
)
from shepherd.report.wording import HELD_OUT_LOSS, digits, left_out, listing, sentence, signed

DRAWN = 40
LEAD = 12
"""Most sentences above the tables."""


def page(found: Document) -> str:
    """The page as text."""
    lead = sentences(found)
    more = [f"The table lists {len(lead) - LEAD} further comparisons."] if len(lead) > LEAD else []
    checks = [_table(tables.seeds_table(found)), _table(tables.checks_table(found))]
    sections = [
        Section("comparisons", "Comparisons", method_text(found), [*_differences(found), *checks]),
        Section("losses", "Losses", [], [*_curves(found), _table(tables.arms_table(found))]),
        Section("variants", "Variants", [], [_table(tables.variants_table(found)), _table(tables.budget_table(found))]),
        Section("runs", "Runs", [], [_table(tables.runs_table(found)), _table(tables.environment_table(found))]),
        Section("repeat", "To repeat it", [], [_commands(found)]),
    ]
    return render(
        "compare.html.j2",
        title=title(found),
        facts=facts(found),
        verdict=[*lead[:LEAD], *more],
        warnings=warnings(found),
        sections=[replace(s, items=[i for i in s.items if isinstance(i, Figure) or i.rows]) for s in sections],
    )


def _table(table: Table) -> Table:
    return without_empty(table) if table.rows else table


def _differences(found: Document) -> list[Figure | Table]:
    """The picture of all intervals over the table of comparisons."""
    table = _table(tables.comparisons_table(found))
    known = [entry for entry in found["comparisons"] if not entry["reason"]]
    if not known:
        return [table]
    drawn = known[:DRAWN]
    names = [chart_label(entry, found["reference"]) for entry in drawn]
    texts = [f"{signed(e['difference'], PLACES)} [{interval_text(e['ci95'])}]" for e in drawn]
    dots = Dots("difference", "plain", [e["difference"] for e in drawn], [e["ci95"] for e in drawn])
    picture = charts.dot_plot(
        names,
        [Panel("", [dots], texts)],
        title="Differences in held-out loss with 95 % intervals",
        description=sentence([f"{name}: {text}" for name, text in zip(names, texts, strict=True)]),
        x_label="loss of the first minus loss of the second (left of 0: the first is better)",
        zero=True,
        legend=False,
    )
    caption = "Differences in held-out loss; bars are 95 % intervals, before the adjustment of p."
    return [Figure(picture, caption + left_out(len(known), DRAWN, "comparison"), table)]


def _curves(found: Document) -> list[Figure | Table]:
    """The federated loss per round, mean over seeds, where rounds were measured."""
    curves = {v["name"]: v["curve"] for v in found["variants"] if len(v["curve"]) > 2}
    if not curves:
        return []
    shown = list(curves)[: len(charts.SERIES_STYLES)]
    lines = [
        Line(name, style, [(float(n), loss) for n, loss in curves[name]])
        for style, name in zip(charts.SERIES_STYLES, shown, strict=False)
    ]
    picture = charts.line_chart(
        lines,
        title="Held-out loss of the federated model per round",
        description=sentence([f"{name} ends at {digits(curves[name][-1][1])}" for name in shown]),
        x_label="round",
        y_label=HELD_OUT_LOSS,
    )
    rest = f" Drawn are {listing(shown)}." if len(shown) < len(curves) else ""
    return [Figure(picture, f"Held-out loss of the federated model after each round, mean over seeds.{rest}")]


def _commands(found: Document) -> Table:
    return Table(
        "Commands",
        ("What", "Command"),
        [list(command) for command in found["commands"]],
        texts=(0, 1),
        note="Lines with runs/ are for the folder of the study.",
    )
