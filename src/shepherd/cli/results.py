"""Commands on finished runs: evaluate, report, compare, chat, export."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_run
from shepherd.cli.settings import find_arm, find_model, find_run


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--round", "round_number", type=click.IntRange(min=1), help="Use the checkpoint of this round.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def evaluate(run: str, round_number: int | None, as_json: bool) -> None:
    """Evaluate the adapter of RUN again.

    Reads adapter and held-out rows from disk. RUN:centralised and RUN:local/NAME are other arms of a run."""
    arm = find_arm(run)
    output.announce_torch()
    from shepherd.experiment.remeasure import evaluate_run

    metrics = evaluate_run(arm, round_number)
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(run: str, as_json: bool) -> None:
    """Rewrite report.html of RUN and print its path.

    Of a run over sites it prints who took part when, too. RUN may be the folder of a site, sites/NAME or
    sites/NAME/runs/RUN: the report is then what left the site."""
    from shepherd.store.site_folder import site_place

    if place := site_place(run):
        from shepherd.experiment.site_report import site_report

        text, facts = site_report(place)
    else:
        from shepherd.report.sites.terminal import run_report

        text, facts = run_report(find_run(run))
    if as_json:
        output.print_json(facts)
    else:
        click.echo(text + str(facts["report"]))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN…", shell_complete=complete_run)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write tables and figures to FILE."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(runs: tuple[str, ...], html: Path | None, as_json: bool) -> None:
    """Compare runs side by side.

    Prints losses with their differences, and the settings that differ."""
    from shepherd.report.comparison.page import compare as compare_runs

    comparison = compare_runs([find_run(run) for run in runs])
    if html is not None:
        output.note(f"written to {comparison.write_html(html)}")
    if as_json:
        output.print_json(dataclasses.asdict(comparison))
    else:
        click.echo(comparison.to_text(), nl=False)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--compare", "other", metavar="base|RUN", help="Answer with this model too, from the same seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy decoding."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Maximum length of an answer."
)
@click.option("--round", "round_number", type=click.IntRange(min=1), help="Use the checkpoint of this round.")
def chat(
    run: str, other: str | None, seed: int, temperature: float, max_new_tokens: int, round_number: int | None
) -> None:
    """Chat with the tuned model of RUN.

    RUN:centralised and RUN:local/NAME are other arms of a run. RUN may be the folder of a site.

    Keeps the conversation; /reset starts a new one, /quit or end of input ends it. In a script:

    \b
    printf 'Hello\\n' | shepherd chat runs/demo
    """
    arm = find_model(run)
    compared = find_model(other) if other not in (None, "base") else other
    output.announce_torch()
    from shepherd.cli.chat import chat as talk

    talk(
        arm,
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
              help="The adapter alone, or the model with the adapter merged into its weights.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
              help="Precision of merged weights.")  # fmt: skip
@click.option(
    "--base", metavar="NAME", help="Base to record in adapter_config.json: a hub id or a folder of another machine."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder to write.")  # fmt: skip
def export(run: str, to: str, dtype: str, base: str | None, out: Path) -> None:
    """Export the adapter of RUN for other tools.

    RUN:centralised and RUN:local/NAME are other arms of a run. RUN may be the folder of a site. An exported adapter
    records the folder or hub id of its base, where other tools on this machine find it; --base records another. Prints
    the folder."""
    arm = find_model(run)
    output.announce_torch()
    from shepherd.serving.export import export as write

    write(arm, to, out, dtype=dtype, base=base, note=output.note)
    click.echo(str(out))
