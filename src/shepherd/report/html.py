"""`write_report(run_dir)`: one HTML file that says what a run did and brought, offline, without scripts.

Every section is a function RunRecord -> Section: results.py holds what the run brought, conduct.py how it went, and
this file the rest and the order. Long lists are shortened (`Limits`) and say how many entries are left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.errors import ResourceError
from shepherd.report import conduct, findings, results
from shepherd.report.diagnostics import diagnostics
from shepherd.report.headline import headline
from shepherd.report.load import RunRecord, load_run
from shepherd.report.page import LARGEST, LEVELS, Limits, Section, Table, render, without_empty, write_page
from shepherd.report.personal import personal
from shepherd.report.verdict import verdict
from shepherd.report.wording import (
    ABSENT,
    clean,
    count,
    digits,
    left_out,
    listing,
    number,
    percent,
    plainly,
    plural,
    shorten,
    significant,
    size,
)

IDS_TEXT = 20_000
"""Most characters of ids in a cell."""


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises DataError when a file of the run is missing or broken. A run that has not ended is reported as far as
    it is.
    """
    record = load_run(run_dir)
    for limits in LEVELS:
        page = render("report.html.j2", **view(record, limits))
        if len(page.encode("utf-8")) <= LARGEST:
            return write_page(record.path / "report.html", page)
    raise ResourceError(f"the report of {record.path} would be larger than {size(LARGEST)}", hint="shorten its names")


def view(record: RunRecord, limits: Limits) -> dict[str, Any]:
    """All that the template prints."""
    before = [
        conduct.budget(record, limits),
        results.rounds(record, limits),
        results.clients(record, limits),
        *([own] if (own := personal(record, limits)) else []),
        results.categories(record, limits),
        conduct.division(record, limits),
    ]
    after = [
        conduct.traffic(record, limits),
        conduct.time(record, limits),
        conduct.participation(record, limits),
        *([mended] if (mended := conduct.resumptions(record, limits)) else []),
        diagnostics(record, limits),
        data_notes(record, limits),
        privacy(record),
    ]
    if record.summary.get("forced"):
        before.insert(0, forced(record))
    contents = [(part.key, part.heading) for part in before]
    contents += [
        ("samples", "Before and after"),
        *((part.key, part.heading) for part in after),
        ("settings", "Settings"),
    ]
    return {
        "title": record.name,
        "state": record.state,
        "facts": facts(record),
        "contents": contents,
        "verdict": verdict(record),
        "alerts": conduct.alerts(record),
        "cards": results.cards(record),
        "measure": results.measure(record),
        "headline": headline(record, limits),
        "before": before,
        **samples(record, limits),
        "after": after,
        "commands": commands(record),
        "config_text": record.config_text,
        "versions": versions(record),
    }


def forced(record: RunRecord) -> Section:
    """That the run was resumed although something differed, and what."""
    text = (
        "This run was resumed with --force although it was started with something else, or its own lines were changed. "
        "Its numbers are not those of an unbroken run."
    )
    lines = [shorten(str(line), 300) for line in record.summary["forced"]]
    return Section("forced", "Resumed with differences", [text, *lines])


def facts(record: RunRecord) -> list[str]:
    summary = record.summary
    model = summary.get("model", {}).get("name") or record.setting("model", "base", "")
    clients = summary.get("clients") or len(record.partition.get("clients", {})) or None
    done = len(record.rounds)
    planned = record.setting("federation", "rounds", done)
    rounds = plural(planned, "round") if done in (planned, 0) else f"{done} of {plural(planned, 'round')}"
    data = summary.get("data", {}).get("name") or record.setting("data", "source", "")
    found = [
        _without_folder(str(model)),
        _without_folder(str(data)),
        plural(int(clients), "client") if number(clients) else "",
        rounds,
        f"method {record.setting('federation', 'method', record.setting('federation', 'aggregation', ABSENT))}",
        f"server {record.setting('server', 'optimizer', 'fedavg')}",
        f"selection {record.setting('selection', 'name', record.setting('federation', 'selection', ABSENT))}",
        f"seed {record.seed}",
    ]
    return [shorten(fact, 60) for fact in found if fact]


def _without_folder(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def samples(record: RunRecord, limits: Limits) -> dict[str, Any]:
    """Held-out prompts with the answers before and after, and the scores of the generated answers."""
    arms = [a for a in findings.arms(record) if a.generation]
    items: list[Table] = []
    if arms:
        counts = {"rows": "Rows", "cut_off": "Cut off"}
        keys = [k for k in dict.fromkeys(k for a in arms for k in a.generation or {}) if k not in counts]
        names = {"exact_match": "Exact match", "token_f1": "Token F1", "rouge_l": "ROUGE-L"}
        rows = [
            [a.name, *(percent(a.generation.get(k)) for k in keys), *(count(a.generation.get(k)) for k in counts)]
            for a in arms
        ]
        note = "Higher is nearer to the reference. A few short answers: these scores are coarse; the losses above rest "
        note += (
            "on all held-out rows. Cut off: answers that did not end by themselves; their scores are of what there is."
        )
        columns = ("Arm", *(names.get(k, k) for k in keys), *counts.values())
        items.append(without_empty(Table("Scores of the generated answers", columns, rows, note=note)))
    shown = []
    for entry in record.generations[: limits.samples]:
        answers = dict(entry["answers"])
        main = [
            ("Before: base model", "base", answers.pop("base", None)),
            ("After: federated", "federated", answers.pop("federated", None)),
        ]
        ended = entry.get("finish_reason") or {}
        cut = {arm for arm, reason in ended.items() if reason == "length"}
        told = [{"name": n, "style": s, "text": _said(t), "cut": s in cut} for n, s, t in main if t is not None]
        told.append({"name": "Reference", "style": "plain", "text": _said(entry.get("reference")), "cut": False})
        others = [
            {
                "name": "Centralised" if arm == "centralised" else arm.removeprefix("local:") + " alone",
                "style": "centralised" if arm == "centralised" else "local",
                "text": _said(text),
                "cut": arm in cut,
            }
            for arm, text in list(answers.items())[:8]
        ]
        shown.append(
            {
                "id": str(entry.get("id", "")),
                "category": str(entry.get("category", "")),
                "prompt": [{"role": t["role"], "content": t["content"]} for t in entry["prompt"]],
                "answers": told,
                "others": others,
            }
        )
    if shown:
        text = "Held-out prompts, answered by the base model and by the federated one, beside the reference."
        if most := number(record.setting("evaluation", "max_new_tokens", None)):
            text += f" An answer is cut off after {count(most)} tokens (evaluation.max_new_tokens), and marked so."
        text += left_out(len(record.generations), limits.samples, "sample")
    else:
        text = "No answers have been generated yet."
        if record.state != "unfinished":
            text = "No answers were generated in this run (evaluation.generate)."
    unanswered = record.summary.get("unanswered")
    lost = [f"{shorten(unanswered, 300)}."] if isinstance(unanswered, str) and unanswered else []
    return {"samples": shown, "samples_text": [text, *lost], "samples_items": items, "length": limits.text}


def data_notes(record: RunRecord, limits: Limits) -> Section:
    """Where the rows came from, which were refused or cut, and what the audit found."""
    data = record.summary.get("data") or {}
    if not data:
        return Section("data", "Data", ["The run has not yet recorded what it read."])
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
    rows = [[label, plainly(data[key])] for key, label in labels.items() if key in data]
    rows += [
        [key.replace("_", " "), plainly(v)]
        for key, v in data.items()
        if key not in labels and key not in ("refused", "changed", "notes", "audit", "details")
    ]
    items = [Table("Data of this run", ("", ""), rows, texts=(0, 1))]
    text = ["No row was refused."]
    for what, counts in (("refused", data.get("refused")), ("changed", data.get("changed"))):
        if isinstance(counts, Mapping) and counts:
            items.append(_reasons(f"{what.capitalize()} rows", counts, limits))
            total = sum(number(v[0] if isinstance(v, list) and v else v) or 0 for v in counts.values())
            if what == "refused":
                text = [f"{plural(int(total), 'row')} could not be used; the reasons are below."]
            else:  # a row may be counted for several reasons
                text.append("Some rows lost a part or were changed; how many, and why, is below.")
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
    """Reasons with how many rows each, and the first places where those are recorded."""
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
    """Every case of the warnings that name a few: all of them, as long as the page has room."""
    texts = [shorten(str(case), 200) for each in details.values() if isinstance(each, list) for case in each]
    cases = [[count(number), text] for number, text in enumerate(texts, 1)]
    most = len(cases) if limits.rows >= Limits().rows else limits.rows
    note = left_out(len(cases), most, "case", "all are in summary.json")
    return Table(
        "Every case of the warnings about categories and names", ("", "Case"), cases[:most], (0, 1), note, folded=True
    )


def _left_out(lines: Sequence[Mapping[str, Any]], limits: Limits) -> Table:
    """Every row that was refused or changed, or that the audit found; = stands between ids that share a finding."""
    rows = [
        [line["what"], shorten(line["reason"], 200), shorten("; ".join(map(" = ".join, line["groups"])), IDS_TEXT)]
        for line in lines
    ]
    note = left_out(len(rows), limits.rows, "reason")
    note += " evaluation/left_out.jsonl has them for programs."
    caption = "Every row that was refused or changed, or that the audit found"
    return Table(caption, ("", "Reason", "Rows"), rows[: limits.rows], (0, 1, 2), note.strip(), folded=True)


def _audit(audit: Any, limits: Limits) -> Table:
    """Findings as a list of {kind, count, groups of the first ids}, or a mapping of kinds to counts."""
    found = audit if isinstance(audit, list) else [{"kind": kind, "count": v} for kind, v in dict(audit).items()]
    lines = []
    for entry in (entry for entry in found if isinstance(entry, Mapping)):
        groups = [group for group in entry.get("groups") or () if isinstance(group, list)]
        ids = "; ".join(" = ".join(shorten(str(id), 40) for id in group) for group in groups)
        more = "; …" if groups and sum(map(len, groups)) < (number(entry.get("count")) or 0) else ""
        lines.append([plainly(entry.get("kind")), count(entry.get("count")), ids + more or ABSENT])
    note = left_out(len(lines), limits.rows, "finding")
    note += " Ids with = between them share the finding." if any(" = " in line[2] for line in lines) else ""
    return without_empty(
        Table("Audit", ("Finding", "Rows", "First ids"), lines[: limits.rows], texts=(0, 2), note=note)
    )


def privacy(record: RunRecord) -> Section:
    """What leaves a client, said plainly."""
    adapter = record.summary.get("adapter") or {}
    how = (
        f" ({count(adapter['parameters'])} numbers, {size(adapter.get('bytes'))})"
        if number(adapter.get("parameters"))
        else ""
    )
    rows = [
        [
            "Leaves a client in each round",
            f"its update of the LoRA adapter{how}; the numbers of its rows, tokens and steps; its training loss and "
            "the norm of its update",
        ],
        ["Stays with a client", "its instructions and responses"],
        ["Differential privacy", "none"],
        ["Secure aggregation", "none: the server sees each client's update"],
    ]
    text = [
        "An update can tell something about the rows it was trained on. In this run nothing hides or blurs it.",
        "This run simulated its clients in one process, which held all rows. The table says what would leave a client "
        "if the same run were carried out between real ones. The comparison arms (each client alone, centralised) and "
        "the samples on this page use rows directly; a page made from private rows is itself private.",
    ]
    return Section("privacy", "Privacy", text, [Table("What leaves a client", ("", ""), rows, texts=(0, 1))])


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """How to repeat the run. A report is sent around: only a path below the folder it was started in is shown."""
    where, path = "the folder that holds this run's folder", Path(clean(record.name)) / "config.toml"
    words = clean(str(record.summary.get("command") or ""))
    try:
        *start, given = shlex.split(words)
    except ValueError:
        start, given = [], ""
    told = Path(given)
    if (
        start == ["shepherd", "run"]
        and told.parts[-2:] == path.parts
        and not (told.is_absolute() or ".." in told.parts)
    ):
        where, path = "the folder that the run was started in", told
    return [(f"Repeat with exactly these settings, from {where}:", shlex.join(["shepherd", "run", str(path)]))]


def versions(record: RunRecord) -> list[Table]:
    """Model, adapter and versions, with the check that the saved adapter gives the reported loss."""
    summary = record.summary
    rows = [[f"model {k}", plainly(v)] for k, v in (summary.get("model") or {}).items()]
    rows += [[f"adapter {k}", plainly(v)] for k, v in (summary.get("adapter") or {}).items()]
    if summary.get("adapter_sha256"):
        rows.append(["adapter sha256", str(summary["adapter_sha256"])])
    if check := summary.get("reload_check"):
        rows.append(
            [
                "adapter loaded again from disk",
                f"loss {digits(check.get('loss'), 6)}, difference {significant(check.get('difference'))}",
            ]
        )
    if summary.get("version"):
        rows.append(["shepherd", str(summary["version"])])
    rows += [[str(k), plainly(v)] for k, v in record.environment.items()]
    if not rows:
        return []
    return [Table("Model, adapter and versions", ("", ""), rows[:200], texts=(0, 1))]


def _said(text: Any) -> str:
    return text if isinstance(text, str) and text.strip() else "(nothing)"
