"""The story of `shepherd run`: every stage is a function of values, in order."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from shepherd.errors import ResourceError
from shepherd.experiment.baselines import folder_of, train_baselines
from shepherd.experiment.checks import Checked
from shepherd.experiment.engine import open_engine
from shepherd.experiment.events import CommittedEvent, Emit
from shepherd.experiment.example_ledgers import with_accounts
from shepherd.experiment.federated import evaluate_base, train_federated
from shepherd.experiment.finished_run import Outcome, write_report, write_summary
from shepherd.experiment.inputs import Inputs, load_inputs
from shepherd.experiment.opened_run import Run
from shepherd.experiment.outputs import generate_answers, save_adapter
from shepherd.experiment.personal_models import train_personal
from shepherd.experiment.privacy_account import with_ledger
from shepherd.experiment.progress import Meter, Reporter, step_tokens, training_tokens
from shepherd.experiment.resume import Beginning, begin_or_resume
from shepherd.experiment.session import Session
from shepherd.round import Engine, Plan
from shepherd.store import RunDirectory
from shepherd.store.records import read_rounds
from shepherd.updates.spool import Spool


def carry_out(
    checked: Checked,
    place: Path,
    open_store: Callable[[], RunDirectory],
    emit: Emit,
    force: bool = False,
    wrap: Callable[[Engine], Engine] | None = None,
    base_losses: Path | None = None,
) -> Run:
    """Carry out a run whose recipe is checked, in the directory that `open_store` opens at `place`.

    force: go on with a run although something differs from when it was started. wrap: makes the engine that trains the
    clients from the one of the recipe. base_losses: a folder in which losses of the bare base are kept for other runs.
    """
    with _exhaustion_explained():
        reporter = Reporter(emit)
        inputs = load_inputs(checked, place, reporter)
        store = open_store()
        with store.lock():
            beginning = begin_or_resume(inputs, store, force, wrap)
            plan = with_accounts(inputs.plan, store, beginning.facts)
            inputs = replace(inputs, plan=with_ledger(plan, store, beginning.facts))
            session = replace(open_session(inputs, beginning, store, reporter), base_losses=base_losses)
            with open_engine(inputs, session.run_id) as engine:
                base = evaluate_base(engine, inputs, session)
                plan = round_plan(inputs, session)
                trainer = wrap(engine) if wrap else engine
                federated = train_federated(beginning.state, plan, trainer, inputs, session)
                baselines, notes = train_baselines(inputs, session)
                reporter.warn(*notes)
                personal, notes = train_personal(inputs, federated.state, session)
                reporter.warn(*notes)
                check = save_adapter(inputs, federated, base, engine, session)
                answers = generate_answers(inputs, federated.state.model, baselines, session)
                outcome = Outcome(base, federated, baselines, personal, check, answers)
                summary = write_summary(inputs, outcome, session)
                with reporter.phase("report"):
                    write_report(store)
                emit({"event": "end", "run": str(store.path), "summary": summary})
                return Run(store.path, summary)


def open_session(inputs: Inputs, beginning: Beginning, store: RunDirectory, reporter: Reporter) -> Session:
    """Start the events of a run: its plan, the rounds that are committed already, and its warnings."""
    data, schedule = inputs.data, inputs.schedule
    cost = inputs.trainer.settings.personal.cost
    planned = training_tokens(schedule, inputs.composition.baselines, data, inputs.plan, inputs.alone, cost)
    meter = Meter(reporter.emit, planned, schedule.rounds, step_tokens(inputs.plan, data))
    meter.skip("federated", beginning.state.round / schedule.rounds)
    for arm in inputs.arms:
        if folder_of(arm.name, store.path).is_dir():
            meter.skip(arm.name)
    reporter.emit(
        {
            "event": "start",
            "run": str(store.path),
            "config": inputs.config.model_dump(mode="json"),
            "model": inputs.base.name,
            "clients": sorted(data.clients),
            "labels": data.other_labels,
            "rounds": schedule.rounds,
            "arms": [arm.name for arm in inputs.arms],
            "round": beginning.state.round,
            "fraction": meter.fraction,
        }
    )
    for line in read_rounds(store.path):
        reporter.emit(cast("CommittedEvent", {"event": "committed", **line}))
    reporter.warn(*beginning.notes, *inputs.warnings)
    return Session(store, beginning.run_id, reporter, meter)


def round_plan(inputs: Inputs, session: Session) -> Plan:
    """The plan with what only a started run has: the spool of updates, and the run id that the gate admits."""
    return replace(
        inputs.plan,
        spool=partial(Spool, inputs.updates_in_memory, session.store.scratch),
        gate=partial(inputs.plan.gate, run=session.run_id, tokenizer=inputs.base.tokenizer_digest),
    )


@contextmanager
def _exhaustion_explained() -> Iterator[None]:
    """Memory and disk that ran out become a ResourceError with what to change."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'the system gave no more'}",
            hint="set training.tokens_per_pass or training.clients_at_once lower, or training.gradient_checkpointing",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceError(
            f"{error.strerror}: {error.filename or 'a file of the run'} was not written",
            hint="free some space, or take another disk, then go on with shepherd resume",
        ) from error
