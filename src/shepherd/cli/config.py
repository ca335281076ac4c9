"""`shepherd config`: the resolved settings and the origin of each value."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_recipe
from shepherd.cli.group import Commands
from shepherd.cli.settings import gather, recipe_options


@click.group(cls=Commands)
def config() -> None:
    """Show every setting and its meaning."""


@config.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option("--origin", is_flag=True, help="Mark each value as a default, or with the recipe or flag that set it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(recipe: str | None, origin: bool, as_json: bool, **flags) -> None:
    """Print every key with its value and meaning, as TOML for `shepherd run`; without RECIPE, the defaults."""
    from shepherd.config import Table, keys
    from shepherd.recipe import toml_value

    settings = gather(recipe, **flags, default_recipe=None)
    for line in settings.notes:
        output.note(line)
    values: dict[str, dict[str, Any]] = {
        name: {key: dict(value) if isinstance(value, Table) else value for key, value in table}
        for name, table in settings.config
    }
    known = keys()
    run = settings.config
    owners = {
        "partition": run.partition.name,
        "selection": run.selection.name,
        "method": run.federation.method,
        "server": run.server.optimizer,
    }
    entries: list[dict[str, Any]] = [
        {
            "key": f"{table}.{name}",
            "value": value,
            "origin": settings.origins.get(f"{table}.{name}", "default"),
            "meaning": " ".join((known[f"{table}.{name}"].description or "").split())
            if f"{table}.{name}" in known
            else f"option of {owners.get(table, table)}",
        }
        for table, row in values.items()
        for name, value in row.items()
    ]
    if as_json:
        output.print_json(entries)
        return
    for table in values:
        click.echo(f"[{table}]")
        for entry in entries:
            owner, _, name = entry["key"].partition(".")
            if owner == table:
                for line in textwrap.wrap(entry["meaning"], 110, break_on_hyphens=False):
                    click.echo(f"# {line}")
                click.echo(f"{name} = {toml_value(entry['value'])}" + (f"  # {entry['origin']}" if origin else ""))
        click.echo()
