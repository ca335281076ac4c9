"""`shepherd run`, its dry run `shepherd check`, and `shepherd resume`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import interrupts, output
from shepherd.cli.completion import complete_federation, complete_recipe, complete_run
from shepherd.cli.privacy import print_forecast
from shepherd.cli.settings import Settings, find_run, gather, recipe_options
from shepherd.errors import UsageError
from shepherd.experiment import capacity, checks
from shepherd.store import open_run

if TYPE_CHECKING:
    from shepherd.experiment.opened_run import Run


LABELS = {
    "adapted_share": "adapted share of blocks",
    "memory_bytes": "memory, about",
    "disk_bytes": "disk, about",
    "seconds": "time, about",
}
PRINTED_ELSEWHERE = ("bytes_up_are", "bytes_down_are", "privacy", "warnings", "details")


@click.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--plain", is_flag=True, help="Print plain lines instead of the live table.")
@click.option("--federation", metavar="NAME", shell_complete=complete_federation,
              help="Run over the sites of this federation, in place of simulating clients.")  # fmt: skip
@click.option("--min-sites", type=click.IntRange(min=1), metavar="N",
              help="With --federation: begin, and go on, with N sites.  [default: begin with all members]")  # fmt: skip
@click.option("--resume", "stopped", metavar="RUN", shell_complete=complete_run, help="Same as shepherd resume RUN.")
@click.pass_context
def run(
    ctx: click.Context, recipe: str | None, as_json: bool, plain: bool, stopped: str | None, federation: str | None,
    min_sites: int | None, **flags: Any,
) -> None:  # fmt: skip
    """Run RECIPE: train, evaluate and report.

    RECIPE is a TOML file or the name of a packaged recipe (`shepherd list recipes`); the default is demo, or own-data
    with --data. All results are written to the run directory, whose path is printed at the end.

    With --federation the rows are those of the sites; data.source and [partition] are not read. The federation is
    served until the run is over: sites join and connect meanwhile. With too few of them the run waits, and goes on when
    they are back. By default it begins when all members take part, and goes on with federation.min_updates, at least 2.
    """
    from shepherd.cli import printed_result, progress
    from shepherd.experiment import run as experiment

    if stopped is not None:
        flags |= {"federation": federation, "min_sites": min_sites}
        if recipe or any(value is not None and value is not False and value != () for value in flags.values()):
            raise UsageError(
                "a resumed run keeps its settings: --resume takes no recipe and no other settings",
                hint=f"shepherd resume {shlex.quote(stopped)}; for a run with other settings, leave --resume out",
            )
        return ctx.invoke(resume, run=stopped, force=False, as_json=as_json, plain=plain)
    settings = gather(recipe, **flags)
    for line in settings.notes:
        output.note(line)
    observer = progress.observer(as_json=as_json, plain=plain)
    if federation is None and min_sites is not None:
        raise UsageError("--min-sites is for sites, and no federation is named", hint="add --federation NAME")
    with observer:
        if federation is not None:
            start = _over_sites(settings, federation, min_sites, observer)
            output.announce_torch()
            result = _carry_out(start, observer)
        else:
            checked = checks.look_first(settings.config, output.note, None if as_json else output.note)
            output.announce_torch()
            result = _carry_out(partial(experiment.run_checked, checked), observer)
    if not as_json:
        printed_result.print_result(Path(result.path), result.summary)


def _over_sites(settings: Settings, name: str, min_sites: int | None, observer: Any) -> Callable[..., Run]:
    """What begins a run over the sites of a federation. The observer knows the run directory before the first site."""
    from shepherd.experiment.sites import coordinator, folders, links

    links.check_machine()
    folder = folders.find(folders.FEDERATIONS, name)
    keep = "federation.min_updates" in settings.origins
    began = partial(setattr, observer, "run")
    start = partial(coordinator.run_federation, settings.config, folder)
    return partial(start, began=began, min_sites=min_sites, keep_least=keep)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--force", is_flag=True, help="Resume despite differences; the report records them.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--plain", is_flag=True, help="Print plain lines instead of the live table.")
def resume(run: str, force: bool, as_json: bool, plain: bool) -> None:
    """Resume a stopped run from its last committed round.

    The result is identical, byte for byte, to that of an uninterrupted run, but for a private run, which draws cohorts
    and noise anew. If settings, data, base, tokenizer, code or machine have changed since the start, the differences
    are listed and nothing is run. A run over the sites of a federation serves that federation again.
    """
    from shepherd.cli import printed_result, progress
    from shepherd.experiment import run as experiment
    from shepherd.experiment.sites import coordinator

    run_dir = open_run(find_run(run), "identity.json")
    if (run_dir / "summary.json").exists():
        output.note(f"{run_dir} is already finished; nothing to resume")
    observer = progress.observer(as_json=as_json, plain=plain)
    again = coordinator.resume_federation if coordinator.is_federated(run_dir) else experiment.resume
    with observer:
        output.announce_torch()
        result = _carry_out(partial(again, run_dir, force=force), observer)
    if not as_json:
        printed_result.print_result(Path(result.path), result.summary)


def _carry_out(start: Callable[..., Run], observer: Any) -> Run:
    """Start the run; if it stops early, print the command that resumes it."""
    try:
        return start(observer=observer)
    except BaseException:
        interrupts.no_more()
        observer.close()
        if observer.run is not None:
            output.note(
                f"stopped; to resume from the last committed round: shepherd resume {shlex.quote(str(observer.run))}"
            )
        raise


@click.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def check(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Validate RECIPE and estimate its cost.

    Reports every mistake at once, then memory, time, traffic and disk. Reads and partitions the data, but loads no
    weights and trains nothing.
    """
    settings = gather(recipe, **flags)
    for line in settings.notes:
        output.note(line)
    note = None if as_json else output.note
    checked = checks.look_first(settings.config, output.note, note)
    output.announce_torch()
    from shepherd.experiment.estimate import plan_checked

    plan = plan_checked(checked, note)
    values = dataclasses.asdict(plan) if dataclasses.is_dataclass(plan) else dict(plan)
    if values.get("privacy") is None:
        values.pop("privacy", None)
    if as_json:
        output.print_json(values)
    else:
        output.print_table(
            ("plan", ""),
            [
                (_label(key, values), _with_unit(key, value))
                for key, value in values.items()
                if key not in PRINTED_ELSEWHERE
            ],
        )
        if "privacy" in values:
            print_forecast(values["privacy"])
    for line in values.get("warnings", ()):
        output.note(f"warning: {line}")
    capacity.fits_here(values, Path(settings.config.run.out))
    output.note("the settings are valid; nothing was trained")


def _label(key: str, values: Mapping[str, Any]) -> str:
    how = values.get(f"{key}_are", "exact")
    return LABELS.get(key, key.replace("_", " ")) + (f", {how}" if how != "exact" else "")


def _with_unit(key: str, value: Any) -> str:
    from shepherd.report import wording

    if isinstance(value, dict):
        return ", ".join(f"{name} {_with_unit(key, item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(dict.fromkeys(_with_unit(key, item) for item in value))
    if wording.number(value) is None:
        return str(value)
    if key.endswith("share"):
        return f"{100 * value:.{0 if value >= 0.1 else 1}f} %"
    if key == "learning_rates":
        return f"{value:g}"
    if "bytes" in key or key.endswith(("memory", "disk")):
        return wording.size(value)
    return wording.duration(value) if "seconds" in key else wording.count(value)
