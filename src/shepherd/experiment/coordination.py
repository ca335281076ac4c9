"""The rounds of a run over sites: plans from stated sizes, measures at the sites, models that stay there, results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from shepherd.config import Config
from shepherd.engines.remote import Remote
from shepherd.errors import ClientError
from shepherd.evaluation.row_losses import RowLosses
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment.coordinated_run import Results, announce, save_adapter, write_results
from shepherd.experiment.coordinator_base import CoordinatorBase
from shepherd.experiment.events import RoundEvent
from shepherd.experiment.federated import KeptAs, best_round, commit_round, journalled, round_line
from shepherd.experiment.finished_run import write_report
from shepherd.experiment.method import Composition
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.private_coordination import Protection
from shepherd.experiment.progress import Meter
from shepherd.experiment.run_card import known_ranks
from shepherd.experiment.schedule import Schedule, prepare_schedule
from shepherd.experiment.site_attendance import Attendance
from shepherd.experiment.site_measures import Measured, checked, entry_of_rows, entry_of_sites, finish_task, in_common
from shepherd.federation.coordinator import Coordinator
from shepherd.outcomes import outcomes_of
from shepherd.report.sites.history import rule_of_losses
from shepherd.rng import stream
from shepherd.round import Plan, run_round
from shepherd.store.records import RoundRecord, notes, read_rounds
from shepherd.types import ClientId, GlobalModel, ServerState
from shepherd.updates.spool import Spool


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
        if state.round < self.schedule.rounds:
            self.attendance.wait_for(state.round + 1)
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
        """Each round, and once more where sites that are away, or came back, leave too few updates."""
        observe, again = meter.steps("federated"), 0
        up, down = self.coordinator.bytes_up, self.coordinator.bytes_down
        while state.round < self.schedule.rounds and not self.protection.ended(state.round):
            number = state.round + 1
            self.attendance.wait_for(number)
            few: ClientError | None = None
            try:
                after, record = run_round(state, self.plan(number), self.engine, partial(observe, number))
            except ClientError as error:
                few = error
            if (few or record.skipped) and self.attendance.lacks(number, again < self.config.federation.retries):
                self.reporter.warn(f"round {number}: sites were lost, and too few are left; the round is done again")
                again += 1
                continue
            if few:
                raise few
            state, again = self.attendance.timed(state, after, record), 0
            sent, received = self.coordinator.bytes_down - down, self.coordinator.bytes_up - up
            up, down = self.coordinator.bytes_up, self.coordinator.bytes_down
            # Who is drawn is a secret, and the bytes that were sent show how many: there the planned ones are recorded.
            shown = record.bytes_down if self.protection.fixed else sent
            yield state, replace(record, bytes_up=received, bytes_down=shown)

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
                self.reporter.warn(
                    "no site measured the model on rows of its own, so no loss is known: "
                    + rule_of_losses(self.config.data.held_out_per_category)
                )
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
