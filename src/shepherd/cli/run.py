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
from shepherd.cli.settings import complete_recipe, complete_run, find_run, gather, recipe_options
from shepherd.errors import UsageError
from shepherd.experiment import capacity
from shepherd.experiment import checks as starting
from shepherd.store import open_run

if TYPE_CHECKING:
    from shepherd.experiment.run import Run


LABELS = {
    "adapted_share": "adapted share of blocks",
    "memory_bytes": "memory, about",
    "disk_bytes": "disk, about",
    "seconds": "time, about",
}
SAID_BESIDE = ("bytes_up_are", "bytes_down_are", "warnings", "details")


@click.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout.")
@click.option("--plain", is_flag=True, help="Lines instead of the live table, also on a terminal.")
@click.option("--resume", "stopped", metavar="RUN", shell_complete=complete_run, help="As shepherd resume RUN.")
@click.pass_context
def run(ctx: click.Context, recipe: str | None, as_json: bool, plain: bool, stopped: str | None, **flags: Any) -> None:
    """Tune, evaluate and report: the whole of RECIPE.

    RECIPE is a TOML file or the name of a packaged recipe (`shepherd list recipes`); without one it is the demo, or
    own-data when --data is given. The run directory holds everything that comes out; its path is printed at the end.
    """
    from shepherd.cli import outcome, progress

    if stopped is not None:
        if recipe or any(value is not None and value is not False and value != () for value in flags.values()):
            raise UsageError(
                "a run goes on with its own settings: --resume takes no recipe and no other settings",
                hint=f"shepherd resume {shlex.quote(stopped)}; to run with others, leave --resume out",
            )
        return ctx.invoke(resume, run=stopped, force=False, as_json=as_json, plain=plain)
    settings = gather(recipe, **flags)
    for line in settings.notes:
        output.note(line)
    observer = progress.observer(as_json=as_json, plain=plain)
    with observer:
        starting.look_first(settings.config, output.note, None if as_json else output.note)
        output.announce_torch()
        from shepherd.experiment import run as experiment

        result = _carry_out(partial(experiment.run, settings.config), observer)
    if not as_json:
        outcome.print_result(Path(result.path), result.summary)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--force", is_flag=True, help="Go on although something differs; the report says so.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout.")
@click.option("--plain", is_flag=True, help="Lines instead of the live table, also on a terminal.")
def resume(run: str, force: bool, as_json: bool, plain: bool) -> None:
    """Go on with a run that was stopped, from its last committed round.

    It ends with the same bytes as if it had never stopped. Where settings, data, base, tokenizer, code or machine
    are not those that it was started with, it says what differs and does nothing.
    """
    from shepherd.cli import outcome, progress

    run_dir = open_run(find_run(run), "identity.json")
    if (run_dir / "summary.json").exists():
        output.note(f"{run_dir} is finished; nothing is left to do")
    observer = progress.observer(as_json=as_json, plain=plain)
    with observer:
        output.announce_torch()
        from shepherd.experiment import run as experiment

        result = _carry_out(partial(experiment.resume, run_dir, force=force), observer)
    if not as_json:
        outcome.print_result(Path(result.path), result.summary)


def _carry_out(start: Callable[..., Run], observer: Any) -> Run:
    """Run it; whatever stops it, the last line says how to go on."""
    try:
        return start(observer=observer)
    except BaseException:
        interrupts.no_more()
        observer.close()
        if observer.run is not None:
            output.note(
                f"stopped; to go on from the last committed round: shepherd resume {shlex.quote(str(observer.run))}"
            )
        raise


@click.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout.")
def check(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Every mistake in RECIPE at once, then what it would take.

    Reads the data and divides it, but loads no weights and trains nothing: memory, time, bytes up and down, disk.
    """
    settings = gather(recipe, **flags)
    for line in settings.notes:
        output.note(line)
    note = None if as_json else output.note
    starting.look_first(settings.config, output.note, note)
    output.announce_torch()
    from shepherd.experiment import run as experiment

    plan = experiment.plan(settings.config, note)
    values = dataclasses.asdict(plan) if dataclasses.is_dataclass(plan) else dict(plan)
    if as_json:
        output.print_json(values)
    else:
        output.print_table(
            ("plan", ""),
            [(_label(key, values), _with_unit(key, value)) for key, value in values.items() if key not in SAID_BESIDE],
        )
    for line in values.get("warnings", ()):
        output.note(f"warning: {line}")
    capacity.fits_here(values, Path(settings.config.run.out))
    output.note("the settings are fine; nothing was trained")


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
