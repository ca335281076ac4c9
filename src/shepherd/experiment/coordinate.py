"""A run over sites: card, plan from stated sizes, rounds, measures at the sites, models that stay there, report.

    run = coordinate(config, transport)                 # the directory and summary of a run, without any row
    run = resume_coordination("runs/demo", transport)   # goes on from the last committed round, with the same cohorts

The rounds are those of `shepherd run` over the engine `Remote`. Where each site is a client of a simulation by source,
and no prompt occurs at two sites, the adapter has the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from shepherd.config import Config
from shepherd.experiment.capacity import check_place
from shepherd.experiment.checks import from_anywhere
from shepherd.experiment.coordinated_run import begin_coordination, card_of
from shepherd.experiment.coordination import Coordination
from shepherd.experiment.coordinator_base import prepare_base
from shepherd.experiment.events import Emit
from shepherd.experiment.finished_run import write_report
from shepherd.experiment.method import compose
from shepherd.experiment.opened_run import Run
from shepherd.experiment.private_coordination import Protection
from shepherd.experiment.progress import Reporter
from shepherd.experiment.run import warn
from shepherd.experiment.run_card import for_sites
from shepherd.experiment.site_attendance import USUAL, Attendance, Terms
from shepherd.federation.cards import RunCard
from shepherd.federation.transport import Transport
from shepherd.recipe import load
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.updates.privacy.publication import place_of

Carrier = Callable[[RunCard, RunDirectory], AbstractContextManager[Transport]]
"""What opens the transport of a run, given its card and its directory."""


def coordinate(
    config: Config,
    transport: Transport,
    observer: Emit | None = None,
    out_dir: Path | str | None = None,
    terms: Terms = USUAL,
) -> Run:
    """Carry out a recipe over the sites of a transport, and write its run directory.

    Rows of data.source and their partition are not read: sites have their own. Those of data.held_out_source are the
    coordinator's. Raises a ShepherdError for anything a person can mend; then, and after any interruption, the run can
    be resumed.
    """
    return begin_over(config, lambda card, store: nullcontext(transport), observer, out_dir, terms)


def resume_coordination(
    run_dir: Path | str,
    transport: Transport,
    observer: Emit | None = None,
    terms: Terms = USUAL,
    *,
    force: bool = False,
) -> Run:
    """Go on with a stopped run over sites from its last committed round, to the bytes of a run that never stopped.

    A finished run is returned as it is. Raises UsageError, with what differs, where it was started with something else.
    """
    return resume_over(run_dir, lambda card, store: nullcontext(transport), observer, terms, force=force)


def begin_over(
    config: Config,
    carrier: Carrier,
    observer: Emit | None = None,
    out_dir: Path | str | None = None,
    terms: Terms = USUAL,
) -> Run:
    """`coordinate` over a transport that is opened when card and run directory are there."""
    emit = observer or warn
    config, changed = for_sites(from_anywhere(config))
    out = Path(config.run.out if out_dir is None else out_dir)
    check_place(out)
    create = partial(RunDirectory.create, out, config.run.name)
    Reporter(emit).warn(*changed)
    return _carry_out(config, create, carrier, emit, terms)


def resume_over(
    run_dir: Path | str, carrier: Carrier, observer: Emit | None = None, terms: Terms = USUAL, *, force: bool = False
) -> Run:
    """`resume_coordination` over a transport that is opened when card and run directory are there."""
    folder = open_run(run_dir, "identity.json")
    if (done := finished(folder)) is not None:
        return done
    store = RunDirectory(folder)
    return _carry_out(load(folder / "config.toml"), lambda: store, carrier, observer or warn, terms, force=force)


def finished(folder: Path) -> Run | None:
    """A run over sites that is finished, with its report; None while it can be resumed. It needs no federation."""
    if not (folder / "summary.json").exists():
        return None
    if not (folder / "report.html").exists():
        write_report(RunDirectory(folder))
    return Run(folder, read_json(place_of(folder, "summary.json")))


def _carry_out(
    config: Config,
    open_store: Callable[[], RunDirectory],
    carrier: Carrier,
    emit: Emit,
    terms: Terms,
    *,
    force: bool = False,
) -> Run:
    reporter, composition = Reporter(emit), compose(config)
    with reporter.phase("prepare model"):
        base = prepare_base(config, composition, terms.digest)
    store = open_store()
    with store.lock():
        beginning = begin_coordination(config, base, store, force)
        reporter.warn(*beginning.notes)
        card = card_of(config, base, beginning.run_id, terms, store)
        protection = Protection(config, card.privacy, store, beginning.facts)
        with carrier(card, store) as transport:
            attendance = Attendance(card, transport, store, reporter, terms, config.federation.deadline)
            run = Coordination(config, composition, base, attendance, protection)
            try:
                summary = run.carry_out(beginning.state)
            except BaseException:
                attendance.stop()
                raise
        emit({"event": "end", "run": str(store.path), "summary": summary})
        return Run(store.path, summary)
