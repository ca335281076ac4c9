"""`shepherd runs`: list, measure and delete run directories."""

from __future__ import annotations

import time
from pathlib import Path

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_run
from shepherd.cli.group import Commands
from shepherd.cli.settings import find_run
from shepherd.errors import UsageError

out_option = click.option("--out", default="runs", show_default=True, type=click.Path(file_okay=False, path_type=Path),
                          metavar="DIR", help="Folder that holds the runs.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Commands)
def runs() -> None:
    """List, measure and delete runs."""


@runs.command()
@out_option
@json_option
def ls(out: Path, as_json: bool) -> None:
    """List the runs: state, rounds, loss of each arm, size, date.

    A run is running while a process writes to it, finished when it has a summary, else interrupted."""
    import dataclasses

    from shepherd.arms import COMPARED, shown
    from shepherd.report.wording import digits, plural, size
    from shepherd.store.listing import Entry, list_runs

    def loss(entry: Entry, arm: str) -> str:
        some = f" (of {plural(entry.alone, 'client')})" if arm == "local" and entry.alone else ""
        return digits(entry.losses[arm]) + some if arm in entry.losses else ""

    entries = list_runs(out)
    if as_json:
        output.print_json([dataclasses.asdict(entry) for entry in entries])
        return
    measured = shown(arm for entry in entries for arm in entry.losses)
    arms = [*(arm for arm in COMPARED if arm in measured), *(arm for arm in measured if arm not in COMPARED)]
    tested = any(entry.benchmarks for entry in entries)
    if entries:
        output.print_table(
            ("run", "state", "rounds", *arms, "size", "started", *(["benchmarks"] if tested else [])),
            [
                (e.name, e.state, f"{e.rounds}/{'?' if e.planned is None else e.planned}",
                 *(loss(e, arm) for arm in arms), size(e.bytes),
                 time.strftime("%Y-%m-%d %H:%M", time.localtime(e.started)),
                 *([", ".join(e.benchmarks)] if tested else []))
                for e in entries
            ],
            right=range(2, 4 + len(arms)),
        )  # fmt: skip
    else:
        output.note(f"no runs in {out}; start one with shepherd run")
    if stopped := [entry for entry in entries if entry.state == "interrupted"]:
        output.note(f"resume an interrupted run: shepherd resume {stopped[-1].path}")


@runs.command()
@click.argument("names", nargs=-1, metavar="[RUN…]", shell_complete=complete_run)
@out_option
@json_option
def du(names: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Print the disk usage of each RUN by part (default: all runs).

    `unused`: leftovers of killed processes, and files set aside by a recovery."""
    from shepherd.report.wording import size
    from shepherd.store.listing import list_runs, usage

    folders = [find_run(name) for name in names] or [entry.path for entry in list_runs(out)]
    parts = {folder: usage(folder) for folder in folders}
    if as_json:
        output.print_json([{"name": folder.name, "path": folder, **sizes} for folder, sizes in parts.items()])
    elif parts:
        columns = next(iter(parts.values()))
        rows = [(folder.name, *map(size, sizes.values())) for folder, sizes in parts.items()]
        if len(rows) > 1:
            rows.append(("all", *(size(sum(sizes[part] for sizes in parts.values())) for part in columns)))
        output.print_table(("run", *columns), rows, right=range(1, 1 + len(columns)))
    else:
        output.note(f"no runs in {out}; start one with shepherd run")


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN…", shell_complete=complete_run)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def rm(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete each RUN with all its files.

    Asks for confirmation. A run that is being written is not deleted."""
    from shepherd.report.wording import plural, size
    from shepherd.store.listing import delete, entry

    entries = [entry(folder) for folder in dict.fromkeys(map(find_run, names))]
    for found in entries:
        if found.writer:
            raise UsageError(
                f"{found.path} is being written by {found.writer}; nothing was deleted",
                hint="wait until it has ended, or stop it first",
            )
    deleted = []
    for found in entries:
        if yes or output.confirm(
            f"delete {found.path} ({found.state}, {plural(found.rounds, 'round')}, {size(found.bytes)})?", "deleted"
        ):
            deleted.append({"name": found.name, "path": found.path, "bytes": delete(found.path)})
    if as_json:
        output.print_json(deleted)
    else:
        for gone in deleted:
            click.echo(f"deleted {output.clean(str(gone['path']))}, {size(gone['bytes'])}")
