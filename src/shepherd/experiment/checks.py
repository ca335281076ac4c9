"""Checks before a run: mistakes that show before PyTorch loads, the same from Python and the command line.

look_first(config, note)    # names in registries, the data, the model: raises what a person can mend
from_anywhere(config)       # its local paths made absolute: a run's config.toml can be used from any folder
"""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.errors import ShepherdError, UsageError, did_you_mean
from shepherd.experiment.capacity import check_place

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.data.builtins import RawRows
    from shepherd.data.sources import Dataset
    from shepherd.experiment.division import Sources
    from shepherd.experiment.method import Composition


@dataclass(frozen=True)
class Checked:
    """A recipe without a known mistake, with what the checks had to build: handed on, so that nothing is built twice.

    sources: None for sets of the hub, which are read later.
    """

    config: Config
    composition: Composition
    sources: Sources | None


def check_workers(config: Config) -> None:
    """Raise UsageError where a worker imports a program that starts a run at its top level."""
    # A worker begins by importing the program's file; multiprocessing has no public name for that time.
    if config.run.workers and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            f"run.workers = {config.run.workers}, and shepherd.run stands at the top level of a program that each of "
            "its workers imports: it would run again in every one",
            hint='call it under `if __name__ == "__main__":`, or set run.workers = 0',
        )


def look_first(
    config: Config,
    note: Callable[[str], None],
    progress: Callable[[str], None] | None = None,
    out: Path | None = None,
    rows: RawRows | Dataset | None = None,
    writes: bool = True,
) -> Checked:
    """Find mistakes in the settings, in the data, and a missing model, without PyTorch, which takes seconds to load.

    `progress` is called with lines about a long reading. `out` is where the run directory is made, config.run.out where
    not given. `rows` replace those of the recipe's source. Where nothing is written, no place is looked at.

    A built-in model that is not here yet is fetched, once: it is pinned by its checksum. No other model is ever
    fetched by a run; `shepherd model pull` does that.
    """
    from shepherd.experiment.method import check_length, compose
    from shepherd.model import fetch
    from shepherd.model.folder import stated_window
    from shepherd.recipe import resolve

    resolve(config.model_dump(), (registry_problems,))
    composition = compose(config)
    if writes:
        check_place(out or Path(config.run.out))
    sources = _look_at_clients(config, composition, progress, rows)
    base = config.model.base
    if any(entry.name == base and entry.path is None for entry in fetch.list_models()):
        note(f"fetching {base} once; it stays in the cache (shepherd model list)")
        fetch.pull(base, progress=note)
    else:
        fetch.look_at(base, config.model.revision)
    if not base.lower().endswith(".gguf"):
        check_length(config, stated_window(fetch.resolve(base, config.model.revision)))
    return Checked(config, composition, sources)


def _look_at_clients(
    config: Config,
    composition: Composition,
    progress: Callable[[str], None] | None,
    rows: RawRows | Dataset | None,
) -> Sources | None:
    """Read and divide the rows, and find conflicts of the settings with these clients.

    Rows that a run refuses when it tokenizes them are still included: a name that is not a client here is not one in
    the run. Sets of the hub are left to the run: their library takes seconds to load.
    """
    from shepherd.experiment.division import divide_rows, read_rows, read_sources
    from shepherd.experiment.method import check_arms, check_clients
    from shepherd.experiment.named_clients import audited_clients

    given = [source for source in (config.data.source if rows is None else "", config.data.held_out_source) if source]
    if any(source.startswith("hub:") for source in given):
        check_arms(config)
        for source in given:
            if not source.startswith("hub:"):
                read_rows(config, source if source != config.data.source else "", progress)
        return None
    sources = read_sources(config, progress, rows)
    apart = sources.held_out
    _, _, partition = divide_rows(config, sources.dataset.examples, None if apart is None else apart.examples)
    check_clients(config, composition, tuple(sorted(partition.clients)), partition.labels)
    audited_clients(config, tuple(partition.clients), partition.labels)
    return sources


def from_anywhere(config: Config) -> Config:
    """The config with absolute local paths of model, data and trace. Links and other names stay as they are."""
    from shepherd.data.sources import is_path
    from shepherd.model.fetch import is_local

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    model, data, selection = config.model, config.data, config.selection
    if is_local(model.base):
        model = model.model_copy(update={"base": absolute(model.base)})
    paths = {key: path for key in ("source", "held_out_source") if (path := getattr(data, key)) and is_path(path)}
    data = data.model_copy(update={key: absolute(path) for key, path in paths.items()})
    trace = selection.options.get("trace")
    if selection.name == "availability" and isinstance(trace, str):
        selection = selection.model_copy(update={"trace": str(Path(trace).absolute())})
    return config.model_copy(update={"model": model, "data": data, "selection": selection})


# Names in registries


def registry_problems(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names in `settings` that only a room knows, and with the options of what they name."""
    from shepherd.config import Config
    from shepherd.data.formats import format_problem
    from shepherd.data.partition import partitioners
    from shepherd.data.prompts import template_problem
    from shepherd.experiment.division import by_column

    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    partition = dict(tables.get("partition", {}))
    partition.pop("clients", None)
    name = partition.pop("name", Config().partition.name)
    problems = []
    try:
        if isinstance(name, str):  # the config's own check reports it
            known = partitioners.options(name)
            for option in partition.keys() - known.keys() if "clients" not in known else ():
                if did_you_mean(option, ["clients"]):
                    raise UsageError(f"unknown key 'partition.{option}'. Did you mean 'partition.clients'?")
            partitioners.build(name, by_column(name, partition)[0])
    except ShepherdError as error:
        problems.append(_problem("partition.name", error))
    for key, problem in (("format", format_problem), ("template", template_problem)):
        value = tables.get("data", {}).get(key, getattr(Config().data, key))
        if isinstance(value, str) and (found := problem(value)):
            problems.append(f"data.{key}: {found}")
    own_weighing, more = _method_problems(tables)
    problems += _selection_problems(tables, own_weighing) + more + _personal_problems(tables)
    return problems + _metric_problems(tables) + _arm_problems(tables)


def _metric_problems(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the metrics of generated answers and their options."""
    from pydantic import ValidationError

    from shepherd.config import EvaluationTable
    from shepherd.evaluation.scoring import build_metrics

    given = {key: value for key, value in tables.get("evaluation", {}).items() if key == "metrics"}
    try:
        entries = EvaluationTable.model_validate(given).metrics
    except ValidationError:
        return []  # the config's own check says so
    return _problems("evaluation.metrics", lambda: build_metrics(entries))


def _personal_problems(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the personalization and its options; its fit to the method is checked in `compose`."""
    from shepherd.clients.personal.methods import personalizations
    from shepherd.config import Config

    options = dict(tables.get("personalization", {}))
    name = options.pop("name", Config().personalization.name)
    if not isinstance(name, str):
        return []  # the config's own check reports it
    return _problems("personalization.name", lambda: personalizations.build(name, options))


def _arm_problems(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the names of the arms."""
    from shepherd.config import Config
    from shepherd.experiment.method import prepare_arms

    names = tables.get("evaluation", {}).get("arms", Config().evaluation.arms)
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return []  # the config's own check reports it
    return _problems("evaluation.arms", lambda: prepare_arms(names))


def _selection_problems(tables: Mapping[str, Mapping[str, Any]], own_weighing: str) -> list[str]:
    """What is wrong with the selection and its options, and with its fit to [federation] and the method's weighing."""
    from pydantic import ValidationError

    from shepherd.clients.selection import build_selection
    from shepherd.clients.selection_conflicts import conflicts
    from shepherd.config import Config, FederationTable

    options = dict(tables.get("selection", {}))
    name = options.pop("name", Config().selection.name)
    if not isinstance(name, str):
        return []  # the config's own check reports it
    try:
        selection = build_selection(name, options)
    except ShepherdError as error:
        return [_problem("selection.name", error)]
    if tables.get("privacy", {}).get("unit") == "client":
        return []  # compose refuses more, and what is advised here would be refused there
    try:
        federation = FederationTable.model_validate(tables.get("federation", {}))
    except ValidationError:
        return []
    names = inspect.signature(conflicts).parameters.keys() & FederationTable.model_fields.keys()
    return conflicts(selection, own_weighing=own_weighing, **{key: getattr(federation, key) for key in names})


def _problems(key: str, build: Callable[[], object]) -> list[str]:
    """What is wrong with what a key names, from building it."""
    try:
        build()
    except ShepherdError as error:
        return [_problem(key, error)]
    return []


def _problem(key: str, error: ShepherdError) -> str:
    return f"{key}: {error.message}" + (f" ({error.hint})" if error.hint else "")


def _method_problems(tables: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The weigh piece where it ignores the weights of the round; problems of the method, its pieces, the server's
    optimizer, and their combination."""
    from shepherd.config import Config
    from shepherd.server.aggregators import build_aggregator
    from shepherd.server.methods import build_method
    from shepherd.server.optimizer import optimizers

    default = Config()
    name = tables.get("federation", {}).get("method", default.federation.method)
    server = dict(tables.get("server", {}))
    optimizer = server.pop("optimizer", default.server.optimizer)
    if not isinstance(name, str) or not isinstance(optimizer, str):
        return "", []  # the config's own check reports it
    problems: list[str] = []
    built: dict[str, Any] = {}

    def attempt(key: str, build: Callable[[], object]) -> None:
        try:
            built[key] = build()
        except ShepherdError as error:
            problems.extend(f"{key}: {line}" for line in error.message.split("\n"))

    aggregator = tables.get("federation", {}).get("aggregator", default.federation.aggregator)
    attempt("server.optimizer", lambda: replace(optimizers.build(optimizer, server), name=optimizer))
    if aggregator and isinstance(aggregator, str | Mapping):  # otherwise the config's own check reports it
        attempt("federation.aggregator", lambda: build_aggregator(aggregator))
    attempt("federation.method", lambda: build_method(name, tables.get("method")))
    method: Any = built.get("federation.method")
    rule = built.get("federation.aggregator")
    if not problems:
        attempt("federation.method", lambda: method.with_optimizer(built["server.optimizer"]))
        if rule is not None and not problems:
            attempt("federation.method", lambda: built["federation.method"].with_aggregator(rule))
    return method.pieces.weigh.name if method and method.pieces.weigh.own else "", problems
