"""Comparison of runs: `compare(run_dirs)` as text and as a page with figures.

Runs that differ in nothing but the seed are one group: mean ± standard error over seeds (s / √n with the sample
deviation s). Losses that were measured on different rows or with different models carry a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import DataError
from shepherd.report import findings
from shepherd.report.comparison.figures import arms_figure, curves_figure
from shepherd.report.comparison.groups import Group, Row, distinct, grouped, row_of
from shepherd.report.comparison.ranking import ranking
from shepherd.report.comparison.tables import groups_table, losses_table, plain_text, runs_table, settings_table
from shepherd.report.load import RunRecord, load_run
from shepherd.report.page import Section, Table, render, write_page
from shepherd.report.wording import ABSENT, clean, listing, plural

NAME_WIDTH = 36
"""Columns of a terminal that a name gets in tables with a column per arm or run."""
NOT_COMPARED = {"run.name", "run.out", "run.threads"}
"""Settings that are not listed among those that differ."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `differing`: setting -> its value in each run, for settings that are not the same in all.

    `verdict`: the leading settings, and whether they lead by more than the variance over seeds.
    """

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    differing: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    verdict: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Plain tables for a terminal."""
        runs, *others = self.tables()
        parts = [plain_text(runs), *(plain_text(table, NAME_WIDTH) for table in others)]
        parts += ["\n".join(map(clean, self.verdict))] if self.verdict else []
        return "\n\n".join([*parts, *(f"note: {clean(text)}" for text in self.warnings)]) + "\n"

    def write_html(self, path: str | Path) -> Path:
        """Write one page with the same tables and pictures; returns its path."""
        runs, losses, groups, settings = self.tables()
        curves = curves_figure(self.rows, self.groups)
        same = [] if settings.rows else ["The runs have the same settings."]
        sections = [
            Section("losses", "Losses", [], [*([curves] if curves else []), arms_figure(self.groups, groups), losses]),
            Section("runs", "Runs", [], [runs]),
            Section("settings", "Settings that differ", same, [settings] if settings.rows else []),
        ]
        page = render(
            "compare.html.j2",
            title="Comparison of runs",
            facts=[plural(len(self.rows), "run"), plural(len(self.groups), "different setting")],
            verdict=self.verdict,
            warnings=self.warnings,
            sections=sections,
        )
        return write_page(Path(path), page)

    def tables(self) -> tuple[Table, Table, Table, Table]:
        """Runs, their losses, groups (one line per set of settings, over seeds) and differing settings."""
        names = distinct([row.name for row in self.rows])
        return (
            runs_table(names, self.rows),
            losses_table(names, self.rows),
            groups_table(self.groups, self.rows),
            settings_table(names, self.differing),
        )


def compare(run_dirs: Sequence[str | Path]) -> Comparison:
    """Compare runs, in the order given.

    Raises DataError when there is no run, or one of them cannot be read.
    """
    if not run_dirs:
        raise DataError("no run to compare", hint="shepherd compare RUN RUN…")
    records = [load_run(path) for path in run_dirs]
    rows = tuple(map(row_of, records))
    groups, warnings = grouped(rows)
    keys = sorted({key for row in rows for key in row.settings} - NOT_COMPARED)
    values = {key: tuple(row.settings.get(key, ABSENT) for row in rows) for key in keys}
    differing = {key: found for key, found in values.items() if len(set(found)) > 1}
    names = distinct([group.name for group in groups])
    verdict = ranking([(name, group.ranked) for name, group in zip(names, groups, strict=True)])
    return Comparison(rows, groups, differing, (*warnings, *_warnings(rows, records)), tuple(verdict))


def _warnings(rows: Sequence[Row], records: Sequence[RunRecord]) -> list[str]:
    """Reasons why losses of these runs are hard to compare, and files that were read in part."""
    warnings = []
    if len({row.model for row in rows}) > 1:
        warnings.append(
            "The runs tune different base models: their losses are not comparable when the tokenizers differ."
        )
    if len({row.rows_digest for row in rows}) > 1:
        measured = [row.name for row in rows if row.rows_digest[0] == "sites"]
        if measured:
            warnings.append(
                f"{listing(measured)}: measured by its sites on rows that stay there, so whether they are those of "
                "another run is not known."
            )
        warnings.append(
            "The runs were not all measured on the same held-out rows: compare differences within a run, not losses "
            "of different runs."
        )
    elif len({row.tokens for row in rows} - {None}) > 1:
        warnings.append(
            "The runs were measured on the same held-out rows, but not on the same tokens of them (truncated or "
            "templated differently): their losses are not comparable."
        )
    for row, record in zip(rows, records, strict=True):
        if row.state != "finished":
            warnings.append(f"{row.name} is unfinished; its losses are those of the last evaluated round.")
        if findings.some_alone(record):
            warnings.append(f"{row.name}: the mean alone is over {findings.trained_alone(record)}.")
        warnings += [f"{row.name}: {note}" for note in record.notes]
    return warnings
