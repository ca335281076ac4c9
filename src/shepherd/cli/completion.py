"""Completion of words on the command line: recipes, runs, and after --set keys and values.

complete_setting(ctx, parameter, "federation.ro")       # -> federation.rounds=, with its type, default and meaning
complete_setting(ctx, parameter, "model.dtype=b")       # -> model.dkind=bfloat16

Nothing here loads PyTorch. Registries are imported only where one of their names or options is completed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

import click

from shepherd.errors import ShepherdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from shepherd.registry import Registry

PATHS = {"data.source": "file", "data.held_out_source": "file", "model.base": "file", "run.out": "dir"}
"""Keys whose value can be a path, and what it leads to."""


class Setting(NamedTuple):
    """A key that `--set` takes: annotation of its value, default (`...` if required, None if unset) and meaning."""

    annotation: Any
    default: Any
    about: str


def complete_packaged(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Packaged recipes, with their purpose."""
    from shepherd.recipe import recipes

    return [_item(name, about) for name, about in recipes().items() if name.startswith(incomplete)]


def complete_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Packaged recipes, and files."""
    return [*complete_packaged(ctx, parameter, incomplete), _item(incomplete, kind="file")]


def complete_run(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Run directories under runs/, by path or by name."""
    found = sorted(str(path.parent) for path in Path("runs").glob("*/config.toml"))
    return [run for run in found if run.startswith(incomplete)] or [
        Path(run).name for run in found if Path(run).name.startswith(incomplete)
    ]


def complete_federation(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Federations under federations/, by name."""
    found = sorted(path.parent.name for path in Path("federations").glob("*/federation.toml"))
    return [name for name in found if name.startswith(incomplete)]


def complete_site(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Sites under sites/, by name."""
    found = sorted(path.parent.name for path in Path("sites").glob("*/site.toml"))
    return [name for name in found if name.startswith(incomplete)]


def complete_setting(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys up to the `=` of KEY=VALUE, then values of the key: names in its registry, choices, true and false."""
    key, equals, value = incomplete.partition("=")
    settings = _settings(ctx, key)
    if not equals:
        return [_item(f"{name}=", _help(s)) for name, s in settings.items() if name.startswith(incomplete)]
    setting = settings.get(key, Setting(Any, ..., ""))
    end = value.rfind(",") + 1 if _is_list(setting.annotation) else 0
    found = [
        _item(f"{key}={value[:end]}{name}", about)
        for name, about in _values(key, setting)
        if name.startswith(value[end:]) and name not in value[:end].split(",")
    ]
    return [*found, _item(value, kind=PATHS[key])] if key in PATHS else found


def _item(value: str, about: str = "", kind: str = "plain") -> CompletionItem:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, type=kind, help=re.sub(r"\s+", " ", about) or None)


def _settings(ctx: click.Context, key: str) -> dict[str, Setting]:
    """The keys of the config and, where `key` is in a table with options, the options of what is selected there."""
    from shepherd.config import keys
    from shepherd.recipe import OPTIONS_OF

    found = {
        own: Setting(field.annotation, field.get_default(call_default_factory=True), field.description or "")
        for own, field in keys().items()
    }
    table, dot, _ = key.partition(".")
    for owner, choice, options, _, default in OPTIONS_OF if dot else ():
        if options == table:
            selected = _chosen(ctx).get(owner, {}).get(choice, default)
            found = {**_options(f"{owner}.{choice}", selected, table), **found}
    for piece, (_, kind) in _registries().items() if table == "method" and dot else ():
        found.setdefault(piece, Setting(str, None, f"In place of the method's, see shepherd list {kind}."))
    return found


def _chosen(ctx: click.Context) -> Mapping[str, Any]:
    """The settings of the command line so far: its recipe and what --set says before; {} where they have an error."""
    from shepherd.recipe import merge, parse_overrides, read_recipe

    given = ctx.params
    recipe = given.get("recipe") or ("own-data" if given.get("data") else "demo")
    try:
        return merge([("", read_recipe(recipe)), ("", parse_overrides(given.get("overrides") or ()))])[0]
    except ShepherdError:
        return {}


def _options(key: str, name: str, table: str) -> dict[str, Setting]:
    """The options of an entry of the registry that `key` selects from, by their keys; {} where there is no entry."""
    try:
        parameters = _registry(key).options(name)
    except (ShepherdError, AttributeError):
        return {}
    return {
        f"{table}.{option}": Setting(
            p.annotation, ... if p.default is inspect.Parameter.empty else p.default, f"Option of {name}."
        )
        for option, p in parameters.items()
    }


@functools.cache
def _registries() -> Mapping[str, tuple[str, str]]:
    """Key of the config -> (module, name in it) of the registry that its values come from."""
    from shepherd.cli.list import KINDS

    return {used: (module, kind) for kind, (module, used) in KINDS.items() if re.fullmatch(r"\w+\.\w+", used)}


def _registry(key: str) -> Registry:
    module, kind = _registries()[key]
    return getattr(importlib.import_module(module), kind)


def _values(key: str, setting: Setting) -> Iterator[tuple[str, str]]:
    """(value, meaning) of each value that can be listed."""
    if key in _registries():
        registry = _registry(key)
        yield from ((name, registry.describe(name)) for name in registry.known())
    if key in _MORE:
        yield from _MORE[key]()
    if setting.annotation is bool:
        yield from (("true", ""), ("false", ""))
    yield from ((str(choice), "") for choice in dict.fromkeys(_choices(setting.annotation)))


def _datasets() -> Iterator[tuple[str, str]]:
    from shepherd.data.builtins import datasets

    yield from ((f"builtin:{name}", datasets.describe(name)) for name in datasets.known())


def _models() -> Iterator[tuple[str, str]]:
    from shepherd.model.fetch import list_models

    yield from ((entry.name, "") for entry in list_models())


_MORE: Mapping[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "data.format": lambda: iter([("auto", "Detected row by row.")]),
    "data.source": _datasets,
    "model.base": _models,
}


def _choices(annotation: Any) -> Iterator[Any]:
    """All values that a Literal within the annotation names."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from inner
    else:
        for part in inner:
            yield from _choices(part)


def _is_list(annotation: Any) -> bool:
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(get_origin(part) is tuple or _is_list(get_args(part)[0]) for part in parts if get_args(part))


def _help(setting: Setting) -> str:
    """Type, default and meaning of a key."""
    from shepherd.recipe import toml_value

    default = "required" if setting.default is ... else f"default {toml_value(setting.default)}"
    return f"{_kind(setting.annotation)}{'' if setting.default is None else f', {default}'}. {setting.about}"


def _kind(annotation: Any) -> str:
    words = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    choices = "|".join(str(choice) for choice in dict.fromkeys(_choices(annotation)))
    if annotation in words:
        return words[annotation]
    if _is_list(annotation):
        return f"list of {choices}" if choices and get_origin(annotation) is tuple else "list"
    return choices or "table"
