"""`shepherd privacy audit`: attacks on a finished run, printed beside their baselines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_run
from shepherd.errors import plural


@click.command()
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="exposure, membership, tokens or release; repeatable. Default: all that the run allows.",
)
@click.option("--candidates", default=1000, show_default=True, help="Codes among which each canary is ranked.")
@click.option("--rows", default=1000, show_default=True, help="Most rows of each kind for membership inference.")
@click.option("--round", default=0, help="Round whose update is attacked; default: the last possible.")
@click.option("--client", default="", help="Client whose update is attacked; default: the first of the round.")
@click.option("--seed", default=0, show_default=True, help="Seed of the candidates and of rows that are drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as audit.json has it.")
def audit(run: Path, attacks: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Attack a finished run and print what was found.

    Exposure of planted codes (privacy.audit in the recipe), membership inference, token presence in one client's
    update; each beside its baseline. Under client-level differential privacy also a lower bound of epsilon. Needs the
    rows that the run was trained on. Writes audit.json and the report.
    """
    from shepherd.experiment.audit import AuditOptions, audit_run

    found = audit_run(run, attacks, AuditOptions(**options), output.note)
    if as_json:
        output.print_json(found)
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    if privacy := found["privacy"]:
        click.echo(f"differential privacy  epsilon = {privacy.get('epsilon')} at delta = {privacy.get('delta')}\n")
    parts = {"exposure": _exposure, "membership": _membership, "tokens": _tokens, "release": _release}
    for name, show in parts.items():
        if name in found:
            show(found[name])
            click.echo()
    for name, reason in found["left_out"].items():
        click.echo(textwrap.fill(f"left out: {name}: {reason}", 100, subsequent_indent="  "))
    for sentence in found["notes"]:
        click.echo(sentence)


def _exposure(found: Mapping[str, Any]) -> None:
    click.echo(
        f"exposure of planted codes, in bits: {found['candidates']:,} candidates, at most {found['most']:.2f}, "
        f"{found['chance']:.2f} by chance"
    )
    rows = [
        (
            f"{row['copies']}" + (" (never trained on)" if not row["copies"] else ""),
            str(row["codes"]),
            f"{row['tuned']:.2f}",
            f"{row['base']:.2f}",
            f"{row['most_exposed']:.2f}",
            str(row["first"]),
        )
        for row in found["by_copies"]
    ]
    output.print_table(
        ("copies", "codes", "tuned", "base", "most exposed", "ranked first"), rows, right=(1, 2, 3, 4, 5)
    )


def _membership(found: Mapping[str, Any]) -> None:
    click.echo(f"membership inference: {found['inside']:,} rows trained on, {found['outside']:,} held out")
    rows = [(name, *_figures(found[name])) for name in found["scores"]]
    rows += [(f"difference, {client}", *_figures(one)) for client, one in found["clients"].items()]
    rows.append(("by chance", "0.500", "", f"{found['false_positive_rate']:.3f}", ""))
    output.print_table(("score", "AUC", "95 %", "TPR at 1 % FPR", "95 %"), rows, right=(1, 3))
    for name, meaning in found["scores"].items():
        click.echo(f"  {name}: {meaning}")
    compared, within = found["compared"], found["difference"]["within_categories"]
    text = f"{compared['rows']} ({compared['categories_apart']:.2f} apart)"
    if within:
        text += f"; AUC within categories {within['auc']:.3f}"
    click.echo(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "))


def _release(found: Mapping[str, Any]) -> None:
    verdict = "ALARM: more than its noise allows" if found["alarm"] else "no alarm, which is no proof"
    click.echo(
        f"lower bound of epsilon of one release, {found['releases']:,} with a canary and as many without, at delta = "
        f"{found['delta']:g}: {verdict}"
    )
    output.print_table(
        ("lower bound", "estimate", "by its noise multiplier"),
        [(f"{found['lower_bound']:.3f}", f"{found['estimate']:.3f}", f"{found['claimed']:.3f}")],
        right=(0, 1, 2),
    )


def _figures(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    low, high = found["ci95"]
    below, above = found["tpr_ci95"]
    return f"{found['auc']:.3f}", f"{low:.3f} to {high:.3f}", f"{found['tpr']:.3f}", f"{below:.3f} to {above:.3f}"


def _tokens(found: Mapping[str, Any]) -> None:
    repeated = {True: "repeated bit for bit", False: "NOT repeated bit for bit", None: "not compared with the record"}
    work = f"{plural(found['rows'], 'row')}, {plural(found['steps'], 'step')} of {found['optimizer']}"
    click.echo(
        f"token presence in one update: round {found['round']}, {found['client']}, {work}; "
        f"{repeated[found['replayed_exactly']]}"
    )
    output.print_table(
        ("recall", "by frequency", "tokens", "attacked"),
        [(f"{found['recall']:.3f}", f"{found['guessed_by_frequency']:.3f}", str(found["tokens"]), found["attacked"])],
        right=(0, 1, 2),
    )
