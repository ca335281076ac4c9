"""The tables of a comparison, on a page and in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shepherd.arms import Arm, shown
from shepherd.report import findings
from shepherd.report.comparison.groups import Estimate, Group, Row
from shepherd.report.page import Table
from shepherd.report.wording import (
    ABSENT,
    cells,
    clean,
    count,
    digits,
    duration,
    padded,
    shorten,
    signed,
    size,
)


def runs_table(names: Sequence[str], rows: Sequence[Row]) -> Table:
    """One line per run: what it tuned, how, and at which cost."""
    return Table(
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
            for name, row in zip(names, rows, strict=True)
        ],
        texts=(0, 1, 2),
    )


def losses_table(names: Sequence[str], rows: Sequence[Row]) -> Table:
    """One line per run: its loss in each arm, and the federated loss minus that of each other arm."""
    arms, rivals = _measured(rows)
    return Table(
        "Held-out loss of each run",
        ("Run", *_columns(arms, rivals)),
        [
            [name, *(digits(row.losses.get(arm)) for arm in arms), *(_gap(row.gaps.get(arm)) for arm in rivals)]
            for name, row in zip(names, rows, strict=True)
        ],
        note="Nats per response token. vs: federated minus that arm; * marks a 95 % interval over held-out rows "
        "that excludes 0.",
    )


def groups_table(groups: Sequence[Group], rows: Sequence[Row]) -> Table:
    """One line per set of settings: means over its seeds."""
    arms, rivals = _measured(rows)
    return Table(
        "Mean ± standard error over seeds; vs: federated minus that arm",
        ("Settings", "Seeds", *_columns(arms, rivals)),
        [
            [
                group.name,
                f"{len(group.seeds)}",
                *(estimate_text(group.losses.get(arm)) for arm in arms),
                *(estimate_text(group.gaps.get(arm), signed) for arm in rivals),
            ]
            for group in groups
        ],
        note=""
        if any(len(group.seeds) > 1 for group in groups)
        else "One seed each: no standard error over seeds can be given.",
    )


def settings_table(names: Sequence[str], differing: Mapping[str, Sequence[str]]) -> Table:
    """One line per setting that is not the same in all runs."""
    return Table(
        "Settings that differ",
        ("Setting", *names),
        [[key, *(shorten(value, 60) for value in values)] for key, values in differing.items()],
        texts=tuple(range(len(names) + 1)),
    )


def estimate_text(value: Estimate | None, write: Callable[[float], str] = digits) -> str:
    """`2.133 ± 0.088`, without the second part where there is one seed."""
    if value is None:
        return ABSENT
    mean, error = value
    return write(mean) + (f" ± {digits(error)}" if error is not None else "")


def plain_text(table: Table, room: int | None = None) -> str:
    """The table for a terminal: columns in line, texts left, numbers right; only its caption when it has no rows.

    Names, which head rows and columns, are cut to `room` columns.
    """
    if not table.rows:
        return f"{table.caption}: none"
    lines = [[*table.columns], *([*line] for line in table.rows)]
    if room:
        lines = [
            [shorten(cell, room, middle=True) if i == 0 or j == 0 else cell for j, cell in enumerate(line)]
            for i, line in enumerate(lines)
        ]
    lines = [[" ".join(clean(str(cell)).split()) for cell in line] for line in lines]
    widths = [max(sum(map(cells, line[j])) for line in lines) for j in range(len(table.columns))]
    heading, *body = [
        "  ".join(
            padded(cell, width, j not in table.texts) for j, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    note = [table.note.strip()] if table.note else []
    return "\n".join([table.caption, "", heading, rule, *body, *note])


def _measured(rows: Sequence[Row]) -> tuple[dict[str, Arm], dict[str, Arm]]:
    """The arms with a loss in some run, and those that federated was compared with in some run."""
    losses = {arm for row in rows for arm, loss in row.losses.items() if loss is not None}
    return shown(losses), shown(arm for row in rows for arm in row.gaps)


def _columns(arms: Mapping[str, Arm], rivals: Mapping[str, Arm]) -> list[str]:
    return [*(arm.column for arm in arms.values()), *(f"vs {arm.label}" for arm in rivals.values())]


def _gap(d: findings.Difference | None) -> str:
    return ABSENT if d is None else signed(d.value) + ("*" if d.distinguishable else "")
