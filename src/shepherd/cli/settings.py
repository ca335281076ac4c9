"""Flags of a command -> a config: recipe, then --quick, then flags, then --set; the last one wins.

Names that live in a registry (partitioner, selection, method, server optimizer) are checked with everything else, so
that one call shows all that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.errors import ShepherdError, UsageError, did_you_mean
from shepherd.experiment.checks import registry_problems

if TYPE_CHECKING:
    from shepherd.config import Config

QUICK: dict[str, int] = {
    "data.max_length": 128,
    "data.held_out_per_category": 2,
    "federation.rounds": 2,
    "training.batch_size": 1,
    "training.local_steps": 2,
    "evaluation.every": 0,
    "evaluation.generate": 2,
    "evaluation.max_new_tokens": 24,
}
"""--quick: the most that each of these may be. A setting that is smaller already, or given by a flag, stays.

Which clients are trained alone is none of them: beside two of eight, the federation can look worse than it is.
"""


@dataclass(frozen=True)
class Settings:
    """A resolved config, where each value came from ({key: origin}; defaults are absent), and what to tell the user."""

    config: Config
    origins: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


def recipe_options(command: Callable) -> Callable:
    """The flags of every command that takes a recipe."""
    for option in reversed((
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=_complete_key,
                     help="Set any key, e.g. --set lora.r=16; repeat for more. See shepherd config show."),
        click.option("--data", metavar="SOURCE",
                     help="File, folder with a file per client, builtin:NAME, hub:ORG/NAME."),
        click.option("--columns", multiple=True, metavar="FIELD=COLUMN",
                     help="Which column holds which field, e.g. instruction=question,response=answer."),
        click.option("--model", metavar="BASE", help="Built-in name, folder, GGUF file or hub id."),
        click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Folder that holds the runs."),
        click.option("--name", help="Name of the run."),
        click.option("--seed", type=int, help="Root of every random stream."),
        click.option("--quick", is_flag=True, help="A small version of the recipe; prints what it changed."),
    )):  # fmt: skip
        command = option(command)
    return command


def complete_recipe(_: click.Context, __: click.Parameter, incomplete: str) -> list:
    from click.shell_completion import CompletionItem

    from shepherd.recipe import recipes

    found = [CompletionItem(name, help=about) for name, about in recipes().items() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def gather(
    recipe: str | None,
    overrides: tuple[str, ...] = (),
    data: str | None = None,
    columns: tuple[str, ...] = (),
    model: str | None = None,
    out: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    quick: bool = False,
    default_recipe: str | None = "demo",
) -> Settings:
    """The config that these flags mean. Without a recipe: `own-data` when --data is given, else `default_recipe`."""
    from shepherd.recipe import merge, parse_overrides, read_recipe, resolve

    for flag, given in (("--data", data), ("--model", model), ("--out", out), ("--name", name)):
        if given == "":  # most often a variable of the shell that is not set; "" would mean the folder one is in
            raise UsageError(f"{flag} is empty", hint=f"give {flag} a value, or leave it out")
    own_data = recipe is None and data is not None
    recipe = "own-data" if own_data else recipe or default_recipe
    notes: list[str] = []
    flags: list[tuple[str, dict[str, Any]]] = [
        (flag, {table: {key: value}})
        for flag, table, key, value in (
            ("--data", "data", "source", data),
            ("--columns", "data", "columns", _columns(columns) or None),
            ("--model", "model", "base", model),
            ("--out", "run", "out", out),
            ("--name", "run", "name", name),
            ("--seed", "run", "seed", seed),
        )
        if value is not None
    ]
    layers = [(f"recipe {recipe}", read_recipe(recipe))] if recipe else []
    chosen = parse_overrides(overrides)
    named = _clients_of(data) if data is not None and "name" not in chosen.get("partition", {}) else ()
    if named and merge(layers)[0].get("partition", {}).get("name") != "files":
        flags.append(("--data", {"partition": {"name": "by_key", "key": "source", "clients": 0}}))
    if quick:
        layer, note = _quick(merge([*layers, *flags])[0], chosen)
        layers.append(("--quick", layer))
        notes.append(note)
    layers += [*flags, ("--set", chosen)]
    settings, origins = merge(layers)
    if (ratio := _rate_ratio_of(settings)) is not None:
        settings, origins = merge([ratio, *layers])
    config = resolve(settings, (registry_problems,))
    if data is not None and (own_data or named):
        division = _division(config, data, named)
        no_recipe = f"no recipe given: --data uses the recipe own-data ({division})"
        notes.insert(0, no_recipe if own_data else f"{data} divides its rows: {division}")
    return Settings(config, origins, tuple(notes))


def _clients_of(data: str) -> tuple[str, ...]:
    """The clients that a file or folder names by its files, sub-folders or lists; () where there are none."""
    from shepherd.data.containers import clients_of
    from shepherd.data.sources import is_path

    path = Path(data).expanduser()
    return clients_of(path) if is_path(data) and path.exists() else ()


def _division(config: Config, data: str, named: Sequence[str]) -> str:
    """How the config divides the rows over clients, in words. named: the clients that `data` names."""
    from shepherd.report.wording import listing

    how, key = config.partition, config.partition.options.get("key", "category")
    some = f"{how.clients} clients" if how.clients != 1 else "1 client"
    if how.name == "files":
        return "a client for each file"
    if how.name != "by_key":
        return f"{some}, equal shares" if how.name == "iid" else f"{some} by {how.name}"
    if not how.clients and named and key == "source":
        each = "file or sub-folder" if Path(data).expanduser().is_dir() else "list"
        return f"{len(named)} clients, one for each {each}: {listing(list(named), 5)}"
    each = f"each {key}" if key in ("category", "source") else f"each value of the column {key}"
    return f"a client for {each}" + (f", split or joined to {some}" if how.clients else "")


def _rate_ratio_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The layer of the method's own objective.rate_ratio, which any other setting overrides; None where it has none."""
    from shepherd.server.methods import build_method

    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    name = tables.get("federation", {}).get("method")
    try:
        ratio = build_method(name, tables.get("method")).rate_ratio if isinstance(name, str) else 1.0
    except ShepherdError:
        return None  # the checks say so
    return (f"method {name}", {"objective": {"rate_ratio": ratio}}) if ratio != 1.0 else None


def _quick(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The layer of --quick on top of `settings`, and the line that says what it changed."""
    from shepherd.config import keys

    layer: dict[str, dict[str, int]] = {}
    changed = []
    for key, most in QUICK.items():
        table, name = key.split(".")
        values = settings.get(table, {})
        if not isinstance(values, Mapping) or name in chosen.get(table, {}):
            continue
        current = values.get(name, keys()[key].default)
        if key == "training.local_steps" and current == 0:
            current = "whole epochs"
        if current == "whole epochs" or (isinstance(current, int) and current > most):
            layer.setdefault(table, {})[name] = most
            changed.append(f"{key} = {most} (was {current})")
    return layer, "--quick sets " + (", ".join(changed) or "nothing: the recipe is that small already")


def _columns(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("instruction=question,response=answer",)` -> {"instruction": "question", "response": "answer"}."""
    columns = {}
    for pair in (part for text in pairs for part in text.split(",")):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise UsageError(f"cannot read --columns {pair!r}", hint="write FIELD=COLUMN, e.g. instruction=question")
        columns[ours] = theirs
    return columns


def looks_like_recipe(argument: str) -> bool:
    """Whether a SOURCE|RECIPE argument means a recipe: a TOML file or the name of a packaged recipe."""
    from shepherd.recipe import recipes

    return argument.endswith(".toml") or (argument in recipes() and not Path(argument).exists())


def find_run(argument: str) -> Path:
    """The run directory that `argument` means: a path, or a name under runs/. Raises UsageError with the nearest."""
    for candidate in (Path(argument), Path("runs") / argument):
        if (candidate / "config.toml").is_file():
            return candidate
    alone = Path(argument).name == argument  # a path into a folder means a run of that folder
    folders = {Path(), Path("runs")} if alone else {Path(argument).parent}
    runs = sorted(str(path.parent) for folder in folders if folder.is_dir() for path in folder.glob("*/config.toml"))
    near = did_you_mean(argument, [*runs, *(Path(run).name for run in runs)])
    what = "no config.toml in this folder, so it is no run" if Path(argument).is_dir() else "run not found"
    shown = ", ".join(runs) if len(runs) <= 8 else f"…, {', '.join(runs[-8:])} ({len(runs)} in all)"
    known = f"runs here: {shown}" if runs else "shepherd run makes one"
    raise UsageError(f"{what}: {argument}{near and f'.{near}'}", hint=known)


def complete_run(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    found = sorted(str(path.parent) for path in Path("runs").glob("*/config.toml"))
    return [run for run in found if run.startswith(incomplete)] or [
        Path(run).name for run in found if Path(run).name.startswith(incomplete)
    ]


def _complete_key(_: click.Context, __: click.Parameter, incomplete: str) -> list:
    from click.shell_completion import CompletionItem

    from shepherd.config import keys

    return [
        CompletionItem(f"{key}=", help=re.sub(r"\s+", " ", entry.description or ""))
        for key, entry in keys().items()
        if key.startswith(incomplete)
    ]
