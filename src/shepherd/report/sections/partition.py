"""The partition: rows of each client by category, and the loss per category against each client alone."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.report import charts, findings
from shepherd.report.findings import gap
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import (
    count,
    left_out,
    number,
    plural,
    shorten,
    signed,
)


def division(record: RunRecord, limits: Limits) -> Section:
    """Training rows by client and category, and federated − alone per category."""
    heading = "Clients and categories"
    table = record.partition.get("table") or {}
    names, columns, counts = table.get("clients") or [], table.get("categories") or [], table.get("counts") or []
    if len(counts) != len(names) or any(len(line) != len(columns) for line in counts):
        return Section(
            "division", heading, ["partition.json holds a table whose size does not fit its names; it is not drawn."]
        )
    text: list[str] = []
    items: list[Figure | Table] = []
    if record.summary.get("sites"):
        text.append("The rows stay at the sites. Each states how many it trains on, and a digest with its own salt.")
    if names and columns:
        text += _rule(record)
        full = _full_division(names, columns, counts, limits)
        if plain := _plain_division(names, columns, counts):
            text.append(plain)
            items.append(full)
        else:
            items.append(_drawn_division(names, columns, counts, limits, full))
    items += knowledge(record, limits)
    return Section("division", heading, text or ([] if items else ["No partition of the rows is recorded."]), items)


def _rule(record: RunRecord) -> list[str]:
    """The partitioner and its settings in a sentence; none where they are not recorded."""
    settings = {k: v for k, v in (record.partition.get("settings") or {}).items() if v not in ("", 0, None)}
    name = settings.pop("name", "")
    how = ", ".join(f"{k} = {v}" for k, v in settings.items())
    rule = f"{name} ({how})" if how else name
    return [f"The rows were partitioned with {shorten(rule, 300)}."] if name else []


def _full_division(
    names: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], limits: Limits
) -> Table:
    shown = columns[: limits.columns]
    rows = [
        [c, *(count(v) for v in line[: len(shown)]), count(sum(line))] for c, line in zip(names, counts, strict=True)
    ]
    sums = [sum(line[j] for line in counts) for j in range(len(shown))]
    totals = ["all", *map(count, sums), count(sum(map(sum, counts)))]
    return Table(
        "Training rows by client and category",
        ("Client", *shown, "All"),
        [*rows[: limits.rows], totals],
        note=left_out(len(names), limits.rows, "client") + left_out(len(columns), limits.columns, "category"),
        folded=True,
    )


def _plain_division(names: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The division as a sentence, where that says as much as a picture; else nothing."""
    if len(names) == 1:
        return "One client holds all rows."
    if len(columns) == 1:
        return (
            f"All rows are of one category ({shorten(columns[0], 60)})." if columns[0] else "The rows have no category."
        )
    held = [[column for column, rows in zip(columns, line, strict=True) if rows] for line in counts]
    if all(len(categories) == 1 for categories in held):
        each = [categories[0] for categories in held]
        shared = "no two clients share one" if len(set(each)) == len(each) else "some clients share one"
        return f"Each client holds rows of one category; {shared}."
    if max(map(max, counts)) == 1:
        return f"No client holds more than one row of a category; there are {count(len(columns))} categories."
    return ""


def _drawn_division(
    names: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], limits: Limits, full: Table
) -> Figure:
    most = limits.drawn + 20
    picture = charts.heat_map(
        names[:most],
        columns[: limits.columns],
        [line[: limits.columns] for line in counts[:most]],
        title="Rows of each client in each category",
        description=f"{plural(len(names), 'client')} by {plural(len(columns), 'category')}.",
        x_label="category",
        y_label="client",
    )
    caption = (
        "Training rows that each client holds."
        + left_out(len(names), most, "client")
        + left_out(len(columns), limits.columns, "category")
    )
    return Figure(picture, caption, full)


def knowledge(record: RunRecord, limits: Limits) -> list[Figure | Table]:
    """Client × category: loss of the federated model minus loss of the client alone."""
    alone = findings.local_arms(record)
    federated = (findings.measured(record).get("federated") or {}).get("per_category") or {}
    columns = sorted(federated)[: limits.columns]
    most = limits.drawn + 20
    names = list(alone)[:most]
    values = [
        [
            gap(number(federated[k].get("loss")), number((alone[c].get("per_category") or {}).get(k, {}).get("loss")))
            for k in columns
        ]
        for c in names
    ]
    if len(columns) < 2 or not any(v is not None for line in values for v in line):
        return []
    picture = charts.heat_map(
        names,
        columns,
        values,
        title="The federated model against each client alone, per category",
        description="Loss of the federated model minus loss of the client's own model; negative cells are categories "
        "in which federation helps that client.",
        x_label="category",
        y_label="alone",
        write=lambda v: signed(v, 2),
        diverging=True,
        ends=("federated is better", "alone is better"),
    )
    table = Table(
        "Loss federated minus loss alone, by client and category",
        ("Trained alone", *columns),
        [[c, *(signed(v) for v in line)] for c, line in zip(names, values, strict=True)],
        folded=True,
    )
    caption = (
        "Loss of the federated model minus loss of each client's own model on each category. Blue, below 0: the "
        "federated model is better; orange, above 0: the client alone is."
        + left_out(len(alone), most, "client")
        + left_out(len(federated), limits.columns, "category")
    )
    return [Figure(picture, caption, table)]
