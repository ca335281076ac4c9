"""How a run went, as sections: budget, division of rows, communication, time, participation. RunRecord -> Section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from shepherd.report import charts, findings
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.sections.budget import _seen
from shepherd.report.wording import (
    ABSENT,
    count,
    left_out,
    listing,
    number,
    plural,
    shorten,
)


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
