"""Start or resume a run: the checks first, without PyTorch, then the pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd.errors import ShepherdWarning
from shepherd.experiment.checks import Checked, check_workers, look_first
from shepherd.experiment.events import Emit, Event
from shepherd.experiment.opened_run import Run
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.updates.privacy.publication import place_of

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.round import Engine


def run(
    config: Config,
    observer: Emit | None = None,
    out_dir: Path | str | None = None,
    engine: Callable[[Engine], Engine] | None = None,
) -> Run:
    """Check the recipe, carry out the run and write its directory.

    observer: receives each event of the run (docs/events.md); without one, warnings become Python warnings of the class
    ShepherdWarning. out_dir: in place of run.out. engine: makes the engine that trains the clients from the one of the
    recipe, for example one that loses some of them (`shepherd.Engine` is the protocol).

    A built-in model is fetched once. Raises a ShepherdError for anything a person can mend; ClientError when too few
    clients gave a usable update; EvaluationError when the adapter on disk does not give the reported loss.
    """
    check_workers(config)
    out = None if out_dir is None else Path(out_dir)
    return run_checked(look_first(config, _fetching(observer or warn), out=out), observer, out, engine)


def run_checked(
    checked: Checked,
    observer: Emit | None = None,
    out_dir: Path | None = None,
    engine: Callable[[Engine], Engine] | None = None,
    base_losses: Path | None = None,
) -> Run:
    """Carry out a run whose recipe is checked; see `run`. base_losses: see `pipeline.carry_out`."""
    from shepherd.experiment.pipeline import carry_out

    table = checked.config.run
    out = out_dir if out_dir is not None else Path(table.out)
    create = partial(RunDirectory.create, out, table.name)
    return carry_out(checked, out, create, observer or warn, wrap=engine, base_losses=base_losses)


def resume(
    run_dir: Path | str,
    observer: Emit | None = None,
    *,
    force: bool = False,
    engine: Callable[[Engine], Engine] | None = None,
    base_losses: Path | None = None,
) -> Run:
    """Resume a stopped run from its last committed round, to the bytes of a run that never stopped.

    A finished run is returned as it is, with the report that it may still lack. Raises UsageError, with what differs,
    where settings, data, base, tokenizer, code or machine are not those that the run was started with; `force`
    goes on all the same and notes it in the report. A run with an engine of its own is resumed with that `engine`.
    base_losses: a folder in which runs of one study keep the losses of the bare base.
    """
    folder = open_run(run_dir, "identity.json")
    store, emit = RunDirectory(folder), observer or warn
    finished = (folder / "summary.json").exists()
    if not finished:
        from shepherd.recipe import load

        config = load(folder / "config.toml")
        check_workers(config)
        checked = look_first(config, _fetching(emit), out=folder)

    from shepherd.experiment.finished_run import write_report
    from shepherd.experiment.pipeline import carry_out

    if not finished:
        return carry_out(checked, folder, lambda: store, emit, force, engine, base_losses)
    if not (folder / "report.html").exists():
        write_report(store)
    return Run(folder, read_json(place_of(folder, "summary.json")))


def _fetching(emit: Emit) -> Callable[[str], None]:
    def fetching(text: str) -> None:
        emit({"event": "phase", "phase": "fetch model", "arm": None, "detail": text})

    return fetching


def warn(event: Event) -> None:
    """The observer of a run in Python that has no other: warnings become Python's, the rest passes unseen."""
    if event["event"] == "warning":
        # A registry of its own each time: Python would show the same sentence of a second run no more.
        warnings.warn_explicit(event["message"], ShepherdWarning, "shepherd", 0, registry={})
