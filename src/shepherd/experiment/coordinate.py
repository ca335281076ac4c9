"""A run over sites: card, plan from stated sizes, rounds, measures at the sites, models that stay there, report.

    run = coordinate(config, transport)                 # the directory and summary of a run, without any row
    run = resume_coordination("runs/demo", transport)   # goes on from the last committed round, with the same cohorts

The rounds are those of `shepherd run` over the engine `Remote`. Where each site is a client of a simulation by source,
and no prompt occurs at two sites, the adapter has the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from shepherd.config import Config
from shepherd.engines.remote import Remote
from shepherd.evaluation.row_losses import RowLosses
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment.capacity import check_place
from shepherd.experiment.checks import from_anywhere
from shepherd.experiment.coordinated_run import (
    Results,
    announce,
    begin_coordination,
    card_of,
    save_adapter,
    write_results,
)
from shepherd.experiment.coordinator_base import CoordinatorBase, prepare_base
from shepherd.experiment.events import Emit, RoundEvent
from shepherd.experiment.federated import KeptAs, best_round, commit_round, journalled, round_line
from shepherd.experiment.finished_run import write_report
from shepherd.experiment.method import Composition, compose
from shepherd.experiment.opened_run import Run
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.private_coordination import Protection
from shepherd.experiment.progress import Meter, Reporter
from shepherd.experiment.run import warn
from shepherd.experiment.run_card import for_sites, known_ranks
from shepherd.experiment.schedule import Schedule, prepare_schedule
from shepherd.experiment.site_attendance import USUAL, Attendance, Terms
from shepherd.experiment.site_measures import Measured, checked, entry_of_rows, entry_of_sites, finish_task, in_common
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.transport import Transport
from shepherd.outcomes import outcomes_of
from shepherd.recipe import load
from shepherd.rng import stream
from shepherd.round import Plan, run_round
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.store.records import RoundRecord, notes, read_rounds
from shepherd.types import ClientId, GlobalModel, ServerState
from shepherd.updates.privacy.publication import place_of
from shepherd.updates.spool import Spool


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
    emit = observer or warn
    config, changed = for_sites(from_anywhere(config))
    out = Path(config.run.out if out_dir is None else out_dir)
    check_place(out)
    create = partial(RunDirectory.create, out, config.run.name)
    Reporter(emit).warn(*changed)
    return _carry_out(config, create, transport, emit, terms)


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
    folder = open_run(run_dir, "identity.json")
    store = RunDirectory(folder)
    if (folder / "summary.json").exists():
        if not (folder / "report.html").exists():
            write_report(store)
        return Run(folder, read_json(place_of(folder, "summary.json")))
    return _carry_out(load(folder / "config.toml"), lambda: store, transport, observer or warn, terms, force=force)


def _carry_out(
    config: Config,
    open_store: Callable[[], RunDirectory],
    transport: Transport,
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
        attendance = Attendance(card, transport, store, reporter, terms, config.federation.deadline)
        protection = Protection(config, card.privacy, store, beginning.facts)
        run = Coordination(config, composition, base, attendance, protection)
        try:
            summary = run.carry_out(beginning.state)
        except BaseException:
            attendance.stop()
            raise
        emit({"event": "end", "run": str(store.path), "summary": summary})
        return Run(store.path, summary)


class Coordination:
    """A run over sites whose directory is open."""

    def __init__(
        self, config: Config, composition: Composition, base: CoordinatorBase, attendance: Attendance,
        protection: Protection,
    ) -> None:  # fmt: skip
        self.config, self.composition, self.base, self.attendance = config, composition, base, attendance
        self.protection = protection
        self.store, self.reporter = attendance.store, attendance.reporter
        self.schedule: Schedule = prepare_schedule(config)
        self.engine = Remote(
            attendance.coordinator, base.here, attendance.terms.step, lambda task: protection.sent(task, self._sizes)
        )
        self._measured: dict[int, RowLosses] = {}

    @property
    def coordinator(self) -> Coordinator:
        """Who speaks with the sites."""
        return self.attendance.coordinator

    def carry_out(self, state: ServerState) -> Mapping[str, Any]:
        """The rounds after a state, measures, models of sites, adapter, summary and report."""
        self.coordinator.open()
        state = self._train(state)
        self.attendance.gather()
        with self.reporter.phase("evaluate", "base"):
            measured = self._measure_arms(state)
        personal = self._finish(state)
        if not self._sites_measure:  # else they have it, as they measured it
            self.attendance.hand_over(state.model)
        plan = self.plan(max(1, state.round))
        results = Results(state, measured, personal, self._sizes, plan.cohort_size, self.protection.statement(plan))
        with self.reporter.phase("save adapter"):
            save_adapter(results, self.base, self.store)
        if self.coordinator.ledger.state != "finished":
            self.coordinator.end()
        found = write_results(self.config, self.base, results, self.reporter.clock.read(), self.store)
        with self.reporter.phase("report"):
            write_report(self.store)
        return found

    # Rounds

    def plan(self, number: int) -> Plan:
        """The plan of a round: from the sizes that sites stated, over those that are eligible in it, or over all of the
        first round where each is drawn at random."""
        fixed, federation = self.protection.fixed, self.config.federation
        sizes = self.attendance.sizes(number, founders=fixed or self.config.objective.scaffold)
        cohort = min(federation.clients_per_round, len(sizes))
        config = known_ranks(self.protection.recipe(cohort), list(sizes))
        plan = prepare_plan(config, self.composition, sizes, self.schedule)
        eligible = sorted(sizes) if fixed else self.coordinator.ledger.eligible[number]
        gate = partial(plan.gate, run=self.coordinator.card.run, tokenizer=self.base.tokenizer_digest)
        plan = replace(
            plan,
            clients=tuple(client for client in eligible if client in sizes),
            policy=replace(plan.policy, clock=None),  # sites answer in real time
            spool=partial(Spool, federation.updates_in_memory_mib * 2**20, self.store.scratch),
            gate=gate,
        )
        return self.protection.of(plan)

    def _train(self, state: ServerState) -> ServerState:
        measured = [(line["held_out_loss"], line["round"]) for line in read_rounds(self.store.path)]
        kept = KeptAs(self.base.public_name, self.base.conv1d, self.config.checkpoints.keep)
        self.attendance.wait_for(min(state.round + 1, self.schedule.rounds))
        meter = self._start(state)
        with self.reporter.phase("train", "federated"):
            rounds = self._rounds(state, meter)
            for state, record in journalled(rounds, self.store):
                self.coordinator.settle(state.round, outcomes_of(vars(record)))
                parts = None
                begin = self.attendance.terms.clock()
                if self.schedule.measured_after(state.round):
                    parts = self._entry(state.model, state.round)
                line = round_line(record, parts, self.attendance.terms.clock() - begin)
                measured.append((line["held_out_loss"], state.round))
                plan = self.plan(state.round) if self.protection.card is not None else None
                commit_round(state, line, best_round(measured), self.store, kept, plan)
                self.reporter.emit(cast("RoundEvent", {"event": "round", **line}))
                self.reporter.warn(*notes(record))
            if early := self.protection.ended(state.round):
                self.reporter.warn(early)
        return state

    def _rounds(self, state: ServerState, meter: Meter) -> Iterator[tuple[ServerState, RoundRecord]]:
        observe = meter.steps("federated")
        while state.round < self.schedule.rounds and not self.protection.ended(state.round):
            number = state.round + 1
            self.attendance.wait_for(number)
            up, down = self.coordinator.bytes_up, self.coordinator.bytes_down
            after, record = run_round(state, self.plan(number), self.engine, partial(observe, number))
            state = self.attendance.timed(state, after, record)
            sent, received = self.coordinator.bytes_down - down, self.coordinator.bytes_up - up
            # Who is drawn is a secret, and the bytes that were sent show how many: there the planned ones are recorded.
            down = record.bytes_down if self.protection.fixed else sent
            yield state, replace(record, bytes_up=received, bytes_down=down)

    def _start(self, state: ServerState) -> Meter:
        """The start of the events: how much is planned, and which rounds are committed already."""
        number = min(state.round + 1, self.schedule.rounds)
        plan = self.plan(number)
        rows = [plan.work(client, number, 0).rows for client in plan.clients]
        tokens = self.schedule.rounds * plan.asked * sum(rows) / len(rows) * self.config.data.max_length / 2
        meter = Meter(self.reporter.emit, {"federated": tokens}, self.schedule.rounds)
        meter.skip("federated", state.round / self.schedule.rounds)
        announce(self.reporter.emit, self.config, self.store, self.attendance.sizes(number), state, meter)
        return meter

    # Measures

    def _entry(self, model: GlobalModel | None, number: int) -> dict[str, Any] | None:
        """A model as an arm of metrics.json; None where no site measured it."""
        if self.base.here is not None:
            losses = self._losses(model, number)
            return self._checked(entry_of_rows(losses, self.base.held_out), model, number)
        measured = self.attendance.measure(model) if self._sites_measure else {}
        return self._checked(entry_of_sites(measured), model, number) if measured else None

    @property
    def _sites_measure(self) -> bool:
        """Whether losses are those of the sites' rows. A private run publishes losses, and these rows are protected."""
        return self.base.here is None and self.protection.card is None

    def _losses(self, model: GlobalModel | None, number: int) -> RowLosses:
        """The losses of a round's model, or of the base as number 0, on the coordinator's own rows."""
        if number not in self._measured:
            self._measured[number] = self.engine.evaluate(model, self.base.held_out)
        return self._measured[number]

    def _measure_arms(self, state: ServerState) -> Measured:
        """Base and federated on the same rows: those of the coordinator, or those of the sites that measured both."""
        models = {"base": (None, 0), "federated": (state.model, state.round)}
        if self.base.here is not None:
            losses = {arm: self._losses(*model) for arm, model in models.items()}
            entries = {arm: entry_of_rows(found, self.base.held_out) for arm, found in losses.items()}
            between = paired_difference(
                losses["federated"], losses["base"], stream(self.config.run.seed, "bootstrap", "base")
            )
            by_site, differences = {}, [{"a": "federated", "b": "base", **between}]
        else:
            asked = models if self._sites_measure else {}
            both = {arm: self.attendance.measure(model) for arm, (model, _) in asked.items()}
            by_site, differences = in_common(both.get("base", {}), both.get("federated", {})), []
            if not by_site["base"]:
                self.reporter.warn("no site measured the model on rows of its own, so no loss is known")
            entries = {arm: entry_of_sites(found) for arm, found in by_site.items()}
        arms = {arm: self._checked(entry, *models[arm]) for arm, entry in entries.items()}
        return Measured(arms, by_site, differences)

    @property
    def _sizes(self) -> dict[ClientId, int]:
        """The rows of every site that was eligible in a round."""
        return self.attendance.sizes(self.schedule.rounds)

    def _checked(self, entry: dict[str, Any], model: GlobalModel | None, number: int) -> dict[str, Any]:
        return checked(entry, "federated" if model is not None else "base", number, self.reporter.emit)

    def _finish(self, state: ServerState) -> dict[str, Any]:
        """What sites measured of the models that they made and keep; empty where the run makes none."""
        if not self.composition.personal_models:
            return {}
        if self.composition.personal.clusters and not state.clusters:
            self.reporter.warn("no round had enough usable updates, so no cluster was begun")
            return {}
        number = state.round
        task = finish_task(state, self.plan(max(1, number)), self.composition.personal, self.schedule)
        with self.reporter.phase("personal models"):
            return self.attendance.finish(task)
