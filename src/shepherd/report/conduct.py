"""How a run went, as sections: budget, division of rows, communication, time, participation. RunRecord -> Section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.report import charts, findings
from shepherd.report.charts import Dots
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.results import knowledge
from shepherd.report.wording import (
    ABSENT,
    count,
    duration,
    left_out,
    listing,
    number,
    percent,
    plainly,
    plural,
    sentence,
    shorten,
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


def division(record: RunRecord, limits: Limits) -> Section:
    """Who holds what, and what each client alone knows better or worse than the federation."""
    heading = "Clients and categories"
    table = record.partition.get("table") or {}
    items: list[Figure | Table] = []
    names, columns, counts = table.get("clients") or [], table.get("categories") or [], table.get("counts") or []
    if len(counts) != len(names) or any(len(line) != len(columns) for line in counts):
        return Section(
            "division", heading, ["partition.json holds a table whose size does not fit its names; it is not drawn."]
        )
    text = []
    if names and columns:
        settings = {k: v for k, v in (record.partition.get("settings") or {}).items() if v not in ("", 0, None)}
        rule = settings.pop("name", "")
        how = ", ".join(f"{k} = {v}" for k, v in settings.items())
        if rule:
            text.append(f"The rows were divided by the partitioner {shorten(f'{rule} ({how})' if how else rule, 300)}.")
        shown = columns[: limits.columns]
        rows = [
            [c, *(count(v) for v in line[: len(shown)]), count(sum(line))]
            for c, line in zip(names, counts, strict=True)
        ]
        totals = [
            "all",
            *(count(sum(line[j] for line in counts)) for j in range(len(shown))),
            count(sum(map(sum, counts))),
        ]
        full = Table(
            "Training rows by client and category",
            ("Client", *shown, "All"),
            [*rows[: limits.rows], totals],
            note=left_out(len(names), limits.rows, "client") + left_out(len(columns), limits.columns, "category"),
            folded=True,
        )
        if plain := _plain_division(names, columns, counts):
            text.append(plain)
            items.append(full)
        else:
            items.append(_drawn_division(names, columns, counts, limits, full))
    items += knowledge(record, limits)
    return Section("division", heading, text or ([] if items else ["No division of the rows is recorded."]), items)


def _plain_division(names: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """What a sentence says as well as a picture of the rows of each client in each category; else nothing."""
    if len(names) == 1:
        return "One client holds all rows."
    if len(columns) == 1:
        return (
            f"All rows are of one category ({shorten(columns[0], 60)})." if columns[0] else "The rows have no category."
        )
    held = [[column for column, rows in zip(columns, line, strict=True) if rows] for line in counts]
    if all(len(categories) == 1 for categories in held):
        each = [categories[0] for categories in held]
        alone = "and no two the same" if len(set(each)) == len(each) else "some of them the same"
        return f"Each client holds rows of one category, {alone}."
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


def participation(record: RunRecord, limits: Limits) -> Section:
    """Who took part in which round, who was missing or rejected and why, and which rows were seen how often."""
    heading = "Who took part"
    if not record.rounds:
        return Section("participation", heading, ["No round was federated."])
    states, reasons = _attendance(record)
    lost = sum(len(_lost(line)) for line in record.rounds)
    names = sorted(states)
    shown_rounds = charts.thin([line["round"] for line in record.rounds], 60)
    drawn, cut = names[: limits.drawn], len(names)
    if len(names) > limits.drawn:
        # Those with trouble first: they are what a reader looks for.
        trouble = {c for c in names if {"rejected", "missing", "late"} & set(states[c].values())}
        drawn = sorted(sorted(names, key=lambda c: (c not in trouble, c))[: limits.drawn])
    picture = charts.status_grid(
        drawn,
        [f"{r}" for r in shown_rounds],
        [[states[c].get(r, "idle") for r in shown_rounds] for c in drawn],
        title="Participation by client and round",
        description=f"{plural(len(names), 'client')}, {plural(len(record.rounds), 'round')}, "
        f"{plural(lost, 'update')} missing, late or rejected.",
        x_label="round",
    )
    text = [
        "Every drawn client trained and returned a usable update."
        if not lost
        else f"{plural(lost, 'update')} did not count: {sum(r[2] == 'missing' for r in reasons)} missing, "
        f"{sum(r[2] == 'late' for r in reasons)} late, {sum(r[2] == 'rejected' for r in reasons)} rejected."
    ]
    asked = Counter(c for line in record.rounds for c in line["cohort"])
    least, most = min((asked[c] for c in names), default=0), max(asked.values(), default=0)
    how = record.setting("selection", "name", record.setting("federation", "selection", "uniform"))
    often = plural(most, "time") if least == most else f"{least} to {most} times"
    text.append(f"With the selection {shorten(str(how), 60)} each client was drawn {often} in {_rounds(record)}.")
    skipped = [line for line in record.rounds if line.get("skipped")]
    for why, some in (
        ("Too few clients gave a usable update", [f"{line['round']}" for line in skipped if line["cohort"]]),
        ("Nobody was drawn", [f"{line['round']}" for line in skipped if not line["cohort"]]),
    ):
        if some:
            text.append(
                f"{why}, so the model stayed as it was, in {'round' if len(some) == 1 else 'rounds'} {listing(some)}."
            )
    if where := record.summary.get("rows_seen"):
        text.append(
            f"How often each row was trained on, by its id, is in {shorten(where, 60)} of the run directory, whether "
            "or not the update counted."
        )
    caption = (
        "One mark per client and round."
        + left_out(cut, limits.drawn, "client", "those with missing, late or rejected updates come first")
        + left_out(len(record.rounds), 60, "round")
    )
    items: list[Figure | Table] = [Figure(picture, caption, _per_client(record, limits, states, asked))]
    if codes := _codes(record):
        items.append(codes)
    if reasons:
        items.append(
            Table(
                "Updates that did not count",
                ("Round", "Client", "State", "Reason", "Detail"),
                reasons[: limits.rows],
                texts=(0, 1, 2, 3, 4),
                note=left_out(len(reasons), limits.rows, "update"),
            )
        )
    return Section("participation", heading, text, items)


def _attendance(record: RunRecord) -> tuple[dict[str, dict[int, str]], list[list[str]]]:
    """Per client and round whether it trained or why not, and the lines (round, client, state, reason, detail) of all
    updates that did not count."""
    states: dict[str, dict[int, str]] = {c: {} for c in record.partition.get("clients") or {}}
    reasons: list[list[str]] = []
    for line in record.rounds:
        rejected = {entry["client"]: entry for entry in line.get("rejected") or ()}
        missing, late = list(line.get("missing") or ()), list(line.get("late") or ())
        for c in {*line["cohort"], *missing, *late, *rejected}:
            state = "rejected" if c in rejected else "missing" if c in missing else "late" if c in late else "trained"
            states.setdefault(c, {})[line["round"]] = state
        reasons += [
            [f"{line['round']}", c, "rejected", str(e.get("code") or ABSENT), str(e.get("detail") or "")]
            for c, e in sorted(rejected.items())
        ]
        reasons += [[f"{line['round']}", c, "missing", "no update came back", ""] for c in sorted(missing)]
        reasons += [[f"{line['round']}", c, "late", "after the deadline or enough others", ""] for c in sorted(late)]
        reasons += [
            [f"{line['round']}", e["client"], "ignored", str(e.get("code") or ABSENT), str(e.get("detail") or "")]
            for e in line.get("ignored") or ()
        ]
        reasons += [
            [f"{line['round']}", c, "quarantined", "asked no more from here on", ""]
            for c in sorted(line.get("quarantined") or ())
        ]
    return states, reasons


def _per_client(
    record: RunRecord, limits: Limits, states: Mapping[str, Mapping[int, str]], asked: Mapping[str, int]
) -> Table:
    """How often each client was drawn and what became of that, and how much it trained on."""
    names = sorted(states)
    seen = record.summary.get("trained_rows") or {}
    sums = {
        c: {
            k: sum(number((line.get(k) or {}).get(c)) or 0 for line in record.rounds)
            for k in ("steps", "examples", "tokens")
        }
        for c in names
    }
    rows, kinds = [], ("trained", "missing", "late", "rejected")
    for c in names[: limits.rows]:
        times = list(states[c].values())
        rows.append(
            [
                c,
                count(asked[c]),
                *(count(times.count(kind)) for kind in kinds),
                *(count(sums[c][k]) for k in ("steps", "examples", "tokens")),
                _seen(seen.get(c)),
            ]
        )
    return Table(
        "Participation of each client",
        ("Client", "Drawn", *map(str.capitalize, kinds), "Steps", "Rows walked", "Tokens", "Rows seen, by how often"),
        rows,
        texts=(0, 9),
        note=left_out(len(names), limits.rows, "client"),
    )


def alerts(record: RunRecord) -> list[str]:
    """What a reader of the headline alone should know: that something was not as it should be, and where to read on."""
    found = []
    if record.summary.get("forced"):
        found.append("The run was resumed with --force although something differed: see Resumed with differences.")
    if skipped := sum(bool(line.get("skipped")) for line in record.rounds):
        found.append(f"{plural(skipped, 'round')} of {len(record.rounds)} left the model as it was: see Who took part.")
    asked = sum(len(line["cohort"]) for line in record.rounds)
    lost = sum(len(_lost(line)) for line in record.rounds)
    if lost:
        found.append(f"{plural(lost, 'update')} of {asked:,} did not count: see Who took part.")
    if failed := record.summary.get("failed"):
        found.append(
            f"Training alone failed for {plural(len(failed), 'client')}, left out of all means: see Per client."
        )
    if findings.some_alone(record):
        found.append(f"The mean and the best of the clients alone are those of {findings.trained_alone(record)}.")
    broken = [arm.name for arm in findings.arms(record) if arm.loss is None]
    if broken:
        found.append(f"No finite held-out loss was measured for: {listing(broken)}.")
    return found


def _lost(line: Mapping[str, Any]) -> set[str]:
    """Clients of a round whose update did not count."""
    rejected = {entry["client"] for entry in line.get("rejected") or ()}
    return {*rejected, *(line.get("missing") or ()), *(line.get("late") or ())}


def resumptions(record: RunRecord, limits: Limits) -> Section | None:
    """What was found damaged or unfinished each time that the run was resumed; None where nothing was."""
    found = record.summary.get("found")
    if not isinstance(found, list) or not found:
        return None
    text = "This was found when the run was resumed. A round that was passed over was trained again."
    lines = [shorten(str(line), 300) for line in found[: limits.rows]]
    rest = left_out(len(found), limits.rows, "line").strip()
    return Section("resumed", "Found when resumed", [text, *lines, *([rest] if rest else [])])


def _codes(record: RunRecord) -> Table | None:
    """Answers that could not be used, by their code; None where there were none."""
    clients: dict[tuple[str, str], list[str]] = {}
    for line in record.rounds:
        for state in ("rejected", "ignored"):
            for entry in line.get(state) or ():
                clients.setdefault((state, str(entry.get("code") or ABSENT)), []).append(entry["client"])
    if not clients:
        return None
    rows = [
        [code, state, count(len(who)), count(len(set(who))), listing([shorten(c, 24) for c in sorted(set(who))], 5)]
        for (state, code), who in sorted(clients.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return Table(
        "Unusable answers by code", ("Code", "State", "Answers", "Clients", "Who"), rows, texts=(0, 1, 4),
        note="Ignored: sent beside an answer that counted.",
    )  # fmt: skip


def _rounds(record: RunRecord) -> str:
    return plural(len(record.rounds), "round")


def _seen(value: Mapping[str, Any] | None) -> str:
    """Rows by the number of times they were trained on: `2 never, 30 once, 4 twice`."""
    if not value or not isinstance(value.get("seen"), Mapping):
        return ABSENT
    words = {"0": "never", "1": "once", "2": "twice"}
    entries = sorted(value["seen"].items(), key=lambda entry: (len(entry[0]), entry[0]))
    return ", ".join(f"{count(many)} {words.get(times, f'{times} times')}" for times, many in entries if number(many))
