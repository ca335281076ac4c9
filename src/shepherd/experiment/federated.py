"""The federated arm: rounds after a state, each measured where the recipe says and committed before the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from shepherd.clients.progress import StepReport
from shepherd.errors import ClientError, EvaluationError
from shepherd.evaluation.row_losses import RowLosses
from shepherd.experiment.arms import Budget
from shepherd.experiment.base_losses import kept_or_measured
from shepherd.experiment.events import RoundEvent, RoundLine
from shepherd.experiment.example_ledgers import marks_of
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.session import Session
from shepherd.experiment.summary import arm_metrics
from shepherd.model.adapter import digest
from shepherd.round import Engine, Plan, run_round
from shepherd.store import RunDirectory
from shepherd.store.records import RoundRecord, notes, read_rounds, troubles
from shepherd.store.state import save_state
from shepherd.types import GlobalModel, ServerState


@dataclass(frozen=True)
class Federated:
    """The federated arm after its last round: the server's state and the held-out losses of its model."""

    state: ServerState
    losses: RowLosses


def train_federated(state: ServerState, plan: Plan, engine: Engine, inputs: Inputs, session: Session) -> Federated:
    """The rounds after `state`. A committed round has its line in rounds.jsonl before the next one begins.

    Raises ClientError when too few clients gave a usable update, EvaluationError for a loss that is not finite.
    """
    reporter, store, schedule = session.reporter, session.store, inputs.schedule
    measured = [(line["held_out_loss"], line["round"]) for line in read_rounds(store.path)]
    kept = KeptAs(inputs.trainer.base_name, inputs.trainer.conv1d, inputs.checkpoints_kept)
    losses = None
    with reporter.phase("train", "federated"):
        rounds = federated_rounds(state, plan, engine, schedule.rounds, session.meter.steps("federated"))
        for state, record in journalled(rounds, store):
            begin = time.perf_counter()
            losses = None
            if schedule.measured_after(state.round):
                losses = evaluate("federated", state.model, state.round, engine, inputs, session)
            parts = arm_metrics(losses, inputs.data) if losses else None
            line = round_line(record, parts, time.perf_counter() - begin)
            measured.append((line["held_out_loss"], state.round))
            commit_round(state, line, best_round(measured), store, kept, plan)
            reporter.emit(cast("RoundEvent", {"event": "round", **line}))
            reporter.warn(*notes(record, inputs.data.partition.label))
        if early := ended_early(state, plan, schedule.rounds):
            store.journal("privacy budget spent", round=state.round)
            reporter.warn(early)
    # The last round is measured here where it was not before.
    return Federated(state, losses or evaluate("federated", state.model, state.round, engine, inputs, session))


def federated_rounds(
    state: ServerState, plan: Plan, engine: Engine, rounds: int, observe: Callable[[int, StepReport], None]
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """The rounds after `state`, one by one, as far as the privacy budget of the plan reaches."""
    while state.round < rounds:
        number = state.round + 1
        if plan.privacy is not None and not plan.privacy.affords(number, rounds):
            return
        state, record = run_round(state, plan, engine, partial(observe, number))
        yield state, record


def ended_early(state: ServerState, plan: Plan, rounds: int) -> str:
    """Why a run ends after `state` before its last round, or ""."""
    if plan.privacy is None or state.round >= rounds:
        return ""
    attempts = len(plan.privacy.ledger.releases) > state.round
    why = "attempts that were not committed count as well" if attempts else "the noise is that of fewer rounds"
    return (
        f"the run ends after round {state.round} of {rounds}: one more would exceed privacy.epsilon = "
        f"{plan.privacy.epsilon:g}, because {why}"
    )


def evaluate(
    arm: str, model: GlobalModel | None, number: int, engine: Engine, inputs: Inputs, session: Session
) -> RowLosses:
    """The held-out losses of a model, None for the bare base. Raises EvaluationError where they are not finite."""
    with session.reporter.clock.on("evaluate"):
        measure = partial(engine.evaluate, model, inputs.data.held_out)
        losses = kept_or_measured(session.base_losses, inputs, measure) if model is None else measure()
    if not np.isfinite(losses.stat.mean):
        raise EvaluationError(
            f"round {number}: the held-out loss of the {arm} arm is {losses.stat.mean}",
            hint='lower training.learning_rate, or set model.dtype = "float32"',
        )
    session.reporter.emit({"event": "evaluation", "arm": arm, "round": number, "loss": losses.stat.mean})
    return losses


def evaluate_base(engine: Engine, inputs: Inputs, session: Session) -> RowLosses:
    """The held-out losses of the bare base, with which every arm is compared."""
    with session.reporter.phase("evaluate", "base"):
        return evaluate("base", None, 0, engine, inputs, session)


def federated_budget(lines: Sequence[Mapping[str, Any]], cohort_size: int, learning_rate: float) -> Budget:
    """What the federated arm spent, from the lines of rounds.jsonl."""
    steps, rows, tokens = (sum(sum(line[key].values()) for line in lines) for key in ("steps", "examples", "tokens"))
    return Budget(steps, steps / cohort_size, rows, tokens, learning_rate)


def journalled(
    rounds: Iterator[tuple[ServerState, RoundRecord]], store: RunDirectory
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """The same rounds, with a line in the journal for updates that did not count and for a round that failed."""
    try:
        for state, record in rounds:
            if trouble := troubles(record):
                store.journal("did not count", round=record.round, **trouble)
            yield state, record
    except ClientError as error:
        store.journal("stopped", reason=error.message.splitlines())
        raise


def round_line(record: RoundRecord, measured: Mapping[str, Any] | None, seconds: float) -> RoundLine:
    """The line of a round in rounds.jsonl, with what was measured after it in `seconds`, as metrics.json has it."""
    written = asdict(record)
    for key in ("clipped", "clip_norm"):
        if written[key] is None:  # a line has them only where updates are clipped
            del written[key]
    line = cast("RoundLine", written)
    line["held_out_loss"] = measured["loss"] if measured else None
    line["held_out_per_category"] = {k: v["loss"] for k, v in measured["per_category"].items()} if measured else None
    line["held_out_per_client"] = {k: v["loss"] for k, v in measured["per_client"].items()} if measured else None
    line["seconds"]["evaluate"] = seconds
    return line


def best_round(measured: Sequence[tuple[float | None, int]]) -> int:
    """The round with the least held-out loss; 0 where none was measured."""
    return min(((loss, number) for loss, number in measured if loss is not None), default=(0.0, 0))[1]


class KeptAs(NamedTuple):
    """How checkpoints are written: the base's name for PEFT, whether its layers are Conv1D, and how many stay."""

    base_name: str
    conv1d: bool
    checkpoints: int


def commit_round(
    state: ServerState,
    line: RoundLine,
    best: int,
    store: RunDirectory,
    kept: KeptAs,
    plan: Plan | None = None,
) -> None:
    """Commit a round: state and line together, or not at all. Of the checkpoints the newest and the best are kept.

    The manifest of a private round holds the number of lines that its ledgers have.
    """
    begin = time.perf_counter()
    facts = {} if plan is None else marks_of(plan)
    if plan is not None and plan.privacy is not None:
        facts["privacy"] = plan.privacy.ledger.mark()
    with store.commit_round(state.round, line, **facts) as folder:
        save_state(folder, state, base_name=kept.base_name, conv1d=kept.conv1d, disk=store.disk)
        line["seconds"]["commit"] = time.perf_counter() - begin
    store.prune_checkpoints(kept.checkpoints, best)
    store.journal("committed", round=state.round, adapter=digest(state.model.adapter))
