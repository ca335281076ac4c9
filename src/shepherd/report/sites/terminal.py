"""What `shepherd report` prints of a run over sites: sentences and the tables that fit a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shepherd.report.comparison.tables import plain_text
from shepherd.report.html import write_report
from shepherd.report.load import RunRecord, load_run
from shepherd.report.page import Limits, Table
from shepherd.report.sites import tables
from shepherd.report.sites.history import read_history
from shepherd.report.sites.section import losses, sentences, versions
from shepherd.report.wording import clean

NAME_WIDTH = 36


def sites_text(record: RunRecord) -> str:
    """Who took part when, what was late or lost and why, pauses, losses; "" for a run without sites."""
    limits, found = Limits(), read_history(record.path)
    if not found:
        return ""
    known = found["sites"]
    parts: list[Table | None] = [
        tables.attendance_table(known, limits),
        tables.facts_table(known, versions(record), losses(record), limits),
        tables.troubles_table(known, limits),
        tables.pauses_table(found["pauses"], limits),
        tables.ignored_table(known, limits),
    ]
    texts = [plain_text(part, NAME_WIDTH) for part in parts if part is not None]
    return "\n\n".join(["\n".join(map(clean, sentences(found))), *texts]) + "\n"


def run_report(run_dir: Path) -> tuple[str, dict[str, Any]]:
    """Write report.html of a run; (the text before its path, {"run", "state", "report", "arms", "federation"})."""
    path, record = write_report(run_dir), load_run(run_dir)
    text = sites_text(record)
    facts = {
        "run": record.name,
        "state": record.state,
        "report": str(path),
        "arms": record.summary.get("arms", {}),
        "federation": read_history(record.path) or None,
    }
    return text + "\n" if text else "", facts
