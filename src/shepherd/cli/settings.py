"""Flags of a command -> a config: recipe, then --quick, then flags, then --set; the last one wins.

Names in a registry (partitioner, selection, method, server optimizer) are checked with everything else, so that one
call reports every mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli.completion import complete_setting
from shepherd.errors import ShepherdError, UsageError, did_you_mean
from shepherd.experiment.checks import registry_problems

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.store.adapters import ArmName

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
"""--quick: upper bounds of these settings. A smaller value, or one given by a flag, stays.

evaluation.local_clients is not among them: against two of eight clients, the federation can look worse than it is.
"""


@dataclass(frozen=True)
class Settings:
    """A resolved config, the origin of each value ({key: origin}; defaults are absent), and notes for the user."""

    config: Config
    origins: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


def recipe_options(command: Callable) -> Callable:
    """The flags of every command that takes a recipe."""
    for option in reversed((
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=complete_setting,
                     help="Set any key, e.g. --set lora.r=16; repeatable. See shepherd config show."),
        click.option("--data", metavar="SOURCE",
                     help="File, folder with a file per client, builtin:NAME, hub:ORG/NAME."),
        click.option("--columns", multiple=True, metavar="FIELD=COLUMN",
                     help="Map fields to columns, e.g. instruction=question,response=answer."),
        click.option("--model", metavar="BASE", help="Built-in name, folder, GGUF file or hub id."),
        click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Folder that holds the runs."),
        click.option("--name", help="Name of the run."),
        click.option("--seed", type=int, help="Root of every random stream."),
        click.option("--quick", is_flag=True, help="Shrink the recipe for a quick trial; prints the changes."),
    )):  # fmt: skip
        command = option(command)
    return command


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
    """Resolve flags to a config. Without a recipe: `own-data` when --data is given, else `default_recipe`."""
    from shepherd.recipe import merge, parse_overrides, read_recipe, resolve

    for flag, given in (("--data", data), ("--model", model), ("--out", out), ("--name", name)):
        if given == "":  # most often an unset variable of the shell; "" would mean the current folder
            raise UsageError(f"{flag} is empty", hint=f"give {flag} a value, or leave it out")
    own_data = recipe is None and data is not None
    recipe = "own-data" if own_data else recipe or default_recipe
    notes: list[str] = []
    flags: list[tuple[str, dict[str, Any]]] = [
        (flag, {table: {key: value}})
        for flag, table, key, value in (
            ("--data", "data", "source", data),
            ("--columns", "data", "columns", columns_of(columns) or None),
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
        notes.insert(0, no_recipe if own_data else f"{data} names its clients: {division}")
    return Settings(config, origins, tuple(notes))


def _clients_of(data: str) -> tuple[str, ...]:
    """Clients named by the files, sub-folders or lists of a file or folder; () where there are none."""
    from shepherd.data.containers import clients_of
    from shepherd.data.sources import is_path

    path = Path(data).expanduser()
    return clients_of(path) if is_path(data) and path.exists() else ()


def _division(config: Config, data: str, named: Sequence[str]) -> str:
    """A phrase for the partition of a config. named: the clients that `data` names."""
    from shepherd.report.wording import listing

    how, key = config.partition, config.partition.options.get("key", "category")
    number = f"{how.clients} clients" if how.clients != 1 else "1 client"
    if how.name == "files":
        return "one client per file"
    if how.name != "by_key":
        return f"{number}, equal shares" if how.name == "iid" else f"{number} by {how.name}"
    if not how.clients and named and key == "source":
        each = "file or sub-folder" if Path(data).expanduser().is_dir() else "list"
        return f"{len(named)} clients, one per {each}: {listing(list(named), 5)}"
    each = key if key in ("category", "source") else f"value of the column {key}"
    return f"one client per {each}" + (f", split or merged into {number}" if how.clients else "")


def _rate_ratio_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The layer with the method's default of objective.rate_ratio, below all other settings; None without one."""
    from shepherd.server.methods import build_method

    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    name = tables.get("federation", {}).get("method")
    try:
        ratio = build_method(name, tables.get("method")).rate_ratio if isinstance(name, str) else 1.0
    except ShepherdError:
        return None  # reported by the checks
    return (f"method {name}", {"objective": {"rate_ratio": ratio}}) if ratio != 1.0 else None


def _quick(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The layer of --quick on top of `settings`, and a line that lists its changes."""
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
    return layer, "--quick sets " + (", ".join(changed) or "nothing: the recipe is already that small")


def columns_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("instruction=question,response=answer",)` -> {"instruction": "question", "response": "answer"}."""
    columns = {}
    for pair in (part for text in pairs for part in text.split(",")):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise UsageError(f"cannot read --columns {pair!r}", hint="write FIELD=COLUMN, e.g. instruction=question")
        columns[ours] = theirs
    return columns


def looks_like_recipe(argument: str) -> bool:
    """Whether a SOURCE|RECIPE argument is a recipe: a TOML file or the name of a packaged recipe."""
    from shepherd.recipe import recipes

    return argument.endswith(".toml") or (argument in recipes() and not Path(argument).exists())


def run_named(argument: str | Path) -> Path | None:
    """The run directory of a path, or of a name under runs/; None where there is none."""
    return next((at for at in (Path(argument), Path("runs") / argument) if (at / "config.toml").is_file()), None)


def find_run(argument: str) -> Path:
    """Find a run directory by path, or by name under runs/. Raises UsageError with the nearest name."""
    from shepherd.store.site_folder import site_place

    if site_place(argument) is not None:
        raise UsageError(
            f"{argument} is the folder of a site, and the run directory is the coordinator's",
            hint="shepherd report, chat and export take the folder of a site",
        )
    if (found := run_named(argument)) is not None:
        return found
    alone = Path(argument).name == argument  # a path into a folder means a run of that folder
    folders = {Path(), Path("runs")} if alone else {Path(argument).parent}
    runs = sorted(str(path.parent) for folder in folders if folder.is_dir() for path in folder.glob("*/config.toml"))
    near = did_you_mean(argument, [*runs, *(Path(run).name for run in runs)])
    what = "not a run directory (no config.toml)" if Path(argument).is_dir() else "run not found"
    shown = ", ".join(runs) if len(runs) <= 8 else f"…, {', '.join(runs[-8:])} ({len(runs)} in all)"
    known = f"runs here: {shown}" if runs else "start one with shepherd run"
    raise UsageError(f"{what}: {argument}{near and f'.{near}'}", hint=known)


def find_arm(argument: str) -> ArmName:
    """Find RUN, RUN:ARM, RUN:local/NAME or RUN@ROUND, with RUN a path or a name under runs/. Raises as `find_run`."""
    from shepherd.store.adapters import arm_name
    from shepherd.store.site_folder import site_place

    for candidate in (Path(argument), Path("runs") / argument):
        found = arm_name(candidate)
        if (found.run / "config.toml").is_file() and site_place(found.run) is None:
            return found
    found = arm_name(argument)
    return found._replace(run=find_run(str(found.run)))


def find_model(argument: str) -> ArmName:
    """Find the same, or the model of a site: SITE, SITE:own or SITE:federated, with SITE the folder of a site or of one
    of its runs. Without a name it is the site's own model where the run makes one. Raises UsageError."""
    from shepherd.store.adapters import FEDERATED, arm_name
    from shepherd.store.site_folder import OWN, OWN_FOLDER, run_with_a_model, site_place

    found = arm_name(argument)
    place = site_place(found.run)
    if place is None:
        return find_arm(argument)
    if found.round is not None or found.arm not in (FEDERATED, OWN) or found.client:
        raise UsageError(
            f"{argument}: a site has no such model", hint=f"{found.run}:{FEDERATED} or, where a run makes one, :{OWN}"
        )
    run = run_with_a_model(place)
    named = argument.endswith(f":{FEDERATED}") and not Path(argument).is_dir()
    has_own = (run / OWN_FOLDER).is_dir()
    return found._replace(run=run, arm=OWN if has_own and not named else found.arm)
