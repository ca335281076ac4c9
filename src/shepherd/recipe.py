"""Recipes: a TOML file and `key=value` overrides -> a checked Config.

    config = load("demo", overrides=["federation.rounds=5"])        # a packaged recipe by name, or the path of a file

Settings come in layers (defaults, recipe, flags): `merge` combines them and keeps the origin of each value, `resolve`
reports every mistake at once, each with the nearest known key.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shepherd.config import Config, keys, keys_named
from shepherd.errors import UsageError, did_you_mean, plural

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the package; `shepherd list recipes` shows them."""

Check = Callable[[Mapping[str, Any]], list[str]]
"""Further checks of `resolve`: merged settings -> problems that only a room can find (names in its registry)."""

_DEFAULTS = Config()
OPTIONS_OF = (
    ("partition", "name", "partition", "clients", _DEFAULTS.partition.name),
    ("selection", "name", "selection", "", _DEFAULTS.selection.name),
    ("federation", "method", "method", "", _DEFAULTS.federation.method),
    ("server", "optimizer", "server", "", _DEFAULTS.server.optimizer),
    ("personalization", "name", "personalization", "", _DEFAULTS.personalization.name),
)
"""(table, its key that selects by name, the table of options, a key there that is not an option, the default)."""

_CLIENTS_OF_THE_DATA = ("by_key", "files")
"""Partitioners that determine the number of clients from the data."""


def load(recipe: str | Path | None = None, overrides: Iterable[str] = (), **tables: Mapping[str, Any]) -> Config:
    """Read a recipe (a packaged one's name, or a path), and change it by `key=value` texts and by tables, which win.

    load("demo", federation={"rounds": 5}). Raises UsageError when there is no such recipe, and those of `resolve`.
    """
    layers = [] if recipe is None else [("recipe", read_recipe(recipe))]
    settings, _ = merge([*layers, ("override", parse_overrides(overrides)), ("argument", tables)])
    return resolve(settings)


def recipes() -> dict[str, str]:
    """Packaged recipes: name -> the first comment line of the file, its purpose."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(RECIPES.glob("*.toml"))
    }


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe: a path when it ends in .toml or has a folder in it, else a packaged recipe's name.

    Raises UsageError with the nearest name and the list of packaged recipes.
    """
    path = Path(recipe)
    named = path.suffix != ".toml" and path.name == str(recipe)
    for candidate in ([RECIPES / f"{recipe}.toml"] if named else []) + [path]:
        if candidate.is_file():
            return candidate
    alone = path.name == str(recipe)  # a path into a folder can only mean a file of that folder
    near = did_you_mean(str(recipe), [*(recipes() if alone else ()), *map(str, path.parent.glob("*.toml"))])
    near = near or (did_you_mean(path.stem, recipes()) if alone else "")
    raise UsageError(
        f"recipe not found: {recipe}.{near}",
        hint=(f"pass a folder of rows with --data {recipe}; " if path.is_dir() else "")
        + f"packaged recipes: {', '.join(recipes())} (shepherd list recipes); or pass the path of a TOML file",
    )


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """Read the tables of a recipe without validation. Raises UsageError when it is missing or not TOML."""
    path = find_recipe(recipe)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        encoding = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        hint = encoding if path.suffix == ".toml" else f"a recipe is a TOML file; pass rows with --data {path}"
        raise UsageError(f"{path} is not valid TOML: {error}", hint=hint) from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge (origin, settings) layers, later ones win: the settings, and {dotted key: origin}.

    A layer that selects another partitioner, selection, method or server optimizer starts from its defaults: options
    that an earlier layer set for the previous one are dropped. The number of clients is kept for a partitioner that
    needs one, and dropped for one that determines it from the data.
    """
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for owner, choice, table, kept, default in OPTIONS_OF:
            former, chosen = settings.get(owner), layer.get(owner)
            if not isinstance(chosen, Mapping) or not isinstance(former or {}, Mapping):
                continue
            before = (former or {}).get(choice, default)
            after = chosen.get(choice, before)
            if after != before and isinstance(settings.get(table), dict):
                needed = {kept} - ({"clients"} if after in _CLIENTS_OF_THE_DATA else set())
                for key in settings[table].keys() - needed:
                    del settings[table][key], origins[f"{table}.{key}"]
        for table, values in layer.items():
            former = settings.get(table, {})
            if not isinstance(values, Mapping) or not isinstance(former, dict):
                settings[table], origins[table] = values, origin
                continue
            settings[table] = dict(former)
            for key, value in values.items():
                both = isinstance(value, Mapping) and isinstance(former.get(key), Mapping)
                settings[table][key] = {**former[key], **value} if both else value
                origins[f"{table}.{key}"] = origin
    return settings, origins


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse `["lora.r=16", "lora.targets=q_proj,v_proj"]` to nested settings. Raises UsageError if not key=value."""
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            owners = keys_named(parts[0])
            meant = f"{owners[0]}={text or 'VALUE'}" if len(parts) == 1 and owners else "lora.r=16"
            raise UsageError(f"cannot read the setting {override!r}", hint=f"write table.key=value, e.g. --set {meant}")
        table = settings
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"cannot set {key!r}: {part!r} is a value, not a table")
        table[parts[-1]] = _override_value(key.strip(), text)
    return settings


def resolve(settings: Mapping[str, Any], checks: Iterable[Check] = ()) -> Config:
    """Validate nested settings. Raises a UsageError that lists every problem with its key and the nearest one."""
    problems: list[str] = []
    config = None
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        problems = _explain_all(error, settings)
    problems += [problem for check in checks for problem in check(settings)]
    if problems or config is None:
        raise UsageError(
            f"{plural(len(problems), 'problem')} in the settings:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            hint="shepherd config show prints every key with its meaning",
        )
    return config


def to_toml(config: Config) -> str:
    """Write a config as TOML that `load` reads back to an equal config."""
    lines: list[str] = []
    for table, values in config.model_dump().items():
        lines += [f"[{table}]", *(f"{_toml_key(key)} = {toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A setting's value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _override_value(key: str, text: str) -> Any:
    """Parse the value of a `--set`: TOML, or plain text; text stays text where the key takes text, `a,b` is a list."""
    field = keys().get(key)
    kind = str(field.annotation) if field else ""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
        if key == "data.template":  # line breaks are hard to type in a shell
            value = re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}.get(found[1], found[0]), text)
    if field and field.annotation is str and not isinstance(value, str):
        return text
    if isinstance(value, str) and "tuple[" in kind and f"'{value}'" not in kind.partition("tuple[")[0]:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _explain_all(error: ValidationError, settings: Mapping[str, Any]) -> list[str]:
    """One sentence per key with a problem; the branches of a union are joined by "or"."""
    messages: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for problem in error.errors():
        key, message = _explain(problem)
        messages.setdefault(key, [])
        if message not in messages[key]:
            messages[key].append(message)
        if problem["type"] not in ("value_error", "extra_forbidden", "model_type"):
            value: Any = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            given[key] = f", got {problem['input'] if value is None else value!r}"
    return [
        (f"{key}: " if key in given or key in keys() else "") + " or ".join(found) + given.get(key, "")
        for key, found in messages.items()
    ]


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """(dotted key, problem) of one pydantic error."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location[: 3 if location[:2] == ["privacy", "audit"] else 2])
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return key, _unknown(location, problem["input"])
    if kind == "model_type":
        return key, f"[{key}] is a table: write [{key}] and its keys under it, got {problem['input']!r}"
    if kind == "string_pattern_mismatch":
        return key, _PATTERNS.get(key, f"must match {context['pattern']}")
    wanted = _WANTED.get(kind)
    examples = {"lora.ranks": "hospital-a = 4", "evaluation.metrics": 'name = "rouge_l", beta = 2.0'}
    context["example"] = examples.get(key, 'instruction = "question"')
    message = wanted.format(**context) if wanted else problem["msg"].removeprefix("Value error, ")
    if kind == "literal_error" and isinstance(problem["input"], str):
        near = did_you_mean(problem["input"], re.findall(r"'([^']*)'", context["expected"]))
        message += near and f" ({near.strip()})"
    return key, message


_WANTED = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_short": "must name at least {min_length}",
    "mapping_type": "must be a table such as {{{example}}}",
    "dict_type": "must be a table such as {{{example}}}",
    "literal_error": "must be {expected}",
}
_PATTERNS = {
    "run.name": "must be 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'",
    "model.device": "must be auto, cpu, mps, cuda or cuda:N",
}


def _unknown(location: list[str], value: Any) -> str:
    """Describe an unknown key or table: suggest the same key in another table first, then the nearest."""
    known = list(keys())
    elsewhere = keys_named(location[-1])
    tables = list(Config.model_fields)
    if len(location) == 1:
        if not isinstance(value, Mapping):
            near = f" Did you mean {elsewhere[0]!r}?" if elsewhere else _nearest_key(location[0], known)
            return f"unknown key {location[0]!r} outside of the tables.{near}"
        return f"unknown table [{location[0]}].{did_you_mean(location[0], tables)} Tables: {', '.join(tables)}"
    key = ".".join(location)
    if elsewhere:
        return f"unknown key {key!r}. Did you mean {' or '.join(map(repr, elsewhere))}?"
    if own := [k for k in known if k.startswith(f"{location[-1]}.")]:  # the name of another table
        return f"unknown key {key!r}. Did you mean {own[0]!r}?"
    in_table = [k for k in known if k.startswith(f"{location[0]}.")]
    return f"unknown key {key!r}.{_nearest_key(location[-1], in_table) or _nearest_key(location[-1], known)}"


def _nearest_key(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'table.key'?` for the key whose last part is nearest to `name`, or an empty string."""
    by_name = {key.split(".")[1]: key for key in known}
    near = difflib.get_close_matches(name, by_name, n=1)
    return f" Did you mean {by_name[near[0]]!r}?" if near else ""
