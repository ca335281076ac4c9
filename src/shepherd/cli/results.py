"""What one does with a finished run: measure it again, read it, compare it, talk to it, take it elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.settings import complete_run, find_run


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--round", "round_number", type=click.IntRange(min=1), help="The adapter of this round's checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="The metrics as JSON on stdout.")
def evaluate(run: str, round_number: int | None, as_json: bool) -> None:
    """Measure the adapter of RUN again.

    From the files on disk, on the held-out rows of the run."""
    folder = find_run(run)
    output.announce_torch()
    from shepherd.experiment.remeasure import evaluate_run

    metrics = evaluate_run(folder, round_number)
    if as_json:
        output.print_json(metrics)
        return
    from shepherd.report.wording import digits, percent, signed

    before, after = metrics["base"], metrics["federated"]
    parts = {"all rows": (before, after)} | {
        name: (before["per_category"][name], row) for name, row in after["per_category"].items()
    }
    output.print_table(
        ("held-out rows", "rows", "base loss", "tuned loss", "difference", "base accuracy", "tuned accuracy"),
        [
            (name, b["rows"], digits(b["loss"]), digits(a["loss"]), signed(a["loss"] - b["loss"]),
             percent(b["token_accuracy"]), percent(a["token_accuracy"]))
            for name, (b, a) in parts.items()
        ],
        right=range(1, 7),
    )  # fmt: skip
    difference = metrics["difference"]
    click.echo(f"\ndifference {signed(difference['difference'])}, {_interval(difference)}")


def _interval(difference: Mapping[str, Any]) -> str:
    from shepherd.report.wording import from_to

    if difference["no_interval"]:
        return f"no interval: {difference['no_interval']}"
    low, high = difference["ci95"]
    small = ", which includes 0: too small to tell" if low <= 0 <= high else ""
    return f"95 % interval {from_to((low, high))}{small}"


@click.command()
@click.argument("run", shell_complete=complete_run)
def report(run: str) -> None:
    """Write report.html of RUN again and print its path."""
    from shepherd.report import write_report

    click.echo(str(write_report(find_run(run))))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN…", shell_complete=complete_run)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Tables and pictures.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def compare(runs: tuple[str, ...], html: Path | None, as_json: bool) -> None:
    """Put runs side by side.

    Losses with their differences, and the settings that are not the same."""
    from shepherd.report.comparison.page import compare as put_side_by_side

    comparison = put_side_by_side([find_run(run) for run in runs])
    if html is not None:
        output.note(f"written to {comparison.write_html(html)}")
    if as_json:
        output.print_json(dataclasses.asdict(comparison))
    else:
        click.echo(comparison.to_text(), nl=False)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--compare", "other", metavar="base|RUN", help="Answer with this one too, from the same seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option("--round", "round_number", type=click.IntRange(min=1), help="The adapter of this round's checkpoint.")
def chat(
    run: str, other: str | None, seed: int, temperature: float, max_new_tokens: int, round_number: int | None
) -> None:
    """Talk to what RUN has tuned.

    Several turns; /reset starts afresh, /quit or the end of the input ends. From a script:

    \b
    printf 'Hello\\n' | shepherd chat runs/demo
    """
    folder = find_run(run)
    compared = str(find_run(other)) if other not in (None, "base") else other
    output.announce_torch()
    from shepherd.serving.chat import chat as talk

    talk(
        folder,
        compared,
        sys.stdin,
        sys.stdout,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        round_number=round_number,
    )


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--to", type=click.Choice(["peft", "merged"]), default="peft", show_default=True,
              help="The adapter alone, or a whole model with the adapter in its weights.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
              help="Precision of merged weights.")  # fmt: skip
@click.option(
    "--base", metavar="NAME", help="The base that adapter_config.json names: a hub id or a folder of another machine."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def export(run: str, to: str, dtype: str, base: str | None, out: Path) -> None:
    """Write the adapter of RUN for other tools.

    An exported adapter names the folder or hub id of its base, by which other tools find it on this machine; --base
    names another one. Prints the folder."""
    folder = find_run(run)
    output.announce_torch()
    from shepherd.serving.export import export as write

    write(folder, to, out, dtype=dtype, base=base)
    click.echo(str(out))
