"""The report of one site, for its operator: what left the site, when and how much, its own losses, its policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.outcomes import VERDICTS
from shepherd.report import charts
from shepherd.report.charts import Dots
from shepherd.report.comparison.tables import plain_text
from shepherd.report.page import Figure, Limits, Section, Table, render, without_empty, write_page
from shepherd.report.sites.site_log import KINDS, OFFERS
from shepherd.report.wording import ABSENT, clean, count, digits, left_out, listing, number, plural, size

REFUSED = 5
"""Most refused runs that a sentence names."""

Policy = Sequence[tuple[str, str]]


def write_site_report(path: Path, name: str, found: Mapping[str, Any], policy: Policy) -> Path:
    """Write the page of a site. found: see `read_site_log`; policy: (what, the limit in words)."""
    limits, runs = Limits(), found["runs"]
    sections = [_policy(policy)] if policy else []
    sections += [_section(key, run, runs[run], limits) for key, run in zip("abcdefghij", runs, strict=False)]
    page = render(
        "site.html.j2",
        title=name,
        facts=[plural(len(runs), "run"), f"{size(_sum(runs, 'bytes_out'))} left this site"],
        verdict=sentences(found),
        items=[table for table in (overview(runs, limits), privacy_table(runs, limits)) if table] if runs else [],
        sections=sections,
    )
    return write_page(path, page)


def site_text(found: Mapping[str, Any], policy: Policy) -> str:
    """The same for a terminal; of the runs, the rounds of the newest."""
    limits, runs = Limits(), found["runs"]
    parts = ["\n".join(map(clean, sentences(found)))]
    if runs:
        newest = next(iter(runs))
        tables = (overview(runs, limits), privacy_table(runs, limits), _by_round(runs[newest], limits))
        if lines := rows_text(runs[newest]["use_of_rows"]):
            parts.append("\n".join(map(clean, [f"Rows in the run {newest[:12]}:", *lines])))
        parts += [plain_text(table) for table in tables if table]
    if policy:
        parts.append(plain_text(Table("Policy of this site", ("", ""), policy, texts=(0, 1))))
    return "\n\n".join(parts) + "\n\n"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """How much left the site, and what the coordinator never had."""
    runs = found["runs"]
    refused, removed = found["refused"], found["removed"]
    if not runs:
        text = [
            "No folder of a run is here." if removed
            else "This site has taken part in no run." if refused
            else "No run was offered to this site."
        ]  # fmt: skip
    else:
        sent, received = _sum(runs, "bytes_out"), _sum(runs, "bytes_in")
        text = [f"In {plural(len(runs), 'run')} {size(sent)} left this site, and {size(received)} came to it."]
    text.append(
        "What leaves is the update of an adapter, numbers of rows, tokens and steps, sums of losses, codes and "
        "digests; rows, paths, ids, the texts of errors and this report stay here."
    )
    waiting = [run for run, about in runs.items() if about["state"] == "not admitted"]
    if waiting:
        text.append(f"Not admitted, so no row was read for it: {listing(waiting)}.")
    if refused:
        text.append(_refused(refused))
    if removed:
        names = listing([run[:12] for run in reversed(removed)], REFUSED)
        text.append(f"{size(_sum(removed, 'bytes_out'))} left this site in runs whose folders are gone: {names}.")
    if unreadable := found["other"].get("unreadable"):
        text.append(f"{plural(unreadable, 'message')} could not be read and had no effect.")
    if repeated := found["other"].get("repeated"):
        text.append(f"{plural(repeated, 'question')} came again and got the same answer again.")
    return text


def _refused(refused: Mapping[str, Any]) -> str:
    """The runs in which the site never took part, the newest first, with the reasons."""
    named = [
        f"{run[:12]} ({'; '.join(VERDICTS.get(code, code) for code in about['verdicts'])})"
        for run, about in [*refused.items()][::-1]
    ]
    sent = size(_sum(refused, "bytes_out"))
    return f"Refused, with no row read: {listing(named, REFUSED)}. {sent} left this site in the answers."


def overview(runs: Mapping[str, Any], limits: Limits) -> Table:
    """One line per run."""
    rows = [
        [run[:12], about["name"], _state(about), count(about["rows"]), size(about["bytes_out"]),
         size(about["bytes_in"]), digits(about["base_loss"]), digits(_last(about)), digits(about["own_loss"])]
        for run, about in list(runs.items())[: limits.rows]
    ]  # fmt: skip
    columns = ("Run", "Name", "State", "Rows as stated", "Left", "Came", "Loss before", "Loss after", "Own model")
    note = left_out(len(runs), limits.rows, "run")
    note += " Loss: nats per target token on the rows that this site holds out."
    return without_empty(Table("Runs of this site", columns, rows, texts=(0, 1, 2), note=note.strip()))


def privacy_table(runs: Mapping[str, Any], limits: Limits) -> Table | None:
    """What has left under privacy, one line per private run; None without any."""
    private = {run: about["privacy"] for run, about in runs.items() if about.get("privacy")}
    if not private:
        return None
    rows = [
        [run[:12], found["unit"], count(found["releases"]), digits(found["epsilon"]), f"{found['delta']:g}",
         f"{found['noise_multiplier']:g}", f"{found['clip']:g}", _noise_by(found)]
        for run, found in list(private.items())[: limits.rows]
    ]  # fmt: skip
    columns = ("Run", "Unit", "Releases", "ε so far", "δ", "z", "C", "Noise by")
    note = left_out(len(private), limits.rows, "run")
    note += (
        " Unit example: what this site entered in its own ledger. Unit client: its updates, and ε of all rounds so far "
        "by the card; whether the coordinator adds that noise, no site sees. ε of several runs adds up."
    )
    return Table("Privacy of what left", columns, rows, texts=(0, 1, 7), note=note.strip())


def rows_text(found: Mapping[str, Any]) -> list[str]:
    """How many rows of the site are trained on and held out, and why the others are not; [] where nothing is known.

    found: "trained_on", "held_out" and "notes", or "error" and "hint" of rows that could not be used.
    """
    if "error" in found:
        hint = f" ({found['hint']})" if found.get("hint") else ""
        return [f"the rows cannot be used: {found['error']}{hint}"]
    if "trained_on" not in found:
        return []
    held_out = number(found.get("held_out")) or 0
    first = f"{plural(int(found['trained_on']), 'row')} of this site trained on, {count(held_out)} held out"
    return [first, *(str(note) for note in found.get("notes", ()))]


def _noise_by(found: Mapping[str, Any]) -> str:
    return f"the {found['drawn_by']}" + (", repeatable: not private" if found["noise"] != "secret" else "")


def _section(key: str, run: str, about: Mapping[str, Any], limits: Limits) -> Section:
    text = [f"{about['name'] or 'A run'}: {_state(about)}."]
    if about.get("privacy"):
        text.append(about["privacy"]["trust"])
    text += rows_text(about["use_of_rows"])
    models = {
        "own": "its own model (shepherd chat of this folder)",
        "global": "the last global model that was sent here",
    }
    if kept := [models[name] for name in about["models"]]:
        text.append(f"This site keeps {' and '.join(kept)}.")
    rounds = {key: entry for key, entry in about["rounds"].items() if key.isdecimal()}
    items: list[Figure | Table] = []
    if rounds:
        items.append(
            Figure(_picture(rounds, about), "Bytes that left this site and came to it.", _by_round(about, limits))
        )
    elif about["rounds"]:
        items.append(_by_round(about, limits))
    if about["kinds"]:
        items.append(_by_kind(about))
    facts = [["Base", about["base"]], ["Method", about["method"]], ["Personal models", about["personal"]],
             ["Card (sha256)", str(about["card"] or ABSENT)],
             ["Digest of the rows, salted", str(about["digest"] or ABSENT)]]  # fmt: skip
    items.append(Table("The run", ("", ""), facts, texts=(0, 1)))
    return Section(f"run{key}", f"Run {run[:12]}", text, items)


def _picture(rounds: Mapping[str, Any], about: Mapping[str, Any]) -> Any:
    numbers = charts.thin(sorted(rounds, key=int), 60)
    series = [
        Dots("left", "s2", [number(rounds[at]["bytes_out"]) for at in numbers]),
        Dots("came", "s1", [number(rounds[at]["bytes_in"]) for at in numbers]),
    ]
    description = (
        f"{size(about['bytes_out'])} left and {size(about['bytes_in'])} came in {plural(len(rounds), 'round')}."
    )
    return charts.bar_chart(numbers, series, title="Bytes by round", description=description, x_label="round",
                            y_label="bytes of a round", write=size)  # fmt: skip


def _by_round(about: Mapping[str, Any], limits: Limits) -> Table:
    entries = about["rounds"]
    order = sorted(
        entries, key=lambda key: (key != OFFERS, not key.isdecimal(), int(key) if key.isdecimal() else 0, key)
    )
    rows = [
        [key, _moment(entry["first"]), _moment(entry["last"]), count(entry["messages"]),
         size(entry["bytes_out"]), size(entry["bytes_in"]), digits(entry["train_loss"]), digits(entry["loss"]),
         listing(sorted({VERDICTS.get(code, code) for code in entry["against"]}), 3) or ABSENT]
        for key, entry in ((key, entries[key]) for key in order[: limits.rows])
    ]  # fmt: skip
    columns = (
        "Round",
        "First",
        "Last",
        "Messages",
        "Left",
        "Came",
        "Training loss",
        "Held-out loss",
        "Not done, because",
    )
    note = left_out(len(entries), limits.rows, "round")
    return without_empty(Table("By round", columns, rows, texts=(0, 8), note=note))


def _by_kind(about: Mapping[str, Any]) -> Table:
    rows = [
        [KINDS[kind], count(entry["messages"]), size(entry["bytes_out"]), size(entry["bytes_in"]),
         listing([f"{times} × {verdict or 'done'}" for verdict, times in sorted(entry["verdicts"].items())])]
        for kind, entry in about["kinds"].items()
    ]  # fmt: skip
    return Table("By kind of message", ("", "Messages", "Left", "Came", "Verdicts"), rows, texts=(0, 4))


def _policy(policy: Policy) -> Section:
    return Section("policy", "Policy of this site", [], [Table("From site.toml", ("", ""), policy, texts=(0, 1))])


def _state(about: Mapping[str, Any]) -> str:
    words = {"admitted": "approved", "declined": "declined"}.get(about["decision"])
    return about["state"] + (f", {words} on {_moment(about['decided'])}" if words else "")


def _moment(text: Any) -> str:
    """A time of the log, in the site's own hours."""
    return str(text).replace("T", " ") if text else ABSENT


def _last(about: Mapping[str, Any]) -> float | None:
    """The loss of the newest global model that was measured here."""
    losses = [(int(key), entry["loss"]) for key, entry in about["rounds"].items() if key.isdecimal()]
    known = [(key, loss) for key, loss in losses if loss is not None]
    return max(known)[1] if known else None


def _sum(runs: Mapping[str, Any], key: str) -> int:
    return sum(about[key] for about in runs.values())


def site_facts(name: str, path: Path, found: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """The report as JSON values."""
    return {"site": name, "report": str(path), "policy": dict(policy), **json.loads(json.dumps(found))}
