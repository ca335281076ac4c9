"""The section "Sites" of a run's report: who took part when, what did not count and why, bytes, seconds and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report import charts
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.sites import tables
from shepherd.report.sites.history import read_history
from shepherd.report.wording import duration, left_out, listing, number, plural

ROUNDS_DRAWN = 60
SHOWN = {"removed": "left", "working": "idle"}
"""Outcomes that are drawn as another one."""


def sites(record: RunRecord, limits: Limits) -> Section | None:
    """A mark per site and round, and tables; None for a run whose journal has no site."""
    found = read_history(record.path)
    if not found:
        return None
    known = found["sites"]
    caption = (
        "One mark per site and round."
        + left_out(len(known), limits.drawn, "site")
        + left_out(len(_rounds(known)), ROUNDS_DRAWN, "round")
    )
    items: list[Figure | Table | None] = [
        Figure(_picture(known, limits), caption, tables.attendance_table(known, limits)),
        tables.facts_table(known, versions(record), losses(record), limits),
        tables.troubles_table(known, limits),
        tables.pauses_table(found["pauses"], limits),
        tables.ignored_table(known, limits),
        tables.bytes_table(known, limits),
        tables.seconds_table(known, limits),
    ]
    return Section("sites", "Sites", sentences(found), [item for item in items if item is not None])


def versions(record: RunRecord) -> dict[str, str]:
    """The version of each admitted site."""
    return {name: str(site["version"]) for name, site in (record.summary.get("sites") or {}).items()}


def losses(record: RunRecord) -> dict[str, tuple[float | None, float | None, float | None]]:
    """(before, after, held-out rows) of each site that measured the model on rows of its own."""
    arms = record.metrics.get("arms") or {}
    before, after = ((arms.get(arm) or {}).get("per_client") or {} for arm in ("base", "federated"))
    if not after:
        after = next((line["held_out_per_client"] for line in reversed(record.rounds)
                      if line.get("held_out_per_client")), {})  # fmt: skip

    def loss(value: Any, key: str = "loss") -> float | None:
        return number(value.get(key)) if isinstance(value, Mapping) else number(value) if key == "loss" else None

    return {name: (loss(before.get(name)), loss(after.get(name)), loss(after.get(name), "rows"))
            for name in sorted({*before, *after})}  # fmt: skip


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Who took part, who did not and why, and what is waited for."""
    known = found["sites"]
    trained = [name for name, site in known.items() if tables.rounds_of(site)["trained"]]
    rounds = _rounds(known)
    text = [f"{plural(len(trained), 'site')} trained in {plural(len(rounds), 'round')}."]
    troubled = [outcome for site in known.values() for outcome in site["rounds"].values() if outcome in tables.TROUBLES]
    if rounds and not troubled and len(trained) == len(known):
        text[0] += " Every answer that was waited for came and counted."
    opened, began = number(found["opened"]), number(found["began"])
    if opened is not None and began is not None:
        text.append(f"The run opened on {tables.moment(opened)} and had enough sites {duration(began - opened)} later.")
    reasons = {
        name: tables.why("refused", site["reason"]) for name, site in known.items() if site["state"] == "refused"
    }
    text += [f"{name} does not take part: {reason}." for name, reason in reasons.items()]
    for states, what in (
        (("offered",), "did not approve the card"),
        (("never there",), "was expected and never came"),
        (("left",), "left the run"),
        (("removed",), "was removed"),
    ):
        if some := tables.names(known, states):
            text.append(f"{listing(some)} {what if len(some) == 1 else what.replace('was ', 'were ')}.")
    if found["pauses"] and found["pauses"][-1]["until"] is None:
        pause = found["pauses"][-1]
        waits = f" for {listing(pause['missing'])}" if pause["missing"] else ""
        text.append(f"The run has been paused since {tables.moment(pause['from'])}: it waits{waits}.")
    return text


def _rounds(known: Mapping[str, Any]) -> list[int]:
    return sorted({int(at) for site in known.values() for at in site["rounds"]})


def _picture(known: Mapping[str, Any], limits: Limits) -> Any:
    drawn = list(known)[: limits.drawn]
    rounds = charts.thin(_rounds(known), ROUNDS_DRAWN)
    marks = [[SHOWN.get(o := known[name]["rounds"].get(str(at), "absent"), o) for at in rounds] for name in drawn]
    seen = {"trained", *(state for line in marks for state in line)}
    return charts.status_grid(
        drawn,
        [f"{at}" for at in rounds],
        marks,
        title="Sites by round",
        description=f"{plural(len(known), 'site')}, {plural(len(_rounds(known)), 'round')}.",
        x_label="round",
        legend={state: name for state, name in charts.SITE_STATES.items() if state in seen},
    )
