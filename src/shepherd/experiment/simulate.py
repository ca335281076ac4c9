"""`simulate`: arguments in Python -> the config of a recipe, its rows, and the rounds of a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd import recipe as recipes
from shepherd.config import Config, keys, keys_named
from shepherd.data.builtins import RawRows
from shepherd.data.python_rows import NAME, python_rows
from shepherd.data.sources import Dataset, load_examples
from shepherd.errors import UsageError, did_you_mean
from shepherd.experiment.checks import check_workers, look_first
from shepherd.experiment.run import warn
from shepherd.experiment.simulation import Simulation

if TYPE_CHECKING:
    from shepherd.round import Engine

ARGUMENTS = {
    "base": "model.base",
    "clients": "partition.clients",
    "rounds": "federation.rounds",
    "method": "federation.method",
    "aggregator": "federation.aggregator",
    "seed": "run.seed",
}
"""Argument of `simulate` -> its key in a recipe."""
_UNUSED = ("checkpoints", "evaluation")
"""Tables that are about what a run writes and compares."""
_READING = {"format", "columns", "categories", "rows_per_category", "languages"}
"""Keys of [data] that say how rows are read."""


def simulate(
    rows: Any = None,
    /,
    *,
    base: str | None = None,
    clients: int | None = None,
    rounds: int | None = None,
    method: str | Mapping[str, Any] | None = None,
    aggregator: Any = None,
    selection: str | Mapping[str, Any] | None = None,
    partition: str | Mapping[str, Any] | None = None,
    seed: int | None = None,
    held_out: Any = None,
    recipe: str | Path | None = None,
    engine: Callable[[Engine], Engine] | None = None,
    **settings: Any,
) -> Simulation:
    """Simulate a federation on this machine: an iterator of its rounds. Nothing is written.

    rows: a path, "builtin:instructions", "hub:org/name", a Dataset of `load_dataset`, an iterable of dicts, a data
    frame, or {client: rows}; None takes the recipe's. held_out: rows for the evaluation, where they are not split off
    from `rows`. method, partition and selection: a name, or a table with a name and options. With a number of clients
    and no partition, here or in the recipe, the rows are divided at random ("iid"); without one by their category.
    aggregator: a name, a table, or a function registered by `@shepherd.aggregators`. recipe: what all that is not given
    is taken from. engine: makes the engine that trains the clients from the local one.

    Further settings are keys of a recipe, `learning_rate=5e-4`, or whole tables, `lora={"r": 16, "alpha": 32}`.

    Reads and checks everything at once: raises UsageError, DataError and ModelError as `shepherd check` does. What a
    person should know about the data or a round is a warning of the class ShepherdWarning.
    """
    if isinstance(method, Mapping):
        settings = {**settings, "method": {key: value for key, value in method.items() if key != "name"}}
        method = method.get("name")
    given = {name: value for name, value in (
        ("base", base), ("clients", clients), ("rounds", rounds), ("method", method), ("seed", seed),
        ("aggregator", _named(aggregator)),
    ) if value is not None}  # fmt: skip
    layer = _layer({**settings, **{ARGUMENTS[name]: value for name, value in given.items()}})
    for table, choice in (("selection", selection), ("partition", partition)):
        if choice is not None:
            values = {"name": choice} if isinstance(choice, str) else choice
            _once(table, values, layer)
            layer[table] = {**layer.get(table, {}), **values}
    if isinstance(rows, Mapping) and "name" not in layer.get("partition", {}):
        layer["partition"] = {"name": "by_key", "key": "source", **layer.get("partition", {})}
    elif clients and "name" not in layer.get("partition", {}) and not _divides(recipe):
        layer["partition"] = {"name": "iid", **layer["partition"]}
    config, known = _config(recipe, layer, rows, held_out)
    return _begin(config, known, engine)


def _divides(name: str | Path | None) -> bool:
    """Whether a recipe names a partition, so that a number of clients is a number of its clients."""
    return name is not None and "name" in recipes.read_recipe(name).get("partition", {})


def _named(aggregator: Any) -> Any:
    """The name of a registered function; anything else as it is. Raises UsageError for a function without one."""
    from shepherd.server.aggregators import aggregators

    if not callable(aggregator):
        return aggregator
    name = getattr(aggregator, "__name__", "")
    if name not in aggregators or aggregators.get(name) is not aggregator:
        raise UsageError(
            f"aggregator {name or aggregator!r} is not registered",
            hint="write @shepherd.aggregators above the function that returns the rule",
        )
    return name


def _layer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of a recipe from keys, with or without their table. Raises UsageError for unknown and ambiguous keys."""
    layer: dict[str, Any] = {}
    for name, value in settings.items():
        if name in Config.model_fields:
            if not isinstance(value, Mapping):
                raise UsageError(f"{name} is a table of a recipe: give {name}={{…}}, got {value!r}")
            _once(name, value, layer)
            layer[name] = {**layer.get(name, {}), **value}
            continue
        found = [name] if "." in name else keys_named(name)
        if len(found) != 1 or (found[0] != name and found[0].split(".")[1] != name):
            several = f"{name!r} is a key of several tables: {', '.join(found)}" if len(found) > 1 else ""
            near = did_you_mean(name, [key.split(".")[1] for key in keys()])
            raise UsageError(
                several or f"unknown setting: {name!r}." + (f" Did you mean {found[0]!r}?" if found else near),
                hint=f"give its table: {found[0].split('.')[0]}={{{name!r}: …}}" if several else
                "shepherd config show prints every key with its meaning",
            )  # fmt: skip
        table, _, key = found[0].partition(".")
        _once(table, {key: value}, layer)
        layer[table] = {**layer.get(table, {}), key: value}
    if unused := [table for table in _UNUSED if table in layer]:
        raise UsageError(
            f"a simulation writes nothing and trains one arm, so [{unused[0]}] has no effect",
            hint="leave it out, or use shepherd.run(shepherd.load_config(…))",
        )
    return layer


def _check_read(layer: Mapping[str, Any]) -> None:
    """Raise UsageError for settings of reading beside a Dataset, which is read."""
    if unused := sorted(_READING & layer.get("data", {}).keys()):
        raise UsageError(
            f"data.{unused[0]} has no effect on a Dataset, which is read already", hint="give it to load_dataset"
        )
    key = layer.get("partition", {}).get("key", "category")
    if key not in ("category", "source"):
        raise UsageError(
            f"partition.key = {key!r} names a column, and a Dataset has only category and source",
            hint=f'give load_dataset columns={{"source": {key!r}}}, and partition the key "source"',
        )


def _once(table: str, values: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    """Raise UsageError for a key that is given already."""
    if twice := sorted(values.keys() & layer.get(table, {}).keys()):
        raise UsageError(f"{table}.{twice[0]} is given twice", hint="give it once, as an argument or in its table")


def _config(name: str | Path | None, layer: dict[str, Any], rows: Any, held_out: Any) -> tuple[Config, Any]:
    """The config of a simulation, and its rows where they are in Python already."""
    known: RawRows | Dataset | None = None
    data = {**layer.get("data", {})}
    outside = isinstance(held_out, str | Path)
    if isinstance(rows, str | Path):
        data["source"] = str(rows)
    elif isinstance(rows, Dataset):
        _check_read(layer)
        known = rows
        if held_out is not None and not outside:
            apart = held_out if isinstance(held_out, Dataset) else load_examples(python_rows(held_out))
            known = replace(known, held_out=apart)
    elif rows is not None:
        if isinstance(held_out, Dataset):
            raise UsageError(
                "held_out is a Dataset, and the rows to train on are not",
                hint="read both with load_dataset, or give both as rows",
            )
        known = python_rows(rows, None if outside else held_out)
    if known is not None:
        data["source"] = NAME
    elif held_out is not None and not outside:
        raise UsageError(
            "held_out is given as rows in Python, and the rows to train on are not",
            hint="give both as rows, or held_out as a path",
        )
    if outside:
        data["held_out_source"] = str(held_out)
    if data:
        layer["data"] = data
    layer["evaluation"] = {"arms": ["base", "federated"], "generate": 0, "every": 0}
    tables = recipes.read_recipe(name) if name is not None else {}
    kept = {table: values for table, values in tables.items() if table not in _UNUSED}
    settings, _ = recipes.merge([("recipe", kept), ("argument", layer)])
    return recipes.resolve(settings), known


def _begin(config: Config, rows: Any, engine: Callable[[Engine], Engine] | None) -> Simulation:
    check_workers(config)
    checked = look_first(config, lambda _line: None, rows=rows, writes=False)

    from shepherd.experiment.engine import open_engine
    from shepherd.experiment.inputs import load_inputs
    from shepherd.experiment.progress import Reporter

    reporter = Reporter(warn)
    inputs = load_inputs(checked, None, reporter)
    reporter.warn(*inputs.warnings)
    gate = partial(inputs.plan.gate, run=NAME, tokenizer=inputs.base.tokenizer_digest)
    inputs = replace(inputs, plan=replace(inputs.plan, gate=gate))
    with ExitStack() as stack:
        made = stack.enter_context(open_engine(inputs, NAME))
        return Simulation(inputs, engine(made) if engine else made, stack.pop_all().close)
