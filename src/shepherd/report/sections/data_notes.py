"""Data of a run: sources, refused and changed rows, the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Section, Table, without_empty
from shepherd.report.sections.guarantee import withholds
from shepherd.report.wording import (
    ABSENT,
    count,
    left_out,
    listing,
    number,
    plain,
    plural,
    shorten,
)

IDS_TEXT = 20_000
"""Most characters of ids in a cell."""


def data_notes(record: RunRecord, limits: Limits) -> Section:
    """Sources of the rows, refused and changed rows, and findings of the audit."""
    data = record.summary.get("data") or {}
    if not data:
        return Section("data", "Data", ["The run has not recorded its data yet."])
    labels = {
        "name": "Source",
        "licence": "Licence",
        "digest": "Digest (sha256)",
        "rows": "Rows read",
        "train_rows": "Rows for training",
        "held_out_rows": "Rows held out",
        "cut_rows": "Rows cut to the maximum length",
        "cut_tokens": "Tokens cut",
    }
    rows = [[label, plain(data[key])] for key, label in labels.items() if key in data]
    rows += [
        [key.replace("_", " "), plain(v)]
        for key, v in data.items()
        if key not in labels and key not in ("refused", "changed", "notes", "audit", "details")
    ]
    items = [Table("Data of this run", ("", ""), rows, texts=(0, 1))]
    text = ["How many rows were read and refused is withheld." if withholds(record) else "No row was refused."]
    for what, counts in (("refused", data.get("refused")), ("changed", data.get("changed"))):
        if isinstance(counts, Mapping) and counts:
            items.append(_reasons(f"{what.capitalize()} rows", counts, limits))
            total = sum(number(v[0] if isinstance(v, list) and v else v) or 0 for v in counts.values())
            if what == "refused":
                text = [f"{plural(int(total), 'row')} could not be used; the reasons are below."]
            else:  # a row may be counted for several reasons
                text.append("Some rows were shortened or changed; the reasons are below.")
    notes = data.get("notes")
    text += [shorten(str(note), 300) for note in notes[: limits.rows]] if isinstance(notes, list) else []
    if isinstance(details := data.get("details"), Mapping) and details:
        items.append(_cases(details, limits))
    if audit := data.get("audit"):
        items.append(_audit(audit, limits))
    if record.left_out:
        items.append(_left_out(record.left_out, limits))
    return Section("data", "Data", [*text, *record.notes], items)


def _reasons(title: str, counts: Mapping[str, Any], limits: Limits) -> Table:
    """Reasons, their numbers of rows, and the first places of these rows."""
    lines = []
    for reason, value in counts.items():
        many, where = value if isinstance(value, list) and len(value) == 2 else (value, [])
        first = listing([shorten(str(w), 60) for w in where], 3) if isinstance(where, list) and where else ABSENT
        lines.append([reason, count(many), first])
    note = left_out(len(lines), limits.rows, "reason")
    return without_empty(
        Table(title, ("Reason", "Rows", "First places"), lines[: limits.rows], texts=(0, 2), note=note)
    )


def _cases(details: Mapping[str, Any], limits: Limits) -> Table:
    """All cases of warnings that name a few of them, as far as the page has room."""
    texts = [shorten(str(case), 200) for each in details.values() if isinstance(each, list) for case in each]
    cases = [[count(number), text] for number, text in enumerate(texts, 1)]
    most = len(cases) if limits.rows >= Limits().rows else limits.rows
    note = left_out(len(cases), most, "case", "all are in summary.json")
    return Table(
        "All cases of the warnings about categories and names", ("", "Case"), cases[:most], (0, 1), note, folded=True
    )


def _left_out(lines: Sequence[Mapping[str, Any]], limits: Limits) -> Table:
    """All rows that were refused, changed or found by the audit, with = between ids that share a finding."""
    rows = [
        [line["what"], shorten(line["reason"], 200), shorten("; ".join(map(" = ".join, line["groups"])), IDS_TEXT)]
        for line in lines
    ]
    note = left_out(len(rows), limits.rows, "reason")
    note += " evaluation/left_out.jsonl has the same as JSON."
    caption = "All rows that were refused, changed or found by the audit"
    return Table(caption, ("", "Reason", "Rows"), rows[: limits.rows], (0, 1, 2), note.strip(), folded=True)


def _audit(audit: Any, limits: Limits) -> Table:
    """Findings of the audit: a list of {kind, count, groups of the first ids}, or a mapping of kinds to counts."""
    found = audit if isinstance(audit, list) else [{"kind": kind, "count": v} for kind, v in dict(audit).items()]
    lines = []
    for entry in (entry for entry in found if isinstance(entry, Mapping)):
        groups = [group for group in entry.get("groups") or () if isinstance(group, list)]
        ids = "; ".join(" = ".join(shorten(str(row), 40) for row in group) for group in groups)
        more = "; …" if groups and sum(map(len, groups)) < (number(entry.get("count")) or 0) else ""
        lines.append([plain(entry.get("kind")), count(entry.get("count")), ids + more or ABSENT])
    note = left_out(len(lines), limits.rows, "finding")
    note += " Ids with = between them share the finding." if any(" = " in line[2] for line in lines) else ""
    return without_empty(
        Table("Audit", ("Finding", "Rows", "First ids"), lines[: limits.rows], texts=(0, 2), note=note)
    )
