"""What there is and how things stand: names, settings, this machine, completion for the shell."""

from __future__ import annotations

import importlib
import textwrap

import click

from shepherd.cli import output
from shepherd.cli.group import Commands
from shepherd.cli.settings import complete_recipe, gather, recipe_options
from shepherd.errors import UsageError, did_you_mean

KINDS: dict[str, tuple[str, str]] = {
    "partitioners": ("shepherd.data.partitioners", "partition.name"),
    "datasets": ("shepherd.data.builtins", "data.source = builtin:NAME"),
    "selections": ("shepherd.clients.selection", "selection.name"),
    "methods": ("shepherd.server.methods", "federation.method"),
    "starts": ("shepherd.server.pieces.start", "method.start"),
    "views": ("shepherd.server.pieces.view", "method.view"),
    "schedules": ("shepherd.server.pieces.schedule", "method.train"),
    "homes": ("shepherd.server.pieces.local_modules", "method.home"),
    "payloads": ("shepherd.server.pieces.payload", "method.payload"),
    "weighings": ("shepherd.server.pieces.weighing", "method.weigh"),
    "merges": ("shepherd.server.pieces.merge", "method.merge"),
    "splits": ("shepherd.server.pieces.split", "method.split"),
    "remainders": ("shepherd.server.pieces.remainder", "method.remainder"),
    "optimizers": ("shepherd.server.optimizer", "server.optimizer"),
    "personalizations": ("shepherd.clients.personal.methods", "personalization.name"),
    "metrics": ("shepherd.evaluation.text", "measured on generated answers"),
}
"""Registry -> (the module that holds it under that name, where its names are used)."""


@click.command("list")
@click.argument("kind", required=False, shell_complete=lambda *_: ["recipes", *KINDS])
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_names(kind: str | None, as_json: bool) -> None:
    """List all that has a name in TOML, with its options."""
    if kind not in (None, "recipes", *KINDS):
        near = did_you_mean(kind, ["recipes", *KINDS])
        raise UsageError(f"unknown kind: {kind!r}.{near}", hint=f"kinds: recipes, {', '.join(KINDS)}")
    found = {name: _names(name) for name in ([kind] if kind else ["recipes", *KINDS])}
    if as_json:
        output.print_json(found)
        return
    for position, (name, entries) in enumerate(found.items()):
        used = KINDS[name][1] if name in KINDS else "shepherd run NAME"
        click.echo(("\n" if position else "") + f"{name}  ({used})")
        width = max([13, *(len(entry["name"]) for entry in entries)])
        for entry in entries:
            options = f" [{', '.join(entry['options'])}]" if entry["options"] else ""
            indent = " " * (width + 3)
            text = textwrap.fill(f"{entry['about']}{options}", 100, initial_indent=indent, subsequent_indent=indent)
            click.echo(f"  {entry['name']:<{width}} {text.strip()}")
    if kind == "methods":
        _print_methods()


def _print_methods() -> None:
    """The pieces and the price of each method, as a table."""
    from shepherd.report.wording import size
    from shepherd.server.composition import DEFAULTS
    from shepherd.server.traffic import table

    rows = [
        (
            row["name"],
            " ".join(f"{kind}={row[kind]}" for kind, usual in DEFAULTS.items() if row[kind] != usual) or "the usual",
            size(row["bytes_up"]),
            size(row["bytes_down"]),
            row["exact"],
            "dense" if row["sum_dense"] else "yes" if row["sum_only"] else "no",
            "yes" if row["mixed_ranks"] else "no",
            row["citation"] + (" *" if row["experimental"] else ""),
        )
        for row in table()
    ]
    header = (
        "method",
        "pieces, where they are not FedIT's",
        "up",
        "down",
        "exact",
        "sums only",
        "mixed ranks",
        "source",
    )
    click.echo("\nper client and round: r = 8 on q and v of SmolLM2-135M, 10 clients, float32")
    output.print_table(header, rows, right=(2, 3))
    click.echo(
        "exact: the next model is the weighted mean of the clients' models; sums only: fit for secure aggregation;"
    )
    click.echo(
        "dense: where ranks are mixed, only if every upload holds all slots, with zeros in those that a client lacks"
    )
    click.echo("* experimental: shepherd list methods --json says why")


def _names(kind: str) -> list[dict]:
    if kind == "recipes":
        from shepherd.recipe import recipes

        return [{"name": name, "about": about, "options": []} for name, about in recipes().items()]
    registry = getattr(importlib.import_module(KINDS[kind][0]), kind)
    more: dict[str, dict] = {}
    if kind == "methods":
        from shepherd.server.traffic import table

        more = {row["name"]: row for row in table()}
    options = {name: registry.options(name) if kind != "metrics" else {} for name in registry}
    return [
        {
            "name": name,
            "about": registry.describe(name),
            "options": [
                o.name if o.default is o.empty else f"{o.name} = {o.default!r}" for o in options[name].values()
            ],
            **more.get(name, {}),
        }
        for name in registry
    ]


@click.group(cls=Commands)
def config() -> None:
    """Every setting and its meaning."""


@config.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@recipe_options
@click.option(
    "--origin", is_flag=True, help="Say for each value whether it is a default or which recipe or flag set it."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(recipe: str | None, origin: bool, as_json: bool, **flags) -> None:
    """Print every key with its value and meaning, as TOML that `shepherd run` takes; without RECIPE, the defaults."""
    from shepherd.recipe import keys, toml_value

    settings = gather(recipe, **flags, default_recipe=None)
    for line in settings.notes:
        output.note(line)
    values = settings.config.model_dump()
    known = keys()
    run = settings.config
    owners = {
        "partition": run.partition.name,
        "selection": run.selection.name,
        "method": run.federation.method,
        "server": run.server.optimizer,
    }
    entries = [
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
                for line in textwrap.wrap(entry["meaning"], 110):
                    click.echo(f"# {line}")
                click.echo(f"{name} = {toml_value(entry['value'])}" + (f"  # {entry['origin']}" if origin else ""))
        click.echo()


@click.command()
@click.option("--full", is_flag=True, help="Load PyTorch too: threads and precision by measurement, CUDA.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def doctor(full: bool, as_json: bool) -> None:
    """Look at this machine and at the installation.

    Versions, processor, memory, disk, cache, models, extras. Exit status 5 where no run can work."""
    from shepherd.cli import doctor
    from shepherd.errors import ResourceError

    if full:
        output.announce_torch()
    findings = doctor.examine(full)
    if as_json:
        output.print_json([section.as_dict() for section in findings])
    else:
        click.echo(doctor.to_text(findings, output.colours()), nl=False)
    broken = [line for section in findings for line in section.lines if line.state == "bad"]
    if broken:
        raise ResourceError(f"{broken[0].name}: {broken[0].value}", hint=broken[0].hint)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For bash: eval "$(shepherd completion bash)".
    """
    from click.shell_completion import get_completion_class

    from shepherd.cli.commands import cli

    click.echo(get_completion_class(shell)(cli, {}, "shepherd", "_SHEPHERD_COMPLETE").source())
