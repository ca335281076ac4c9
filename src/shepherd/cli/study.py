"""`shepherd study`: many settings times seeds, compared by comparisons that a file fixes beforehand."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_setting
from shepherd.cli.group import Commands
from shepherd.errors import ShepherdError, UsageError, plural

if TYPE_CHECKING:
    from shepherd.experiment.study.design import Planned, Study
    from shepherd.experiment.study.folder import StudyFolder


@click.group(cls=Commands)
def study() -> None:
    """Run and compare many settings over seeds.

    STUDY.toml names variants, a grid, seeds and the comparisons with their margins (docs/studies.md).

    \b
    shepherd study check study.toml     runs, hours, disk, and the smallest difference that it can see
    shepherd study run study.toml       run what is left; repeat the command to go on
    """


def study_options(picks: bool = True) -> Callable[[Callable], Callable]:
    """The argument and the flags of every command on a study; `picks`: also those that choose runs."""

    def decorate(command: Callable) -> Callable:
        chosen = (
            click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant; repeatable."),
            click.option("--seeds", metavar="SEED,…", default="", help="Only these seeds of the file."),
        )  # fmt: skip
        for option in reversed((
            click.argument("file", metavar="STUDY.toml", type=click.Path(dir_okay=False, path_type=Path)),
            click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
                         help="Folder of the study; the default is studies/ and the name of the file."),
            click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=complete_setting,
                         help="Set any key in every run, e.g. --set data.source=rows.jsonl; repeatable."),
            *(chosen if picks else ()),
        )):  # fmt: skip
            command = option(command)
        return command

    return decorate


def _opened(
    file: Path, out: Path | None, overrides: Sequence[str], only: Sequence[str] = (), seeds: str = ""
) -> tuple[Study, StudyFolder, list[Planned]]:
    """A study, its folder, which holds no other, and the runs that the flags pick."""
    from shepherd.experiment.study.design import load_study
    from shepherd.experiment.study.folder import StudyFolder

    found, folder = load_study(file, overrides), StudyFolder(out or Path("studies") / file.stem)
    try:
        picked = [int(seed) for seed in seeds.split(",") if seed.strip()]
    except ValueError:
        raise UsageError(f"cannot read --seeds {seeds!r}", hint="write numbers, e.g. --seeds 0,1") from None
    runs = found.picked(only, picked)
    folder.check(found)
    return found, folder, runs


@study.command()
@study_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(as_json: bool, **flags: Any) -> None:
    """Check STUDY.toml and estimate its cost and sensitivity.

    Prints runs, hours, disk, calls of the judge with their cost, and for each comparison the smallest difference that
    it would find with 80 % power. Reads and divides the data; nothing is trained or written.
    """
    found, folder, runs = _opened(**flags)
    from shepherd.cli import printed_study
    from shepherd.experiment.study import forecast
    from shepherd.experiment.study.results import finished_records

    finished = finished_records(found, folder)
    forecast.check_named_clients(found, runs, folder.runs)
    output.announce_torch()

    def estimate(planned: Planned) -> Any:
        output.note(f"{planned.variant.name} …")
        return forecast.estimate_of(planned, folder.runs)

    costs = forecast.forecast(found, runs, finished, estimate)
    printed_study.print_forecast(found, runs, costs, as_json)
    forecast.within_budget(found, costs)
    output.note("the study is valid; nothing was trained")


@study.command()
@study_options()
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N",
              help="Processes that share the runs; threads are divided among them.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="Start no run that is not expected to end within N minutes from now.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print study.json without its tidy rows.")
def run(jobs: int, minutes: float | None, as_json: bool, **flags: Any) -> None:
    """Carry out the runs of STUDY.toml that are left, and write the report.

    The same command on the same folder goes on: finished runs are skipped, also where only their RUN.json is left, a
    stopped run is resumed, failed ones are tried again. Several such processes share one folder. A failed run does not
    stop the others; the exit status is then that of the first one.
    """
    found, folder, runs = _opened(**flags)
    for planned in runs:
        folder.record(planned)  # refuse the record of another run before anything starts
    from shepherd.cli import printed_study
    from shepherd.experiment.study import forecast
    from shepherd.experiment.study.outputs import write_outputs
    from shepherd.experiment.study.results import finished_records
    from shepherd.experiment.study.running import carry_out, expected_seconds

    forecast.check_named_clients(found, runs, folder.runs)

    def estimate(planned: Planned) -> Any:
        return forecast.estimate_of(planned, folder.runs)

    if any(folder.record(planned) is None for planned in runs):
        output.announce_torch()
        if found.file.budget.limits:
            finished = finished_records(found, folder)
            forecast.within_budget(found, forecast.forecast(found, found.runs, finished, estimate))
    folder.open(found)
    if jobs > 1 and not found.sets_threads:
        flags["overrides"] = (*flags["overrides"], f"run.threads={_threads(jobs)}")
        _, _, runs = _opened(**flags)
    others = [_process(folder, minutes, **flags) for _ in range(jobs - 1)]
    try:
        expected = expected_seconds(folder, runs, lambda planned: float(estimate(planned)["seconds"]))
        for step in carry_out(folder, runs, expected, printed_study.begun(len(runs)), minutes):
            printed_study.print_step(step)
        for process in others:
            process.wait()
    finally:
        for process in others:
            if process.poll() is None:
                process.terminate()
    printed_study.print_results(write_outputs(found, folder), folder.path, as_json)
    _fail_where_runs_failed(folder, runs, flags["file"])


def _process(
    folder: StudyFolder, minutes: float | None, *, file: Path, overrides: Sequence[str], only: Sequence[str],
    seeds: str, out: Path | None,
) -> subprocess.Popen:  # fmt: skip
    """A further process on the same folder; its talk goes to stderr, its table nowhere."""
    del out  # the folder has it
    flags = [("--out", str(folder.path)), *(("--set", o) for o in overrides), *(("--only", o) for o in only)]
    flags += [("--seeds", seeds)] * bool(seeds) + ([("--minutes", str(minutes))] if minutes else [])
    line = [sys.executable, "-m", "shepherd", "study", "run", str(file), *(part for flag in flags for part in flag)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL)


def _threads(jobs: int) -> int:
    from shepherd.model.threads import available_cores

    return max(1, available_cores() // jobs)


def _fail_where_runs_failed(folder: StudyFolder, runs: Sequence[Planned], file: Path) -> None:
    """Raise the error of a study in which runs failed, with the first line of each and the status of the first."""
    failed = [state for planned in runs if (state := folder.progress(planned)).state == "failed"]
    if not failed:
        return
    lines = "\n".join(f"  {state.planned.name}: {state.detail}" for state in failed)
    error = ShepherdError(
        f"{len(failed)} of {plural(len(runs), 'run')} failed:\n{lines}",
        hint=f"results/RUN/ERROR.json has each error; shepherd study run {shlex.quote(str(file))} tries them again",
    )
    status = (folder.error(failed[0].planned) or {}).get("exit_status")
    error.exit_code = status if isinstance(status, int) and status else 1
    raise error


@study.command()
@study_options(picks=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(file: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the runs of STUDY.toml: finished, running, stopped, failed or waiting."""
    found, folder, runs = _opened(file, out, overrides)
    from shepherd.cli import printed_study

    printed_study.print_status(found, folder.path, [folder.progress(planned) for planned in runs], as_json)


@study.command()
@study_options(picks=False)
@click.option("--json", "as_json", is_flag=True, help="Print study.json without its tidy rows.")
def report(file: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write STUDY.md, study.json, study.csv, study.tex and report.html from the finished runs.

    Reads RUN.json files alone; the run directories need not be there."""
    found, folder, _ = _opened(file, out, overrides)
    if not folder.path.is_dir():
        raise UsageError(f"no study at {folder.path}", hint=f"shepherd study run {shlex.quote(str(file))} starts it")
    from shepherd.cli import printed_study
    from shepherd.experiment.study.outputs import write_outputs

    printed_study.print_results(write_outputs(found, folder), folder.path, as_json)
