"""The report of a run: one HTML file with its settings, results and events, offline, without scripts.

Every section is a function RunRecord -> Section in `sections/`; this file has their order. Long lists are shortened
(`Limits`), with the number of entries left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shepherd.errors import ResourceError
from shepherd.report.judge.section import section as judged
from shepherd.report.load import RunRecord, load_run
from shepherd.report.page import LARGEST, LEVELS, Limits, Section, render, write_page
from shepherd.report.sections.alerts import alerts, resumptions
from shepherd.report.sections.audit import audit
from shepherd.report.sections.benchmarks import benchmarks
from shepherd.report.sections.budget import budget
from shepherd.report.sections.cards import cards, measure
from shepherd.report.sections.categories import categories
from shepherd.report.sections.clients import clients
from shepherd.report.sections.data_notes import data_notes
from shepherd.report.sections.diagnostics import diagnostics
from shepherd.report.sections.facts import commands, facts, forced, privacy, versions
from shepherd.report.sections.guarantee import private_section, withheld, withholds
from shepherd.report.sections.headline import headline
from shepherd.report.sections.participation import participation
from shepherd.report.sections.partition import division
from shepherd.report.sections.personal import personal
from shepherd.report.sections.rounds import rounds
from shepherd.report.sections.samples import samples
from shepherd.report.sections.time import time
from shepherd.report.sections.traffic import traffic
from shepherd.report.sections.verdict import verdict
from shepherd.report.sites.section import sites
from shepherd.report.wording import size


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises DataError when a file of the run is missing or broken. The report of an unfinished run covers its committed
    rounds.
    """
    record = load_run(run_dir)
    for limits in LEVELS:
        page = render("report.html.j2", **view(record, limits))
        if len(page.encode("utf-8")) <= LARGEST:
            return write_page(record.path / "report.html", page)
    raise ResourceError(f"the report of {record.path} would be larger than {size(LARGEST)}", hint="shorten its names")


def _shown(build: Callable[[RunRecord, Limits], Section], record: RunRecord, limits: Limits) -> Section:
    return withheld(build, record, limits) if withholds(record) else build(record, limits)


def view(record: RunRecord, limits: Limits) -> dict[str, Any]:
    """The variables of the template. Of a run with differential privacy, only what it releases."""
    shown = partial(_shown, record=record, limits=limits)
    before = [
        *([judged(record.judge, limits)] if record.judge else []),
        shown(lambda record, _limits: budget(record)),
        rounds(record, limits),
        *([over_sites] if (over_sites := sites(record, limits)) else []),
        shown(clients),
        *([own] if (own := personal(record, limits)) else []),
        categories(record, limits),
        *([benchmarks(record, limits)] if record.benchmarks else []),
        shown(division),
    ]
    after = [
        shown(traffic),
        shown(time),
        shown(participation),
        *([mended] if (mended := resumptions(record, limits)) else []),
        shown(diagnostics),
        data_notes(record, limits),
        private_section(record) if withholds(record) else privacy(record),
        *([audit(record, limits)] if record.audit else []),
    ]
    if record.summary.get("forced"):
        before.insert(0, forced(record))
    contents = [(part.key, part.heading) for part in before]
    contents += [
        ("samples", "Before and after"),
        *((part.key, part.heading) for part in after),
        ("settings", "Settings"),
    ]
    return {
        "title": record.name,
        "state": record.state,
        "facts": facts(record),
        "contents": contents,
        "verdict": verdict(record),
        "alerts": alerts(record),
        "cards": cards(record),
        "measure": measure(record),
        "headline": headline(record, limits),
        "before": before,
        **samples(record, limits),
        "after": after,
        "commands": commands(record),
        "config_text": record.config_text,
        "versions": versions(record),
    }
