"""Warnings of a report: caveats of the first page, and damage found when the run was resumed."""

from __future__ import annotations

from shepherd.report import findings
from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Section
from shepherd.report.sections.attendance import attendance
from shepherd.report.sections.guarantee import guarantee, without_rounds
from shepherd.report.sites.history import rule_of_losses
from shepherd.report.wording import left_out, listing, plural, shorten


def alerts(record: RunRecord) -> list[str]:
    """Caveats for a reader of the headline alone: what went wrong, and the section with the details."""
    found = guarantee(record)
    record = without_rounds(record)
    if record.summary.get("forced"):
        found.append("The run was resumed with --force although something differed: see Resumed with differences.")
    if skipped := sum(bool(line.get("skipped")) for line in record.rounds):
        found.append(f"{plural(skipped, 'round')} of {len(record.rounds)} left the model unchanged: see Participation.")
    seen = attendance(record)
    if lost := seen.troubles.total():
        found.append(f"{plural(lost, 'update')} of {seen.sampled.total():,} did not count: see Participation.")
    if failed := record.summary.get("failed"):
        found.append(
            f"Training alone failed for {plural(len(failed), 'client')}, which no mean includes: see Per client."
        )
    if findings.some_alone(record):
        found.append(f"The mean and the best client alone are taken over {findings.trained_alone(record)}.")
    broken = [arm.title for arm in findings.arms(record) if arm.loss is None]
    if broken:
        found.append(f"No finite held-out loss was measured for: {listing(broken)}.{_at_sites(record)}")
    return found


def _at_sites(record: RunRecord) -> str:
    """What keeps losses at the sites of a run, where no row of the coordinator is measured."""
    data = record.config.get("data") or {}
    few = data.get("held_out_per_category")
    if data.get("source") != "sites:rows" or data.get("held_out_source") or not few:
        return ""
    rule = rule_of_losses(few)
    return f" {rule[0].upper()}{rule[1:]}."


def resumptions(record: RunRecord, limits: Limits) -> Section | None:
    """Damage and unfinished work found when the run was resumed; None without any."""
    found = record.summary.get("found")
    if not isinstance(found, list) or not found:
        return None
    text = "Damage found when the run was resumed. Discarded rounds were trained again."
    lines = [shorten(str(line), 300) for line in found[: limits.rows]]
    rest = left_out(len(found), limits.rows, "line").strip()
    return Section("resumed", "Found when resumed", [text, *lines, *([rest] if rest else [])])
