"""Participation of clients: a mark per client and round, totals per client, and the updates that did not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from shepherd.outcomes import OUTCOMES, TROUBLES
from shepherd.report import charts
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.sections.attendance import Attendance, attendance
from shepherd.report.wording import ABSENT, count, left_out, listing, number, plural, shorten, significant

ROUNDS_DRAWN = 60


def participation(record: RunRecord, limits: Limits) -> Section:
    """Participation by round and client, updates that did not count with reasons, and times that rows were seen."""
    heading = "Participation"
    if not record.rounds:
        return Section("participation", heading, ["No federated round was run."])
    seen = attendance(record)
    caption = (
        "One mark per client and round."
        + left_out(len(seen.clients), limits.drawn, "client", "those with updates that did not count come first")
        + left_out(len(record.rounds), ROUNDS_DRAWN, "round")
    )
    items: list[Figure | Table] = [Figure(_picture(record, seen, limits), caption, _per_client(record, seen, limits))]
    if any(incident.coded for incident in seen.incidents):
        items.append(_codes(seen))
    if seen.incidents:
        items.append(
            Table(
                "Updates that did not count",
                ("Round", "Client", "Outcome", "Reason", "Detail"),
                [[f"{i.round}", i.client, i.outcome, i.reason, i.detail] for i in seen.incidents[: limits.rows]],
                texts=(0, 1, 2, 3, 4),
                note=left_out(len(seen.incidents), limits.rows, "update"),
            )
        )
    return Section("participation", heading, _text(record, seen), items)


def _text(record: RunRecord, seen: Attendance) -> list[str]:
    troubles = seen.troubles
    text = ["Every sampled client trained and returned a usable update."]
    if troubles:
        counts = listing([f"{troubles[outcome]} {outcome}" for outcome in OUTCOMES if outcome in TROUBLES])
        text = [f"{plural(troubles.total(), 'update')} did not count: {counts}."]
    draws = [seen.sampled[client] for client in seen.clients]
    least, most = min(draws, default=0), max(draws, default=0)
    how = record.setting("selection", "name", record.setting("federation", "selection", "uniform"))
    often = plural(most, "time") if least == most else f"{least} to {most} times"
    rounds = plural(len(record.rounds), "round")
    text.append(f"With the selection {shorten(str(how), 60)} each client was sampled {often} in {rounds}.")
    skipped = [line for line in record.rounds if line.get("skipped")]
    for why, numbers in (
        ("Too few clients gave a usable update", [f"{line['round']}" for line in skipped if line["cohort"]]),
        ("No client was sampled", [f"{line['round']}" for line in skipped if not line["cohort"]]),
    ):
        if numbers:
            when = f"{'round' if len(numbers) == 1 else 'rounds'} {listing(numbers)}"
            text.append(f"{why}, so the model is unchanged in {when}.")
    clipped = [line["clipped"] for line in record.rounds if "clipped" in line]
    if clipped:
        counted = sum(len(line.get("weights") or {}) for line in record.rounds if "clipped" in line)
        limit = record.setting("federation", "clip_update_norm")
        to = "the median norm of the round before" if limit == "median" else f"an L2 norm of {significant(limit)}"
        text.append(f"{sum(clipped)} of {plural(counted, 'update')} that count were clipped to {to}.")
    if where := record.summary.get("rows_seen"):
        text.append(
            f"How often each row was trained on, by its id, is in {shorten(where, 60)} of the run directory, whether "
            "or not the update counted."
        )
    return text


def _picture(record: RunRecord, seen: Attendance, limits: Limits) -> Markup:
    rounds = charts.thin([line["round"] for line in record.rounds], ROUNDS_DRAWN)
    # Clients with trouble first: a reader looks for them.
    calm = {c for c in seen.clients if not TROUBLES & set(seen.outcomes[c].values())}
    drawn = sorted(sorted(seen.clients, key=lambda c: (c in calm, c))[: limits.drawn])
    return charts.status_grid(
        drawn,
        [f"{r}" for r in rounds],
        [[seen.outcomes[c].get(r, "idle") for r in rounds] for c in drawn],
        title="Participation by client and round",
        description=f"{plural(len(seen.clients), 'client')}, {plural(len(record.rounds), 'round')}, "
        f"{plural(seen.troubles.total(), 'update')} that did not count.",
        x_label="round",
    )


def _per_client(record: RunRecord, seen: Attendance, limits: Limits) -> Table:
    """Rounds, outcomes, steps, rows and tokens of each client."""
    trained = record.summary.get("trained_rows") or {}
    sizes = ("steps", "examples", "tokens")
    rows = []
    for client in seen.clients[: limits.rows]:
        outcomes = list(seen.outcomes[client].values())
        sums = [sum(number((line.get(key) or {}).get(client)) or 0 for line in record.rounds) for key in sizes]
        rows.append(
            [
                client,
                count(seen.sampled[client]),
                *(count(outcomes.count(outcome)) for outcome in OUTCOMES),
                *map(count, sums),
                _times_seen(trained.get(client)),
            ]
        )
    columns = (
        "Client",
        "Sampled",
        *map(str.capitalize, OUTCOMES),
        "Steps",
        "Rows",
        "Tokens",
        "Rows by times seen",
    )
    note = left_out(len(seen.clients), limits.rows, "client")
    return Table("Participation of each client", columns, rows, texts=(0, len(columns) - 1), note=note)


def _codes(seen: Attendance) -> Table:
    """Updates that did not count, by code."""
    clients: dict[tuple[str, str], list[str]] = {}
    for incident in seen.incidents:
        if incident.coded:
            clients.setdefault((incident.outcome, incident.reason), []).append(incident.client)
    rows = [
        [code, outcome, count(len(who)), count(len(set(who))), listing([shorten(c, 24) for c in sorted(set(who))], 5)]
        for (outcome, code), who in sorted(clients.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return Table(
        "Updates that did not count, by code",
        ("Code", "Outcome", "Times", "Clients", "Names"),
        rows,
        texts=(0, 1, 4),
        note="Ignored: sent besides the update that counted.",
    )


def _times_seen(trained: Mapping[str, Any] | None) -> str:
    """Rows by the number of times they were trained on: `2 never, 30 once, 4 twice`."""
    if not trained or not isinstance(trained.get("seen"), Mapping):
        return ABSENT
    words = {"0": "never", "1": "once", "2": "twice"}
    entries = sorted(trained["seen"].items(), key=lambda entry: (len(entry[0]), entry[0]))
    return ", ".join(f"{count(rows)} {words.get(times, f'{times} times')}" for times, rows in entries if number(rows))
