"""`shepherd benchmark`: a run's models on tasks of lm-evaluation-harness, and on its held-out or other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_run
from shepherd.cli.settings import find_arm
from shepherd.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN[:ARM]…", shell_complete=complete_run)
@click.option("--tasks", "given", multiple=True, default=("held-out",), show_default=True, metavar="TASK,TASK…",
              help="held-out, FILE.jsonl, one kind of either, or tasks of the harness.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Evaluate the first N documents of each task.")
@click.option("--fewshot", type=click.IntRange(min=0), metavar="N",
              help="Examples in the prompt, for tasks of the harness that do not set it.")  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Sequences in a pass."
)
@click.option("--download", is_flag=True, help="Let tasks download their datasets from the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def benchmark(
    names: tuple[str, ...], given: tuple[str, ...], limit: int | None, fewshot: int | None, batch_size: int,
    download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate the models of RUN with lm-evaluation-harness.

    Without ARM: base, federated and merged; RUN:centralised, RUN:local/CLIENT are other arms whose adapters were kept.
    held-out and FILE.jsonl stand for three offline tasks each: likelihood (the held-out loss), choice (the reference
    among responses of other rows) and generation. Writes RUN/benchmarks/TASK.json. Needs the extra `eval`."""
    pairs = [_split(name) for name in names]
    folders = {run: None for run, _ in pairs}
    if len(folders) > 1:
        raise UsageError("one run at a time: the results go to its directory", hint="call it once for each run")
    (folder,) = folders
    from shepherd.experiment.benchmarks.tasks import check_harness, parse

    wanted = parse([name.strip() for group in given for name in group.split(",")])
    check_harness()
    output.announce_torch()
    from shepherd.experiment.benchmarks.benchmark import Settings
    from shepherd.experiment.benchmarks.benchmark import benchmark as evaluate

    settings = Settings(limit, fewshot, batch_size, download)
    records = evaluate(folder, [arm for _, arm in pairs], wanted, settings, output.note)
    from shepherd.report import write_report

    page = write_report(folder)
    if as_json:
        output.print_json(records)
    else:
        _print(records)
        output.note(f"written to {folder / 'benchmarks'} and {page}")


def _split(name: str) -> tuple[Path, str]:
    """(run, arm) of RUN:local/first; the arm is "" for RUN alone, which stands for several models."""
    from shepherd.store.adapters import FEDERATED

    found = find_arm(name)
    if found.round is not None:
        raise UsageError(
            f"{name}: a benchmark is of final adapters, not of a round", hint=f"shepherd benchmark {found.run}"
        )
    if found.arm == FEDERATED and not name.endswith(f":{FEDERATED}"):
        return found.run, ""
    return found.run, found.model


def _print(records: Sequence[Mapping[str, Any]]) -> None:
    from shepherd.report.wording import with_error

    models = list(dict.fromkeys(model for record in records for model in record["models"]))
    output.print_table(
        ("task", "documents", "metric", "better", *models),
        [
            (
                record["task"],
                len(record["rows"]) or "",
                metric,
                {True: "higher", False: "lower"}.get(about["higher_is_better"], ""),
                *(with_error(record["models"].get(model, {}).get("metrics", {}).get(metric)) for model in models),
            )
            for record in records
            for metric, about in record["metrics"].items()
        ],
        right=[1, *range(4, 4 + len(models))],
    )
    differences = [(record["task"], found) for record in records for found in record["differences"]]
    if differences:
        from shepherd.report.wording import from_to, signed

        click.echo()
        output.print_table(
            ("task", "metric", "difference", "", "95 % interval"),
            [
                (task, found["metric"], f"{found['a']} - {found['b']}", signed(found["difference"]),
                 found["no_interval"] or from_to(tuple(found["ci95"])))
                for task, found in differences
            ],
            right=[3],
        )  # fmt: skip
