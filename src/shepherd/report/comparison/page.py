"""`compare(run_dirs)`: several runs side by side, as text and as a page with pictures.

Runs that differ in nothing but the seed are one group: mean ± standard error over seeds (s / √n with the sample
deviation s). Losses of runs that were measured on different rows or with different models are shown, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.report import charts, findings
from shepherd.report.charts import Dots, Line, Panel
from shepherd.report.comparison.groups import DRAWN, Group, Row, _distinct, _gap, _grouped, _mean, _row
from shepherd.report.load import load_run
from shepherd.report.page import Figure, Section, Table, render, write_page
from shepherd.report.wording import (
    ABSENT,
    cells,
    clean,
    count,
    digits,
    duration,
    padded,
    plural,
    shorten,
    signed,
    size,
)

ARMS = {"base": "Base", "local": "Mean alone", "federated": "Federated", "centralised": "Centralised"}


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `differing`: setting -> its value in each run, for settings that are not the same in all.

    `verdict`: which settings lead, and whether by more than the spread over seeds.
    """

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    differing: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    verdict: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Plain tables for a terminal."""
        runs, *others = self.tables()
        parts = [_plain_table(runs), *(_plain_table(table, 36) for table in others)]
        parts += ["\n".join(map(clean, self.verdict))] if self.verdict else []
        return "\n\n".join([*parts, *(f"note: {clean(text)}" for text in self.warnings)]) + "\n"

    def write_html(self, path: str | Path) -> Path:
        """Write one page with the same tables and pictures; returns its path."""
        runs, each, groups, settings = self.tables()
        losses = [self._curves(), Figure(self._bars(), self._bars_caption(), groups), each]
        sections = [
            Section("losses", "Losses", [], [item for item in losses if item]),
            Section("runs", "Runs", [], [runs]),
            Section(
                "settings",
                "Settings that differ",
                [] if settings.rows else ["The runs have the same settings."],
                [settings] if settings.rows else [],
            ),
        ]
        facts = [plural(len(self.rows), "run"), plural(len(self.groups), "different setting")]
        page = render(
            "compare.html.j2",
            title="Comparison of runs",
            facts=facts,
            verdict=self.verdict,
            warnings=self.warnings,
            sections=sections,
        )
        return write_page(Path(path), page)

    def tables(self) -> tuple[Table, Table, Table, Table]:
        """Runs, their losses, groups (one line per set of settings, over seeds) and differing settings."""
        names = _distinct([row.name for row in self.rows])
        arms = [arm for arm in ARMS if any(row.losses.get(arm) is not None for row in self.rows)]
        gaps = [arm for arm in ("base", "local", "centralised") if any(arm in row.gaps for row in self.rows)]
        runs = Table(
            "Runs",
            ("Run", "Model", "Method", "Seed", "Clients", "Rounds", "Up", "Down", "Time"),
            [
                [
                    name,
                    row.model,
                    row.method,
                    f"{row.seed}",
                    count(row.clients),
                    f"{row.rounds}" + (" (unfinished)" if row.state != "finished" else ""),
                    size(row.bytes_up),
                    size(row.bytes_down),
                    duration(row.seconds),
                ]
                for name, row in zip(names, self.rows, strict=True)
            ],
            texts=(0, 1, 2),
        )
        against = [f"vs {ARMS[arm].lower()}" for arm in gaps]
        losses = Table(
            "Held-out loss of each run",
            ("Run", *(ARMS[arm] for arm in arms), *against),
            [
                [name, *(digits(row.losses.get(arm)) for arm in arms), *(_gap(row.gaps.get(arm)) for arm in gaps)]
                for name, row in zip(names, self.rows, strict=True)
            ],
            note="Nats per response token. vs: federated minus that arm; * marks a 95 % interval over held-out rows "
            "that leaves out 0.",
        )
        groups = Table(
            "Mean ± standard error over seeds; vs: federated minus that arm",
            ("Settings", "Seeds", *(ARMS[a] for a in arms), *against),
            [
                [
                    group.name,
                    f"{len(group.seeds)}",
                    *(_mean(group.losses.get(a)) for a in arms),
                    *(_mean(group.gaps.get(a), signed) for a in gaps),
                ]
                for group in self.groups
            ],
            note=""
            if any(len(g.seeds) > 1 for g in self.groups)
            else "One seed each: no standard error over seeds can be given.",
        )
        settings = Table(
            "Settings that differ",
            ("Setting", *names),
            [[key, *(shorten(v, 60) for v in values)] for key, values in self.differing.items()],
            texts=tuple(range(len(names) + 1)),
        )
        return runs, losses, groups, settings

    def _curves(self) -> Figure | None:
        shown = [
            (name, row)
            for name, row in zip(_distinct([r.name for r in self.rows]), self.rows, strict=True)
            if row.curve
        ]
        if not shown:
            return None
        curves = {name: dict(row.curve) for name, row in shown}
        several = any(len(group.seeds) > 1 for group in self.groups)
        names = _distinct([group.name for group in self.groups])
        means = {name: dict(g.curve) for name, g in zip(names, self.groups, strict=True) if g.curve}
        drawn = means if several else curves
        lines = [
            Line(name, style, sorted(curve.items()))
            for style, (name, curve) in zip(charts.SERIES_STYLES, drawn.items(), strict=False)
        ]
        picture = charts.line_chart(
            lines,
            title="Held-out loss of the federated model per round",
            description="; ".join(f"{line.name} ends at {digits(line.points[-1][1])}" for line in lines) + ".",
            x_label="round",
            y_label="held-out loss (nats per token)",
        )
        at = sorted({x for _, row in shown for x, _ in row.curve})
        kept = charts.thin(at, 60)
        table = Table(
            "Held-out loss of the federated model per round",
            ("Round", *(name for name, _ in shown)),
            [[f"{x:g}", *(digits(curve.get(x)) for curve in curves.values())] for x in kept],
            note="" if len(kept) == len(at) else f"{len(at) - len(kept)} rounds of {len(at)} left out, evenly.",
            folded=True,
        )
        caption = "Held-out loss of the federated model after each round"
        caption += ", mean over seeds; the table holds each run." if several else "."
        if len(drawn) > DRAWN:
            caption += f" The first {DRAWN} of {len(drawn)} {'settings' if several else 'runs'} are drawn."
        return Figure(picture, caption, table)

    def _bars(self) -> Any:
        series = []
        for arm, name in ARMS.items():
            found = [group.losses.get(arm) for group in self.groups]
            if any(found):
                ends = [(f[0] - f[1], f[0] + f[1]) if f and f[1] is not None else None for f in found]
                series.append(Dots(name.lower(), arm, [f[0] if f else None for f in found], ends))
        return charts.dot_plot(
            [group.name for group in self.groups],
            [Panel("", series)],
            title="Held-out loss at the end, by arm",
            description="; ".join(
                f"{g.name}: " + ", ".join(f"{a} {_mean(v)}" for a, v in g.losses.items()) for g in self.groups
            ),
            x_label="held-out loss (nats per token)",
        )

    def _bars_caption(self) -> str:
        spread = " Bars: ± 1 standard error over seeds." if any(len(g.seeds) > 1 for g in self.groups) else ""
        return f"Held-out loss of each arm at the end of the run.{spread}"


def compare(run_dirs: Sequence[str | Path]) -> Comparison:
    """Read the runs and put them side by side, in the order given.

    Raises DataError when there is no run, or one of them cannot be read.
    """
    if not run_dirs:
        raise DataError("no run to compare", hint="shepherd compare RUN RUN…")
    records = [load_run(path) for path in run_dirs]
    rows = tuple(_row(record) for record in records)
    groups, warnings, verdict = _grouped(rows)
    keys = sorted({key for row in rows for key in row.settings} - {"run.name", "run.out", "run.threads"})
    differing = {
        key: values for key in keys if len(set(values := tuple(row.settings.get(key, ABSENT) for row in rows))) > 1
    }
    if len({row.model for row in rows}) > 1:
        warnings.append(
            "The runs tune different base models: their losses are not comparable when the tokenizers differ."
        )
    if len({row.rows_digest for row in rows}) > 1:
        warnings.append(
            "The runs were not all measured on the same held-out rows: compare the differences inside a run rather "
            "than the losses of different runs."
        )
    elif len({row.tokens for row in rows} - {None}) > 1:
        warnings.append(
            "The runs were measured on the same held-out rows, but not on the same tokens of them (cut or written "
            "otherwise): their losses are not comparable."
        )
    for row, record in zip(rows, records, strict=True):
        if row.state != "finished":
            warnings.append(f"{row.name} has not ended; its losses are those of the last evaluated round.")
        if findings.some_alone(record):
            warnings.append(f"{row.name}: mean alone is that of {findings.trained_alone(record)}.")
        warnings += [f"{row.name}: {note}" for note in record.notes]
    return Comparison(rows, groups, differing, tuple(warnings), verdict)


def _plain_table(table: Table, room: int | None = None) -> str:
    """Columns in line, texts left, numbers right; nothing but a heading when there are no rows.

    Names, which head rows and columns, are cut to `room`.
    """
    if not table.rows:
        return f"{table.caption}: none"
    named = [[*table.columns], *([*line] for line in table.rows)]
    if room:
        named = [
            [shorten(c, room, middle=True) if i == 0 or j == 0 else c for j, c in enumerate(line)]
            for i, line in enumerate(named)
        ]
    lines = [[" ".join(clean(str(cell)).split()) for cell in line] for line in named]
    widths = [max(sum(map(cells, line[i])) for line in lines) for i in range(len(table.columns))]
    texts = [
        "  ".join(
            padded(c, w, i not in table.texts) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join([table.caption, "", texts[0], rule, *texts[1:], *([table.note.strip()] if table.note else [])])
