"""Communication: bytes up and down per round, against sending the whole model."""

from __future__ import annotations

from markupsafe import Markup

from shepherd.report import charts
from shepherd.report.charts import Dots
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import left_out, number, significant, size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one parameter, by the dtype of the model."""


def traffic(record: RunRecord, limits: Limits) -> Section:
    """Bytes up and down, against sending the whole model."""
    heading = "Communication"
    if not record.rounds:
        return Section("traffic", heading, ["No federated round was run, so nothing was sent."])
    up, down = (
        record.summary.get(key) or sum(number(line.get(key)) or 0 for line in record.rounds)
        for key in ("bytes_up", "bytes_down")
    )
    text = [f"Up from the clients: {size(up)}. Down to the clients: {size(down)}. Together: {size(up + down)}."]
    text += _against_whole_model(record, up + down)
    caption = "Bytes sent up and down in each round, as they would be sent over a network."
    figure = Figure(_picture(record, text[0]), caption, _table(record, up, down, limits))
    return Section("traffic", heading, text, [figure])


def _against_whole_model(record: RunRecord, sent: float) -> list[str]:
    model = record.summary.get("model") or {}
    dtype = str(model.get("dtype"))
    parameters = number(model.get("parameters"))
    adapter = number((record.summary.get("adapter") or {}).get("bytes"))
    if not parameters or dtype not in BYTES or not adapter:
        return []
    whole = parameters * BYTES[dtype]
    return [
        f"One adapter is {size(adapter)}; the whole model in {dtype} is {size(whole)}, "
        f"{significant(whole / adapter)} times as much. "
        f"Sending the whole model instead would have taken {size(sent * whole / adapter)}."
    ]


def _picture(record: RunRecord, description: str) -> Markup:
    series = [
        Dots("up (clients to server)", "s1", [number(line.get("bytes_up")) for line in record.rounds]),
        Dots("down (server to clients)", "s2", [number(line.get("bytes_down")) for line in record.rounds]),
    ]
    return charts.bar_chart(
        [f"{line['round']}" for line in record.rounds],
        series,
        title="Bytes per round",
        description=description,
        x_label="round",
        y_label="sent in a round",
        write=size,
    )


def _table(record: RunRecord, up: float, down: float, limits: Limits) -> Table:
    rows = [
        [
            f"{line['round']}",
            *(size(line.get(k)) for k in ("bytes_up", "bytes_down")),
            size((number(line.get("bytes_up")) or 0) + (number(line.get("bytes_down")) or 0)),
        ]
        for line in charts.thin(record.rounds, limits.rows)
    ]
    rows.append(["all", size(up), size(down), size(up + down)])
    note = left_out(len(record.rounds), limits.rows, "round")
    return Table("Bytes per round", ("Round", "Up", "Down", "Together"), rows, note=note)
