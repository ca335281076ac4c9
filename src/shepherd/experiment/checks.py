"""Before a run: what can be known to be wrong, found before PyTorch loads, and by Python and the command line alike.

look_first(config, note)    # names in registries, the data, the model: raises what a person can mend
from_anywhere(config)       # its local paths made absolute: a run's config.toml can be used from any folder
fits_here(plan, folder)     # memory and disk: raises ResourceError
"""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.errors import ShepherdError, UsageError, did_you_mean
from shepherd.experiment.capacity import check_place

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.experiment.run import Run


def run(config: Config, observer: Callable[[dict[str, Any]], None] | None = None, out_dir: Path | None = None) -> Run:
    """Look first, then carry out the run: see shepherd.experiment.run.run. A built-in model is fetched once."""
    # A worker begins by importing the program's file; multiprocessing has no public name for that time.
    if config.run.workers and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            f"run.workers = {config.run.workers}, and shepherd.run stands at the top level of a program that each of "
            "its workers imports: it would run again in every one",
            hint='call it under `if __name__ == "__main__":`, or set run.workers = 0',
        )
    tell = observer or (lambda event: None)

    def fetching(text: str) -> None:
        tell({"event": "phase", "phase": "fetch model", "arm": None, "detail": text})

    look_first(config, fetching, out=out_dir)
    from shepherd.experiment import run as experiment

    return experiment.run(config, observer, out_dir)


def look_first(
    config: Config,
    note: Callable[[str], None],
    tell: Callable[[str], None] | None = None,
    out: Path | None = None,
) -> None:
    """Find mistakes in the settings, in the data, and a missing model, without PyTorch, which takes seconds to load.

    `tell` is called with lines about a long reading. `out` is where the run directory is made, config.run.out where
    not given.

    A built-in model that is not here yet is fetched, once: it is pinned by its checksum. No other model is ever
    fetched by a run; `shepherd model pull` does that.
    """
    from shepherd.experiment.method import check_length, prepare_method, prepare_personal
    from shepherd.model import fetch
    from shepherd.model.folder import stated_window
    from shepherd.recipe import resolve

    resolve(config.model_dump(), (registry_problems,))
    prepare_personal(config, prepare_method(config))
    check_place(out or Path(config.run.out))
    _look_at_clients(config, tell)
    base = config.model.base
    if any(entry.name == base and entry.path is None for entry in fetch.list_models()):
        note(f"fetching {base} once; it stays in the cache (shepherd model list)")
        fetch.pull(base, progress=note)
    else:
        fetch.look_at(base, config.model.revision)
    if not base.lower().endswith(".gguf"):
        check_length(config, stated_window(fetch.resolve(base, config.model.revision)))


def _look_at_clients(config: Config, tell: Callable[[str], None] | None) -> None:
    """Read and divide the rows, and find what does not suit these clients.

    Rows that a run refuses when it tokenises them are still there: who is no client now is none then. Sets of the hub
    are left to the run, as their library takes seconds to load too.
    """
    from shepherd.experiment.division import divide_rows, read_held_out, read_rows
    from shepherd.experiment.method import check_arms, check_clients

    sources = [source for source in (config.data.source, config.data.held_out_source) if source]
    if any(source.startswith("hub:") for source in sources):
        check_arms(config)
        for source in sources:
            if not source.startswith("hub:"):
                read_rows(config, source if source != config.data.source else "", tell)
        return
    dataset = read_rows(config, tell=tell)
    apart = read_held_out(config, dataset)
    _, _, partition = divide_rows(config, dataset.examples, None if apart is None else apart.examples)
    check_clients(config, tuple(sorted(partition.clients)), partition.labels)


def from_anywhere(config: Config) -> Config:
    """The config with local paths of model, data and trace made absolute. Links stay, and so does what is no path."""
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


# Memory and disk


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
        if isinstance(name, str):  # the config's own check says so
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
    return problems + _selection_problems(tables, own_weighing) + more + _personal_problems(tables)


def _personal_problems(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the personalization and its options; its fit to the method is said when a run is prepared."""
    from shepherd.clients.personal.methods import personalizations
    from shepherd.config import Config

    options = dict(tables.get("personalization", {}))
    name = options.pop("name", Config().personalization.name)
    if not isinstance(name, str):
        return []  # the config's own check says so
    try:
        personalizations.build(name, options)
    except ShepherdError as error:
        return [_problem("personalization.name", error)]
    return []


def _selection_problems(tables: Mapping[str, Mapping[str, Any]], own_weighing: str) -> list[str]:
    """What is wrong with the selection and its options, and with its fit to [federation] and the method's weighing."""
    from pydantic import ValidationError

    from shepherd.clients.selection import build_selection, conflicts
    from shepherd.config import Config, FederationTable

    options = dict(tables.get("selection", {}))
    name = options.pop("name", Config().selection.name)
    if not isinstance(name, str):
        return []  # the config's own check says so
    try:
        selection = build_selection(name, options)
    except ShepherdError as error:
        return [_problem("selection.name", error)]
    try:
        federation = FederationTable.model_validate(tables.get("federation", {}))
    except ValidationError:
        return []
    names = inspect.signature(conflicts).parameters.keys() & FederationTable.model_fields.keys()
    return conflicts(selection, own_weighing=own_weighing, **{key: getattr(federation, key) for key in names})


def _problem(key: str, error: ShepherdError) -> str:
    return f"{key}: {error.message}" + (f" ({error.hint})" if error.hint else "")


def _method_problems(tables: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The weigh piece where it makes weights of its own; what is wrong with the method, its pieces and the server's
    optimizer, and with their fit."""
    from shepherd.config import Config
    from shepherd.server.methods import build_method
    from shepherd.server.optimizer import optimizers

    default = Config()
    name = tables.get("federation", {}).get("method", default.federation.method)
    server = dict(tables.get("server", {}))
    optimizer = server.pop("optimizer", default.server.optimizer)
    if not isinstance(name, str) or not isinstance(optimizer, str):
        return "", []  # the config's own check says so
    problems: list[str] = []
    weigh = []

    def attempt(key: str, build: Callable[[], object]) -> None:
        try:
            build()
        except ShepherdError as error:
            problems.extend(f"{key}: {line}" for line in error.message.split("\n"))

    attempt("server.optimizer", lambda: optimizers.build(optimizer, server))
    attempt("federation.method", lambda: weigh.append(build_method(name, tables.get("method")).pieces.weigh))
    if not problems:
        attempt("federation.method", lambda: build_method(name, tables.get("method"), optimizer, server))
    return next((piece.name for piece in weigh if piece.own), ""), problems
