"""The sections on cost: examples and tokens, bytes, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report import charts, findings
from shepherd.report.charts import Dots
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import (
    ABSENT,
    count,
    duration,
    left_out,
    number,
    percent,
    plainly,
    sentence,
    significant,
    size,
)


def budget(record: RunRecord, limits: Limits) -> Section:
    """What each arm was allowed to use."""
    names = {
        "optimizer_steps_per_client": "Steps in sequence",
        "optimizer_steps": "Optimizer steps",
        "rows": "Rows",
        "tokens": "Tokens",
        "target_tokens": "Response tokens",
        "learning_rate": "Peak learning rate",
    }
    given = record.summary.get("budget") or {}
    keys = [k for k in names if any(k in v for v in given.values())]
    keys += sorted({k for v in given.values() for k in v} - set(names))
    order = [a for a in findings.ARMS if a in given] + sorted(set(given) - set(findings.ARMS))
    label = {**findings.ARM_NAMES, "local": "Clients alone, together"}
    rows = [[label.get(a, a), *(_spent(k, given[a].get(k)) for k in keys)] for a in order]
    text = "What each arm used. Steps in sequence: those of one client that takes part in every round."
    sequence = [number(v.get("optimizer_steps_per_client")) for v in given.values()]
    if sequence and None not in sequence and max(sequence) - min(sequence) > 0.01 * max(sequence):
        text += " They are not equal here: read the losses above with that in mind."
    if len({number(v.get("learning_rate")) for v in given.values()} - {None}) > 1:
        text += " Their learning rates differ: an arm was given one of its own ([evaluation])."
    if not rows:
        return Section("budget", "Budget of each arm", ["No budget is recorded for this run yet."])
    items = [Table("Budget of each arm", ("Arm", *(names.get(k, k.replace("_", " ")) for k in keys)), rows)]
    return Section("budget", "Budget of each arm", [text], items)


def _spent(key: str, value: Any) -> str:
    return f"{value:g}" if key == "learning_rate" and number(value) is not None else plainly(value)


def traffic(record: RunRecord, limits: Limits) -> Section:
    """Bytes up and down, against sending the whole model."""
    heading = "Communication"
    lines = record.rounds
    up = record.summary.get("bytes_up") or sum(number(line.get("bytes_up")) or 0 for line in lines)
    down = record.summary.get("bytes_down") or sum(number(line.get("bytes_down")) or 0 for line in lines)
    if not lines:
        return Section("traffic", heading, ["No round was federated, so nothing would have been sent."])
    text = [f"Up from the clients: {size(up)}. Down to the clients: {size(down)}. Together: {size(up + down)}."]
    model = record.summary.get("model") or {}
    parameters, width = (
        number(model.get("parameters")),
        {"float32": 4, "bfloat16": 2, "float16": 2}.get(model.get("dtype")),
    )
    adapter = number((record.summary.get("adapter") or {}).get("bytes"))
    if parameters and width and adapter:
        whole = parameters * width
        text.append(
            f"One adapter is {size(adapter)}; the whole model in {model['dtype']} is {size(whole)}, "
            f"{significant(whole / adapter)} times as much. "
            f"Sending the whole model as often would have taken {size((up + down) * whole / adapter)}."
        )
    groups = [f"{line['round']}" for line in lines]
    series = [
        Dots("up (clients to server)", "s1", [number(line.get("bytes_up")) for line in lines]),
        Dots("down (server to clients)", "s2", [number(line.get("bytes_down")) for line in lines]),
    ]
    picture = charts.bar_chart(
        groups,
        series,
        title="Bytes per round",
        description=" ".join(text[:1]),
        x_label="round",
        y_label="sent in a round",
        write=size,
    )
    shown = charts.thin(lines, limits.rows)
    rows = [
        [
            f"{x['round']}",
            *(size(x.get(k)) for k in ("bytes_up", "bytes_down")),
            size((number(x.get("bytes_up")) or 0) + (number(x.get("bytes_down")) or 0)),
        ]
        for x in shown
    ]
    rows.append(["all", size(up), size(down), size(up + down)])
    table = Table(
        "Bytes per round", ("Round", "Up", "Down", "Together"), rows, note=left_out(len(lines), limits.rows, "round")
    )
    return Section(
        "traffic",
        heading,
        text,
        [Figure(picture, "Bytes sent up and down in each round, as they would go over a network.", table)],
    )


def time(record: RunRecord, limits: Limits) -> Section:
    """Seconds by phase of the run, and by phase of each round."""
    seconds = dict(record.summary.get("seconds") or {})
    total = number(seconds.pop("total", None))
    words = {
        "prepare data": "reading the data",
        "load model": "loading the model",
        "prepare model": "preparing the model",
        "federated": "training, federated, with checkpoints",
        "local": "training, clients alone",
        "centralised": "training, centralised",
        "personal models": "training, personal models",
        "save adapter": "saving the adapter",
        "evaluate": "measuring all arms",
        "generate": "generating answers",
    }
    other = number(seconds.pop("other", None)) or 0.0
    parts = [(name, value) for name, raw in seconds.items() if (value := number(raw)) is not None]
    spent = sum(value for _, value in parts) + other
    items: list[Figure | Table] = []
    text = []
    if parts:
        if total and total - spent > 0.005 * total:
            other += total - spent
        elif total and spent > 1.005 * total:
            text.append(f"Some phases lie inside others: together they make {duration(spent)}.")
        parts += [("other", other)] if other else []
        whole = sum(value for _, value in parts)
        # Parts too thin to be seen are drawn with what is left over; the table has each.
        wide = [(name, value) for name, value in parts if name != "other" and value >= 0.02 * whole]
        styles = iter(("s4", "s5", "s6", "s1", "s2", "s3") * len(wide))
        cut = [(words.get(name, name), name if name in findings.ARMS else next(styles), value) for name, value in wide]
        picture = charts.stacked_bar(
            [*cut, ("other", "base", whole - sum(value for _, value in wide))],
            title="Time by phase",
            description=sentence([f"{words.get(name, name)}: {duration(value)}" for name, value in parts]),
            write=duration,
        )
        rows = [
            [words.get(name, name), duration(value), percent(value / whole if whole else None)] for name, value in parts
        ]
        rows.append(["total", duration(total if total is not None else spent), ""])
        items.append(
            Figure(picture, "Wall time of the run by phase.", Table("Time by phase", ("Phase", "Time", "Share"), rows))
        )
        if total:
            text.insert(0, f"The run took {duration(total)}.")
    peak = number(record.summary.get("peak_memory_bytes"))
    if peak:
        text.append(f"Peak memory: {size(peak)}.")
    phases = list(dict.fromkeys(k for line in record.rounds for k in line.get("seconds") or {}))
    if phases:
        shown = charts.thin(record.rounds, limits.rows)
        rows = [[f"{line['round']}", *(duration((line.get("seconds") or {}).get(k)) for k in phases)] for line in shown]
        note = left_out(len(record.rounds), limits.rows, "round")
        items.append(Table("Time in each round", ("Round", *phases), rows, note=note))
    return Section("time", "Time and memory", text or ["No times are recorded yet."], items)


def _seen(value: Mapping[str, Any] | None) -> str:
    """Rows by the number of times they were trained on: `2 never, 30 once, 4 twice`."""
    if not value or not isinstance(value.get("seen"), Mapping):
        return ABSENT
    words = {"0": "never", "1": "once", "2": "twice"}
    entries = sorted(value["seen"].items(), key=lambda entry: (len(entry[0]), entry[0]))
    return ", ".join(f"{count(many)} {words.get(times, f'{times} times')}" for times, many in entries if number(many))
