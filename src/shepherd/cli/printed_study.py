"""What `shepherd study` prints: forecast, progress, states, results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.progress import Observer
from shepherd.errors import plural

if TYPE_CHECKING:
    from shepherd.experiment.events import Emit, Event
    from shepherd.experiment.study.design import Planned, Study
    from shepherd.experiment.study.folder import Progress
    from shepherd.experiment.study.forecast import Forecast
    from shepherd.experiment.study.running import Step


class Quiet(Observer):
    """An observer of a run within a study: it shows nothing, and ends the run where a signal asks for it."""

    def show(self, event: Event) -> None:
        del event


def begun(count: int) -> Callable[[Planned], Emit]:
    """The observer of each run, after a line that it begins."""
    number = 0

    def begin(planned: Planned) -> Emit:
        nonlocal number
        number += 1
        output.note(f"{planned.name}: begins ({number} of at most {count} in this process)")
        return Quiet()

    return begin


def print_step(step: Step) -> None:
    """A line about a run that ended, or was not started."""
    from shepherd.report.wording import digits, duration

    name = step.planned.name
    if step.outcome == "done":
        arms = (step.record or {}).get("arms", {})
        losses = ", ".join(f"{arm} {digits(entry['loss'])}" for arm, entry in arms.items())
        output.note(f"{name}: done in {duration(step.seconds)}; {losses}")
    elif step.outcome == "failed":
        output.note(f"{name}: failed after {duration(step.seconds)}: {step.detail}")
    elif step.outcome == "taken":
        output.note(f"{name}: another process carries it out")
    else:
        output.note(f"{name}: not started, about {duration(step.seconds)} are not expected to fit into --minutes")


def print_forecast(study: Study, runs: Sequence[Planned], found: Forecast, as_json: bool) -> None:
    """The costs of a study, and what it can see."""
    from shepherd.report.wording import digits, duration, size

    totals = {"runs": len(runs), "seconds": found.seconds, "seconds_left": found.seconds_left,
              "disk_bytes": found.disk_bytes}  # fmt: skip
    if as_json:
        output.print_json({**totals, **dataclasses.asdict(found)})
        return
    output.print_table(
        ("variant", "runs", "left", "held-out rows", "time of a run, about", "disk of a run, about"),
        [
            (v.name, v.runs, v.left, v.held_out_rows, duration(v.seconds), size(v.disk_bytes))
            for v in found.variants
        ],
        right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    left = sum(v.left for v in found.variants)
    click.echo(f"\n{plural(len(runs), 'run')}, about {duration(found.seconds)} and {size(found.disk_bytes)} in all; "
               f"{left} left, about {duration(found.seconds_left)}")  # fmt: skip
    if study.file.judge:
        cost = (
            "cost unknown without judge.prices" if found.judge_cost is None else f"cost about {found.judge_cost:,.2f}"
        )
        click.echo(f"judge: {plural(found.judge_calls, 'call')} of {study.file.judge.model}, {cost}")
    if study.file.benchmarks:
        tasks = study.file.benchmarks
        click.echo(f"benchmarks: {', '.join(tasks.tasks)} on {', '.join(tasks.on)} of every run")
    click.echo("\nsmallest true difference found with 80 % power, before Holm (nats per token)")
    output.print_table(
        ("comparison", "units", "seeds", "sd of units", "sd of seeds", "from", "smallest", "margin"),
        [
            (v.label, plural(v.units, v.unit), v.seeds, digits(v.row_sd), digits(v.seed_sd), v.source,
             digits(v.smallest, 4), "" if v.margin is None else digits(v.margin, 4))
            for v in found.visible
        ],
        right=(1, 2, 3, 4, 6, 7),
    )  # fmt: skip
    for line in dict.fromkeys(warning for v in found.variants for warning in v.warnings):
        output.note(f"warning: {line}")
    if len(study.file.seeds) == 1:
        output.note("warning: one seed: verdicts hold for its trainings alone, other seeds may turn them")
    elif study.file.test_rows == "by seed":
        output.note('warning: test_rows = "by seed": each seed has other test rows, so intervals are over seeds alone')
    for v in found.visible:
        if v.margin is not None and v.smallest is not None and v.margin < v.smallest:
            output.note(f"warning: {v.label}: its margin of {v.margin:g} is below the smallest visible difference of "
                        f"{v.smallest:.4f}: it can hardly come out as equal")  # fmt: skip


def print_status(study: Study, folder: Path, states: Sequence[Progress], as_json: bool) -> None:
    """The state of every run."""
    if as_json:
        output.print_json({
            "folder": str(folder), "runs": [
                {"run": s.planned.name, "variant": s.planned.variant.name, "seed": s.planned.seed, "state": s.state,
                 "detail": s.detail} for s in states
            ],
        })  # fmt: skip
        return
    output.print_table(("run", "state", ""), [(s.planned.name, s.state, s.detail) for s in states])
    counts = {state: sum(s.state == state for s in states) for state in dict.fromkeys(s.state for s in states)}
    click.echo(f"\n{study.title}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def print_results(document: dict[str, Any], folder: Path, as_json: bool) -> None:
    """The table of comparisons, and what to read with it."""
    if as_json:
        output.print_json(document)
        return
    from shepherd.report.study.tables import comparisons_table
    from shepherd.report.study.words import title, warnings

    table = comparisons_table(document)
    click.echo(output.clean(title(document)) + "\n")
    output.print_table([c.lower() for c in table.columns], table.rows, right=range(1, 7))
    click.echo()
    for line in warnings(document):
        click.echo(f"note: {output.clean(line)}")
    click.echo(f"report   {folder / 'report.html'}")
