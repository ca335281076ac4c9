"""`shepherd list`: the contents of the registries."""

from __future__ import annotations

import importlib
import textwrap

import click

from shepherd.cli import output
from shepherd.errors import UsageError, did_you_mean

KINDS: dict[str, tuple[str, str]] = {
    "partitioners": ("shepherd.data.partitioners", "partition.name"),
    "datasets": ("shepherd.data.builtins", "data.source = builtin:NAME"),
    "formats": ("shepherd.data.formats", "data.format"),
    "selections": ("shepherd.clients.selection", "selection.name"),
    "methods": ("shepherd.server.methods", "federation.method"),
    "aggregators": ("shepherd.server.aggregators", "federation.aggregator"),
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
    "arms": ("shepherd.arms", "evaluation.arms"),
    "metrics": ("shepherd.evaluation.text", "evaluation.metrics"),
}
"""Registry -> (the module that holds it under that name, where its names are used)."""


@click.command("list")
@click.argument("kind", required=False, shell_complete=lambda *_: ["recipes", *KINDS])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_names(kind: str | None, as_json: bool) -> None:
    """List everything that has a name in TOML, with its options."""
    if kind is not None and kind not in ("recipes", *KINDS):
        near = did_you_mean(kind, ["recipes", *KINDS])
        raise UsageError(f"unknown kind: {kind!r}.{near}", hint=f"kinds: recipes, {', '.join(KINDS)}")
    found = {name: _names(name) for name in ([kind] if kind else ["recipes", *KINDS])}
    from shepherd.registry import broken_plugins

    if broken := broken_plugins():
        output.note(f"warning: {broken}")
    if as_json:
        output.print_json(found)
        return
    for position, (name, entries) in enumerate(found.items()):
        used = KINDS[name][1] if name in KINDS else "shepherd run NAME, or shepherd copy NAME to edit it"
        click.echo(("\n" if position else "") + f"{name}  ({used})")
        width = max([13, *(len(entry["name"]) for entry in entries)])
        for entry in entries:
            options = f" [{', '.join(entry['options'])}]" if entry["options"] else ""
            options += f" [{entry['package']}]" if "package" in entry else ""
            indent = " " * (width + 3)
            text = textwrap.fill(
                f"{entry['about']}{options}",
                100,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens="package" not in entry,  # the name of a package stays in one piece
            )
            click.echo(f"  {entry['name']:<{width}} {text.strip()}")
    if kind == "methods":
        _print_methods()


def _print_methods() -> None:
    """The table of methods: pieces, bytes per client and round, properties."""
    from shepherd.report.wording import size
    from shepherd.server.composition import DEFAULTS
    from shepherd.server.traffic import table

    rows = [
        (
            row["name"],
            " ".join(f"{kind}={row[kind]}" for kind, usual in DEFAULTS.items() if row[kind] != usual) or "none",
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
        "pieces other than FedIT's",
        "up",
        "down",
        "exact",
        "sums only",
        "mixed ranks",
        "source",
    )
    click.echo("\nper client and round: r = 8 on q and v of SmolLM2-135M, 10 clients, float32")
    output.print_table(header, rows, right=(2, 3))
    click.echo("exact: the next model is the weighted mean of the clients' models; sums only: fits secure aggregation;")
    click.echo("dense: with mixed ranks, only if every upload holds all slots, with zeros where the client trains none")
    click.echo("* experimental, for the reasons in shepherd list methods --json")


def _names(kind: str) -> list[dict]:
    if kind == "recipes":
        from shepherd.recipe import recipes

        return [{"name": name, "about": about, "options": []} for name, about in recipes().items()]
    registry = getattr(importlib.import_module(KINDS[kind][0]), kind)
    more: dict[str, dict] = {}
    if kind == "methods":
        from shepherd.server.traffic import table

        more = {row["name"]: row for row in table()}
    options = {name: registry.options(name) for name in registry.known()}
    return [
        {
            "name": name,
            "about": registry.describe(name),
            "options": [
                o.name if o.default is o.empty else f"{o.name} = {o.default!r}" for o in options[name].values()
            ],
            **more.get(name, {}),
            **({"package": registry.package(name)} if registry.package(name) else {}),
        }
        for name in options
    ]
