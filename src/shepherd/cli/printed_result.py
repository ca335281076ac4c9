"""The printed result of a finished run: the table of arms, the headline of its report, the next commands."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shepherd.arms import shown
from shepherd.cli import output
from shepherd.report import wording


def print_result(run: Path, summary: Mapping[str, Any]) -> None:
    """Print arms, headline and report path on stdout, then suggested commands on stderr."""
    arms = summary.get("arms", {})
    base = wording.number((arms.get("base") or {}).get("loss"))
    rows: list[tuple[str, Any]] = [("base (not tuned)", base)] if arms.get("base") else []
    measured = (wording.number(arm.get("loss")) for arm in (arms.get("local") or {}).values())
    local = [loss for loss in measured if loss is not None]
    if local:
        clients = summary.get("clients")
        share = f" of {len(local)} of {clients}" if isinstance(clients, int) and len(local) < clients else ""
        ends = {"best": min(local), "mean": sum(local) / len(local), "worst": max(local)}
        which = ("mean", "best", "worst") if len(local) > 1 else ("mean",)
        rows += [(f"clients alone, {name}{share}", ends[name]) for name in which]
    rows += [(name, arms[name].get("loss")) for name in shown(arms) if "loss" in (arms[name] or ()) and name != "base"]
    budget = summary.get("budget") or {}
    output.print_table(
        ("arm", "held-out loss", "against base", "steps", "learned tokens"),
        [
            (
                name,
                wording.digits(loss),
                "" if base is None or name.startswith("base") or loss is None else wording.signed(loss - base),
                *_spent(budget, name),
            )
            for name, loss in rows
        ],
        right=(1, 2, 3, 4),
    )
    print_headline(run)
    seconds = (summary.get("seconds") or {}).get("total")
    report = run / "report.html"
    click.echo()
    sent = wording.size(summary.get("bytes_up"))
    click.echo(f"run      {run}  ({wording.duration(seconds)}, {sent} sent by clients)")
    if report.is_file():
        click.echo(f"report   {report}")
    output.note(f"next     shepherd chat {shlex.quote(str(run))} --compare base")
    output.note(f"         shepherd compare {shlex.quote(str(run))} OTHER_RUN")


def print_headline(run: Path) -> None:
    """Print the report's headline: a sentence per comparison, and its caveats."""
    if not (run / "summary.json").is_file():
        return
    from shepherd.report.load import load_run
    from shepherd.report.sections.alerts import alerts
    from shepherd.report.sections.verdict import verdict

    record = load_run(run)
    width = min(100, shutil.get_terminal_size().columns)
    click.echo()
    for sentence in (*verdict(record), *alerts(record)):
        text = output.clean(sentence).replace("\N{NO-BREAK SPACE}", " ")
        click.echo(textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def _spent(budget: Mapping[str, Any], row: str) -> tuple[str, str]:
    """(optimizer steps, target tokens) of a row's arm; the local arm shows its total once."""
    spent = budget.get("local" if row.startswith("clients alone, mean") else row) or {}
    steps, tokens = (wording.count(spent[key]) if key in spent else "" for key in ("optimizer_steps", "target_tokens"))
    return steps, tokens
