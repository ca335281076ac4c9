"""Tables of a run over sites: rounds of each site, what did not count, bytes, seconds and losses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shepherd.outcomes import VERDICTS
from shepherd.report.page import Limits, Table, without_empty
from shepherd.report.wording import ABSENT, count, digits, duration, left_out, number, signed, size

OUTCOMES = {
    "trained": "Trained", "late": "Late", "lost": "Lost", "failed": "Failed", "rejected": "Rejected",
    "idle": "Not sampled", "absent": "Absent", "refused": "Refused", "left": "Left", "removed": "Removed",
}  # fmt: skip
"""Outcomes of a site in a round, and their columns."""
WHY = {
    "lost": "the site was gone, or its trainer ended",
    "hang": "no step for as long as the coordinator waits for one",
    "unreached": "sampled, and not back after the coordinator's restart",
    "no-state": "the private state of the round was not there",
    "diverged": "its loss was not finite",
    "out-of-memory": "its memory ran out",
    "duplicate": "another answer after one that counted",
    "unasked": "an answer to no question",
    "uninvited": "an answer of a site that was not asked in this attempt",
    "other-run": "a message of another run",
    "lease": "a message of a process that does not hold the site's lease",
    "count": "numbers that cannot be",
}
"""Codes of a journal that are no verdict of a site, in words."""
TROUBLES = ("late", "lost", "failed", "rejected", "refused", "left", "removed")


def why(outcome: str, code: str) -> str:
    """The reason of an outcome in words; a code that has none as it is."""
    if outcome == "late":
        return "connected, and without an answer at the deadline"
    if code.startswith("error:"):
        return f"its training raised {code.removeprefix('error:')}"
    words = VERDICTS.get(code) or WHY.get(code)
    return words or (f"its answer could not be used: {code}" if outcome == "rejected" and code else code)


def rounds_of(site: Mapping[str, Any]) -> Counter[str]:
    """How often a site had each outcome."""
    return Counter(site["rounds"].values())


def attendance_table(sites: Mapping[str, Any], limits: Limits) -> Table:
    """One line per site: its rounds by outcome, bytes, and the mean seconds until an answer."""
    used = [key for key in OUTCOMES if any(key in site["rounds"].values() for site in sites.values())]
    rows = []
    for name in list(sites)[: limits.rows]:
        site, seconds = sites[name], list(sites[name]["seconds"].values())
        outcomes = rounds_of(site)
        rows.append(
            [name, state_of(site), *(count(outcomes[key]) for key in used), size(site["bytes_up"]),
             size(site["bytes_down"]), duration(sum(seconds) / len(seconds)) if seconds else ABSENT]
        )  # fmt: skip
    columns = ("Site", "State", *(OUTCOMES[key] for key in used), "Up", "Down", "Mean time")
    note = left_out(len(sites), limits.rows, "site")
    note += " Up and down: bytes of questions and answers, offers and measures included. Mean time: until an update."
    return without_empty(Table("Rounds of each site", columns, rows, texts=(0, 1), note=note.strip()))


def state_of(site: Mapping[str, Any]) -> str:
    """The last state of a site in a word or two."""
    words = {"offered": "not approved", "connected": "connected", "never there": "never came"}
    if site["state"] in (*words, "refused", "left", "removed"):
        return words.get(site["state"], site["state"])
    return "takes part" if site["present"] else "away"


def troubles_table(sites: Mapping[str, Any], limits: Limits) -> Table | None:
    """What was late, lost, failed, rejected or refused, by round; None where nothing was."""
    rounds: dict[tuple[str, str, str], list[int]] = {}
    for name, site in sites.items():
        for at, outcome in site["rounds"].items():
            if outcome in TROUBLES:
                reason = why(outcome, site["reasons"].get(at, ""))
                rounds.setdefault((name, outcome, reason), []).append(int(at))
    if not rounds:
        return None
    found = sorted((sorted(at), *what) for what, at in rounds.items())
    rows = [[spans(at), *what] for at, *what in found[: limits.rows]]
    note = left_out(len(found), limits.rows, "entry")
    return Table("What was late, lost or refused", ("Rounds", "Site", "Outcome", "Why"), rows, (0, 1, 2, 3), note)


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers in short: `1–6, 8`."""
    found: list[list[int]] = []
    for at in numbers:
        if found and at == found[-1][1] + 1:
            found[-1][1] = at
        else:
            found.append([at, at])
    return ", ".join(f"{low}" if low == high else f"{low}\N{EN DASH}{high}" for low, high in found)


def facts_table(sites: Mapping[str, Any], versions: Mapping[str, str], losses: Mapping[str, Any],
                limits: Limits) -> Table:  # fmt: skip
    """What each site stated: rows, digest, version; and the losses of its own held-out rows before and after."""
    admitted = [name for name, site in sites.items() if site["digest"]]
    rows = []
    for name in admitted[: limits.rows]:
        site, (before, after, held_out) = sites[name], losses.get(name, (None, None, None))
        gap = after - before if before is not None and after is not None else None
        rows.append([name, count(site["rows"]), site["digest"][:12], versions.get(name, ABSENT), count(held_out),
                     digits(before), digits(after), signed(gap)])  # fmt: skip
    columns = ("Site", "Rows as stated", "Digest", "Version", "Held out", "Loss before", "Loss after", "Difference")
    note = left_out(len(admitted), limits.rows, "site")
    note += " Loss: nats per target token on the rows that the site holds out, as it states them. Digest: of its rows, "
    note += "with its own salt."
    return without_empty(Table("What each site stated", columns, rows, texts=(0, 2, 3), note=note.strip()))


def bytes_table(sites: Mapping[str, Any], limits: Limits) -> Table | None:
    """Bytes up and down of each site in each round; None where the journal has none."""
    some = [name for name in sites if sites[name]["by_round"]]
    shown = some[: limits.columns // 2]
    numbers = sorted({int(at) for name in shown for at in sites[name]["by_round"]})
    if not shown:
        return None
    rows = []
    for at in numbers[: limits.rows]:
        each = [sites[name]["by_round"].get(str(at), (None, None)) for name in shown]
        rows.append([f"{at}" if at else "offers", *(size(value) for pair in each for value in pair)])
    note = left_out(len(some), len(shown), "site") + left_out(len(numbers), limits.rows, "round")
    return Table("Bytes of each site by round", ("Round", *("Up", "Down") * len(shown)), rows, note=note.strip(),
                 folded=True, groups=[("", 1), *((name, 2) for name in shown)])  # fmt: skip


def seconds_table(sites: Mapping[str, Any], limits: Limits) -> Table | None:
    """Seconds from the task of a round to the answer of each site; None where the journal has none."""
    some = [name for name in sites if sites[name]["seconds"]]
    shown = some[: limits.columns]
    numbers = sorted({int(at) for name in shown for at in sites[name]["seconds"]})
    if not shown:
        return None
    rows = [
        [f"{at}", *(duration(sites[name]["seconds"].get(str(at))) for name in shown)] for at in numbers[: limits.rows]
    ]
    note = left_out(len(some), len(shown), "site") + left_out(len(numbers), limits.rows, "round")
    return Table("Time until the answer of each site", ("Round", *shown), rows, note=note.strip(), folded=True)


def pauses_table(pauses: Sequence[Mapping[str, Any]], limits: Limits) -> Table | None:
    """When the run waited for sites; None where it never did."""
    if not pauses:
        return None
    rows = [
        [f"{pause['round']}", moment(pause["from"]), _length(pause), ", ".join(pause["missing"]) or ABSENT]
        for pause in pauses[: limits.rows]
    ]
    note = left_out(len(pauses), limits.rows, "pause")
    return Table("Pauses", ("Before round", "From", "For", "Not there"), rows, (0, 1, 3), note)


def ignored_table(sites: Mapping[str, Any], limits: Limits) -> Table | None:
    """Messages that had no effect, by site and reason; None where there were none."""
    found = [(name, why("", code), count(times)) for name, site in sites.items()
             for code, times in sorted(site["ignored"].items())]  # fmt: skip
    if not found:
        return None
    note = left_out(len(found), limits.rows, "reason")
    return Table("Messages without effect", ("Site", "Why", "Times"), found[: limits.rows], (0, 1), note)


def moment(at: Any) -> str:
    """A time of the journal in UTC: a report is read in other places than it was written in."""
    seconds = number(at)
    return ABSENT if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _length(pause: Mapping[str, Any]) -> str:
    begin, end = number(pause["from"]), number(pause["until"])
    return "it still waits" if end is None or begin is None else duration(end - begin)


def names(sites: Mapping[str, Any], states: Iterable[str]) -> list[str]:
    """The sites that are in one of some states at the end."""
    return [name for name, site in sites.items() if site["state"] in states]
