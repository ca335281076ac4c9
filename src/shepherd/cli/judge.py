"""`shepherd judge`: pairs of systems compared by a judge, called now or recorded earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shepherd.cli import judge_calls, judged
from shepherd.cli.completion import complete_run
from shepherd.errors import UsageError


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN…]", shell_complete=complete_run)
@click.option("--replay", "replayed", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="Compare by recorded judgements; further FILEs may follow. Their format is recognised.")  # fmt: skip
@judge_calls.options
@judged.options
@click.pass_context
def judge(context: click.Context, runs: tuple[str, ...], replayed: tuple[Path, ...], **given: Any) -> None:
    """Compare arms of runs, or other systems, by a judge.

    Reads the answers that shepherd answer wrote and has a judge rate each pair in both orders: the federated arm of RUN
    against base, each kept local client and centralised. Prints totals, the relative score b / a, the mean difference
    b - a with a 95 % interval, and a verdict on b. Every call is recorded in RUN/judge/calls.jsonl; the same command
    goes on where it stopped. With --replay no judge is called."""
    if replayed:
        from shepherd.cli.judge_runs import fitness_of
        from shepherd.evaluation.judge import replay

        if unused := judge_calls.named(context):
            raise UsageError(f"{unused[0]} calls a judge, and --replay calls none", hint="leave one of the two out")
        files = [*replayed, *map(Path, runs)]
        places = [file.resolve() for file in files]
        if twice := [file for file, place in zip(files, places, strict=True) if places.count(place) > 1]:
            raise UsageError(f"{twice[0]} is named twice and would count as two comparisons", hint="name it once")
        recordings = [one for file in files for one in replay.read_pairs(file)]
        judged.show(recordings, given, fitness_of(recordings))
        return
    from shepherd.cli.judge_runs import judge_runs

    judge_runs(runs, given)
