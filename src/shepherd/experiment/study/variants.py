"""Variants × grid × seeds of a study file -> the settings of every run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.config import Config, keys, keys_named
from shepherd.errors import UsageError, did_you_mean
from shepherd.experiment.study.file import Settings, StudyFile
from shepherd.recipe import Check, merge, parse_overrides, read_recipe, resolve, toml_value

OWN = {"run.seed": "seeds", "run.name": "its runs", "run.out": "its folder"}
"""Settings that a study determines, and by what."""
FREE = {
    "run.name", "run.out", "run.threads", "run.workers", "run.patience", "checkpoints.keep",
    "federation.updates_in_memory_mib", "training.clients_at_once", "training.tokens_per_pass",
}  # fmt: skip
"""Settings that may differ between machines: they move no number, or by rounding only."""
Layer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """One set of settings. family: its name without the point of the grid; point: {key of the grid: value}.

    config: its settings under the first seed of the study.
    """

    name: str
    family: str
    point: Mapping[str, Any]
    seeds: tuple[int, ...]
    config: Config

    def config_of(self, seed: int, out: Path = Path("runs")) -> Config:
        """The settings of its run with `seed`, in the folder `out`."""
        run = self.config.run.model_copy(update={"seed": seed, "name": run_name(self.name, seed), "out": str(out)})
        return self.config.model_copy(update={"run": run})

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of its arms, of one from outside (`module:function`) that of its function."""
        return tuple(name.rpartition(":")[2] for name in self.config.evaluation.arms)


def run_name(variant: str, seed: int) -> str:
    """The name of a run and of its folder, at most 64 characters: the variant's, and the seed after a dot.

    A name that has to be changed ends with the start of its digest, so that two variants never share one.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", variant).strip("-.") or "variant"
    room = 62 - len(str(seed))
    if len(plain) > room:
        plain = f"{plain[: room - 9].rstrip('-.')}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"
    return f"{plain}.{seed}"


def portable(config: Config) -> dict[str, dict[str, Any]]:
    """The settings that results depend on, as JSON: without `FREE` ones, local paths by their last part.

    Files are identified by the digests of their contents, so results may move between machines and be published.
    """
    from shepherd.data.sources import is_path
    from shepherd.model.fetch import is_local

    tables = config.model_dump(mode="json")
    for key in FREE:
        table, _, name = key.partition(".")
        tables[table].pop(name, None)
    model, data = tables["model"], tables["data"]
    if is_local(model["base"]) or Path(model["base"]).is_absolute():
        model["base"] = Path(model["base"]).name
    for name in ("source", "held_out_source"):
        if data[name] and is_path(data[name]):
            data[name] = Path(data[name]).name
    if isinstance(trace := tables["selection"].get("trace"), str):
        tables["selection"]["trace"] = Path(trace).name
    return tables


def digest_of(settings: Mapping[str, Any]) -> str:
    """sha256 of settings as canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def variants_of(
    file: StudyFile, name: str, overrides: Sequence[str], checks: Sequence[Check], problems: list[str]
) -> list[Variant]:
    """All variants of a study file, settings of the command line last. What is wrong is added to `problems`.

    name: of the only variant, where the file names none.
    """
    base: list[Layer] = []
    given = file.recipe_name
    _attempt("recipe", lambda: base.append(("recipe", read_recipe(given) if given else {})), problems)
    _attempt("base", lambda: base.append(("base", _layer(file.base))), problems)
    last: list[Layer] = []
    _attempt("--set", lambda: last.append(("--set", _layer(tuple(overrides)))), problems)
    grid = _known_keys(file.grid, problems)
    if problems:
        return []
    found: list[Variant] = []
    for family, settings in (file.variants or {name: ()}).items():
        try:
            own: list[Layer] = [*base, ("variant", _layer(settings))]
        except UsageError as error:
            problems += _lines(f"variant {family!r}", error)
            continue
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            title = named(family if file.variants else "", point) or name
            seeds = tuple(seed for seed in file.seeds if not _excluded(file, family, point, seed))
            if not seeds:
                continue
            try:
                config = _resolved([*own, ("grid", _nested(point)), *last], file, checks)
            except UsageError as error:
                problems += _lines(f"variant {title!r}", error)
            else:
                found.append(Variant(title, family, point, seeds, config))
    _check_exclusions(file, grid, found, problems)
    _check_equal(found, problems)
    return found


def named(family: str, point: Mapping[str, Any]) -> str:
    """The name of a variant at a point of the grid: `fedit, r=8, learning_rate=0.001`."""
    short = [key.partition(".")[2] for key in point]
    parts = [f"{s if short.count(s) == 1 else key}={_text(point[key])}" for key, s in zip(point, short, strict=True)]
    return ", ".join([*([family] if family else []), *parts])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else toml_value(value)


def _layer(settings: Settings) -> dict[str, Any]:
    """Tables of a recipe. Raises UsageError for what the study itself determines."""
    layer = dict(settings) if isinstance(settings, Mapping) else parse_overrides(settings)
    for key, what in OWN.items():
        table, _, name = key.partition(".")
        if isinstance(layer.get(table), Mapping) and name in layer[table]:
            raise UsageError(f"{key} is not a setting of a study: it follows from {what}")
    return layer


def _nested(point: Mapping[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for key, value in point.items():
        table, _, name = key.partition(".")
        layer.setdefault(table, {})[name] = value
    return layer


def _resolved(layers: list[Layer], file: StudyFile, checks: Sequence[Check]) -> Config:
    settings, _ = merge(layers)
    fixed: dict[str, Any] = {"run": {"seed": file.seeds[0]}}
    if "data.seed" in keys() and file.test_rows == "fixed" and "seed" not in settings.get("data", {}):
        fixed["data"] = {"seed": file.seeds[0]}
    return resolve(merge([*layers, ("study", fixed)])[0], checks)


def _known_keys(grid: Mapping[str, tuple[Any, ...]], problems: list[str]) -> Mapping[str, tuple[Any, ...]]:
    tables = {key.partition(".")[0] for key in keys()}
    for key, values in grid.items():
        table, dot, name = key.partition(".")
        if not dot or not name or table not in tables:
            near = [*keys_named(name or table)][:1]
            hint = f" Did you mean {near[0]!r}?" if near else did_you_mean(key, keys())
            problems.append(f"grid: {key!r} is not a setting.{hint}")
        elif key in OWN:
            problems.append(f"grid: {key} is not a setting of a study: it follows from {OWN[key]}")
        texts = [_text(value) for value in values]
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            problems.append(f"grid: {key} has the value {twice[0]} twice")
    return grid


def _excluded(file: StudyFile, family: str, point: Mapping[str, Any], seed: int) -> bool:
    run = {"variant": family, "seed": seed, **point}
    return any(all(key in run and run[key] == value for key, value in rule.items()) for rule in file.exclude if rule)


def _check_exclusions(file: StudyFile, grid: Mapping[str, Any], found: list[Variant], problems: list[str]) -> None:
    """A rule of `exclude` with an unknown key or value, or that leaves nothing."""
    families = list(file.variants) or sorted({variant.family for variant in found})
    choices: dict[str, list[Any]] = {
        "variant": families,
        "seed": list(file.seeds),
        **{key: list(values) for key, values in grid.items()},
    }
    for number, rule in enumerate(file.exclude, 1):
        if not rule:
            problems.append(f"exclude, rule {number}: an empty rule would leave out every run")
        for key, value in rule.items():
            if key not in choices:
                near = did_you_mean(key, choices)
                problems.append(f"exclude, rule {number}: unknown key {key!r}.{near} Known: {', '.join(choices)}")
            elif value not in choices[key]:
                near = did_you_mean(str(value), [str(choice) for choice in choices[key]])
                shown = ", ".join(str(choice) for choice in choices[key])
                problems.append(f"exclude, rule {number}: {key} is never {value!r}.{near} It is one of: {shown}")
    if not found and not problems:
        problems.append("exclude leaves no run")


def _check_equal(found: Sequence[Variant], problems: list[str]) -> None:
    seen: dict[str, str] = {}
    names: dict[str, str] = {}
    for variant in found:
        digest = digest_of(portable(variant.config))
        if digest in seen:
            problems.append(
                f"variant {variant.name!r} has the same settings as {seen[digest]!r}: it would be the same runs again"
            )
        seen.setdefault(digest, variant.name)
        folder = run_name(variant.name, 0)
        if folder in names:
            problems.append(
                f"variants {names[folder]!r} and {variant.name!r} would share the folder {folder}: rename one"
            )
        names.setdefault(folder, variant.name)


def _attempt(where: str, do: Callable[[], object], problems: list[str]) -> None:
    try:
        do()
    except UsageError as error:
        problems += _lines(where, error)


def _lines(where: str, error: UsageError) -> list[str]:
    """What an error lists, a line for each problem."""
    first, *rest = error.message.split("\n")
    return [f"{where}: {line.strip()}" for line in rest] or [f"{where}: {first}"]
