"""Config -> a run: load, divide, train every arm, measure, write. The story of `shepherd run`, in order."""

from __future__ import annotations

import dataclasses
import errno
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from shepherd._version import __version__
from shepherd.config import Config
from shepherd.data.partition import partition_document
from shepherd.engines.local import LocalEngine
from shepherd.engines.workers import Workers
from shepherd.errors import ClientError, DataError, EvaluationError, ResourceError, UsageError
from shepherd.evaluation.answers import asked_rows, generation_differences, generation_record, generation_scores
from shepherd.evaluation.losses import RowLosses, row_losses
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment import summary as results
from shepherd.experiment.arms import POOLED, Arm, load_arm, save_arm
from shepherd.experiment.baselines import centralised_arm, local_arm
from shepherd.experiment.capacity import MARGIN, fits_here
from shepherd.experiment.checks import from_anywhere
from shepherd.experiment.estimate import Estimate, estimate, plan
from shepherd.experiment.federated import federated_budget, federated_rounds
from shepherd.experiment.identity import FILE as IDENTITY
from shepherd.experiment.identity import differences, held_out_digest, identity
from shepherd.experiment.method import doubts, has_own_models, local_names, prepare_method, prepare_personal, rate_ratio
from shepherd.experiment.personal_models import OwnModels, own_models
from shepherd.experiment.plan import peak_rate, prepare_plan
from shepherd.experiment.progress import Clock, Meter
from shepherd.experiment.rows import FederatedData, prepare_rows
from shepherd.experiment.rows_seen import LEFT_OUT, ROWS_SEEN, left_out, rows_seen, seen_by_id, times_seen
from shepherd.experiment.trainer import Trainer, base_weights, context_window, prepare_trainer, worker_engine
from shepherd.model.adapter import digest, load_adapter, save_adapter
from shepherd.model.adapter_card import adapter_card
from shepherd.model.base import Base, check_folder, load_base, load_tokenizer
from shepherd.model.fetch import resolve
from shepherd.model.forward import PackedModel
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.model.threads import use_threads
from shepherd.recipe import load as load_config
from shepherd.recipe import to_toml
from shepherd.rng import stream
from shepherd.round import Engine, Plan
from shepherd.server.merged_adapter import merged_adapter
from shepherd.serving.tuned import load_tuned
from shepherd.store import RunDirectory, open_run, read_journal, read_json
from shepherd.store.records import RoundRecord, notes, read_rounds, troubles
from shepherd.store.state import load_state, save_state
from shepherd.types import GlobalModel, ServerState
from shepherd.updates.spool import Spool

__all__ = ["Estimate", "Run", "evaluate_run", "plan", "resume", "run"]

Observer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and what summary.json holds."""

    path: Path
    summary: Mapping[str, Any]


def run(config: Config, observer: Observer | None = None, out_dir: Path | None = None) -> Run:
    """Carry out a run and write its directory.

    Raises a ShepherdError for anything a person can mend; ClientError when too few clients gave a usable update;
    EvaluationError when the adapter on disk does not give the reported loss.
    """
    out = Path(out_dir) if out_dir is not None else Path(config.run.out)
    return _carry_out(_Experiment(config, observer, out), lambda: RunDirectory.create(out, config.run.name))


def resume(run_dir: Path | str, observer: Observer | None = None, *, force: bool = False) -> Run:
    """Go on with a run that was stopped, from its last committed round, to the bytes of a run that never stopped.

    A finished run is returned as it is, with the report that it may still lack. Raises UsageError, with what differs,
    where settings, data, base, tokenizer, code or machine are not those that the run was started with; `force`
    goes on all the same and notes it in the report.
    """
    folder = open_run(run_dir, IDENTITY)
    store = RunDirectory(folder)
    if (folder / "summary.json").exists():
        summary = read_json(folder / "summary.json")
        if not (folder / "report.html").exists():
            _report(store)
        return Run(folder, summary)
    experiment = _Experiment(load_config(folder / "config.toml"), observer, folder)
    experiment.force = force
    return _carry_out(experiment, lambda: store)


def _carry_out(experiment: _Experiment, open_store: Callable[[], RunDirectory]) -> Run:
    try:
        with experiment.held:
            return experiment.run(open_store)
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


def _report(store: RunDirectory) -> None:
    from shepherd.report.html import write_report

    with store.explained("report.html"):
        write_report(store.path)


class _Experiment:
    """The state of one run, from config to summary."""

    def __init__(self, config: Config, observer: Observer | None, place: Path) -> None:
        self.config, self.tell, self.place = from_anywhere(config), observer or (lambda event: None), place
        self.id = secrets.token_hex(16)  # not from the seed: two runs of one recipe are two
        self.force = False
        self.clock = Clock()
        self.held = ExitStack()  # the lock on the run directory

    def run(self, open_store: Callable[[], RunDirectory]) -> Run:
        config = self.config
        prepare_personal(config, prepare_method(config))  # what does not fit is said before anything is loaded
        with self._phase("prepare data"):
            use_threads(config.run.threads)
            folder = resolve(config.model.base, config.model.revision)
            check_folder(folder)
            rows, template = prepare_rows(config, load_tokenizer(folder), self._reading)
            names = local_names(config, tuple(rows.clients), rows.partition.labels)
            self.expected = estimate(config, folder, rows, timed=False)
            fits_here(dataclasses.asdict(self.expected), self.place, MARGIN)
        with self._phase("load model"):
            base = load_base(**config.model.model_dump())
        with self._phase("prepare model"):
            learner = prepare_trainer(config, base)
            plan = prepare_plan(config, rows)
            weights = base_weights(base, list(learner.adapter.factors)) if plan.method.needs_base else None
            start = ServerState(0, plan.method.start(learner.adapter, config.run.seed, weights))
        self.store = open_store()
        self.held.enter_context(self.store.lock())
        in_memory = config.federation.updates_in_memory_mib * 2**20
        state = self._begin_or_go_on(base, learner, rows, start)
        plan = dataclasses.replace(
            plan,
            spool=partial(Spool, in_memory, self.store.scratch),
            gate=partial(plan.gate, run=self.id, tokenizer=base.tokenizer_digest),
        )
        self.meter = Meter(self.tell, config, rows, plan, names, learner.settings.personal.cost)
        self.meter.skip("federated", state.round / config.federation.rounds)
        for arm in ("local", "centralised"):
            if self._trained(arm).is_dir():
                self.meter.skip(arm)
        self.tell(
            {
                "event": "start",
                "run": str(self.store.path),
                "config": config.model_dump(mode="json"),
                "model": base.name,
                "clients": sorted(rows.clients),
                "labels": _other_labels(rows),
                "rounds": config.federation.rounds,
                "arms": list(config.evaluation.arms),
                "round": state.round,
                "fraction": self.meter.fraction,
            }
        )
        for line in read_rounds(self.store.path):
            self.tell({"event": "committed", **line})
        for warning in (*self.notes, *doubts(self.config), *self.expected.warnings, *rows.warnings):
            self._warn(warning)

        self.engine: Engine = LocalEngine(learner.site(rows.clients))
        if config.run.workers:
            threads = max(1, torch.get_num_threads() // config.run.workers)
            build = partial(worker_engine, _resolved(config, base, learner), threads)
            self.engine = self.held.enter_context(
                Workers(
                    config.run.workers, build, rows.clients, self.engine,
                    run=self.id, patience=config.run.patience,
                )
            )  # fmt: skip
        self.losses: dict[str, RowLosses] = {}
        with self._phase("evaluate", "base"):
            self.losses["base"] = self._evaluate("base", None, rows, 0)
        state = self._federated(learner, plan, rows, state)
        outcome: dict[str, Arm] = {}
        if "local" in config.evaluation.arms:
            measure = partial(self._measure, learner, rows)
            train = partial(local_arm, config, learner, rows, names, self.meter.steps("local"), measure)
            outcome["local"] = self._arm("local", train, learner)
        if "centralised" in config.evaluation.arms:
            outcome["centralised"] = self._arm("centralised", partial(self._centralised, learner, plan, rows), learner)
            self.losses["centralised"] = outcome["centralised"].losses[POOLED]
        for arm in outcome.values():
            for failure in arm.failures:
                self._warn(f"{rows.partition.label(failure.client)}: {failure.code}: {failure.detail}")
        self.own, self.own_losses, self.shares = OwnModels(), {}, {}
        if has_own_models(learner.settings.personal, plan.method):
            with self._phase("personal models"):
                observe = self.meter.steps("personal")
                self.own = own_models(config, learner, plan, rows, state, self.store, observe, self._warn)
                with self.clock.on("evaluate"):
                    self.own_losses, self.shares = self.own.losses(learner, rows)
        with self._phase("save adapter"):
            check = self._save(base, learner, rows, state)
        with self._phase("generate"):
            records = self._generate(base, learner, rows, template, state, outcome)
        lines = read_rounds(self.store.path)
        metrics = self._metrics(rows, outcome, records, lines)
        seen = rows_seen(lines, rows, config.run.seed)
        self.store.write_lines(ROWS_SEEN, seen_by_id(seen, rows))
        self.store.write_lines(LEFT_OUT, left_out(rows))
        summary = self._summary(base, learner, plan, rows, state, metrics, lines, check, outcome, seen)
        self.store.write_json("summary.json", summary)
        self.store.journal("finished")
        with self._phase("report"):
            _report(self.store)
        self.tell({"event": "end", "run": str(self.store.path), "summary": summary})
        return Run(self.store.path, summary)

    def _begin_or_go_on(self, base: Base, learner: Trainer, rows: FederatedData, start: ServerState) -> ServerState:
        """Write what the run is made with and its id, or check and read them; the state to go on from."""
        config = _resolved(self.config, base, learner)
        now = identity(config, base, rows)
        self.notes: list[str] = []
        if not (self.store.path / IDENTITY).exists():
            divided = partition_document(rows.partition, list(rows.examples.values()))
            self.store.write_json("partition.json", divided)
            self.store.write_json("env.json", _environment(base))
            self.store.write_text("config.toml", to_toml(config))
            self.store.journal("started", model=base.digest, data=rows.dataset.digest)
            self.store.write_json(IDENTITY, {"run": self.id, **now})  # last: with it, the run can be resumed
            return start
        then = read_json(self.store.path / IDENTITY)
        self.id = str(then.get("run", self.id))
        forced = differences(then, now)
        if forced and not self.force:
            listed = "\n".join(f"  {line}" for line in forced)
            raise UsageError(
                f"{self.store.path} was started with something else, so it would end with other numbers:\n{listed}",
                hint="give back what it was started with; or go on with --force, which is noted in the report",
            )
        recovered = self.store.recover()
        if recovered.lines and not self.force:
            raise DataError(
                f"{self.store.path}: {recovered.lines}, so curves and the best round would not be as measured",
                hint="restore it from a copy; or go on with --force, which is noted in the report",
            )
        forced += [recovered.lines] if recovered.lines else []
        self.notes += [f"{name}: {reason}" for name, reason in recovered.rejected] + list(recovered.notes)
        state = load_state(recovered.checkpoint.folder) if recovered.checkpoint else start
        self.store.journal("resumed", round=state.round, found=self.notes, forced=forced)
        return state

    def _federated(self, learner: Trainer, plan: Plan, rows: FederatedData, state: ServerState) -> ServerState:
        """The rounds after `state`: each is committed with its line in rounds.jsonl before the next one begins."""
        config, store = self.config, self.store
        measured = [
            (line["held_out_loss"], line["round"])
            for line in read_rounds(store.path)
            if line["held_out_loss"] is not None
        ]
        losses = None
        with self._phase("train", "federated"):
            rounds = federated_rounds(
                state, plan, self.engine, config.federation.rounds, self.meter.steps("federated")
            )  # fmt: skip
            for state, record in self._witnessed(rounds):
                line = dataclasses.asdict(record)
                begin = time.perf_counter()
                losses = None
                if state.round == config.federation.rounds or (
                    config.evaluation.every and state.round % config.evaluation.every == 0
                ):
                    losses = self._evaluate("federated", state, rows, state.round)
                    measured.append((losses.stat.mean, state.round))
                line["held_out_loss"] = losses.stat.mean if losses else None
                parts = results.arm_metrics(losses, rows) if losses else {}
                for part in ("per_category", "per_client"):
                    line[f"held_out_{part}"] = {k: v["loss"] for k, v in parts[part].items()} if losses else None
                line["seconds"]["evaluate"] = time.perf_counter() - begin
                begin = time.perf_counter()
                with store.commit_round(state.round, line) as folder:
                    save_state(folder, state, base_name=learner.base_name, conv1d=learner.conv1d, disk=store.disk)
                    line["seconds"]["commit"] = time.perf_counter() - begin
                store.prune_checkpoints(config.checkpoints.keep, min(measured, default=(0.0, 0))[1])
                store.journal("committed", round=state.round, adapter=digest(state.model.adapter))
                self.tell({"event": "round", **line})
                for message in notes(record, rows.partition.label):
                    self._warn(message)
        # The last round is always measured; without one to run, everything was committed before.
        self.losses["federated"] = losses or self._evaluate("federated", state, rows, state.round)
        return state

    def _witnessed(
        self, rounds: Iterator[tuple[ServerState, RoundRecord]]
    ) -> Iterator[tuple[ServerState, RoundRecord]]:
        """The same rounds, with a line in the journal for answers that did not count and for a round that failed."""
        try:
            for state, record in rounds:
                if trouble := troubles(record):
                    self.store.journal("did not count", round=record.round, **trouble)
                yield state, record
        except ClientError as error:
            self.store.journal("stopped", reason=error.message.splitlines())
            raise

    def _arm(self, name: str, train: Callable[[], Arm], learner: Trainer) -> Arm:
        """A baseline, trained; or read back where an earlier process had finished it."""
        if self._trained(name).is_dir():
            return load_arm(self._trained(name))
        with self._phase("train", name):
            arm = train()
        with self.store.commit_folder(f"arms/{name}") as pending:
            save_arm(pending, arm, base_name=learner.base_name, conv1d=learner.conv1d)
        self.store.journal("trained", arm=name)
        return arm

    def _trained(self, arm: str) -> Path:
        """Where a baseline lies once it is trained."""
        return self.store.path / "arms" / arm

    def _centralised(self, learner: Trainer, plan: Plan, rows: FederatedData) -> Arm:
        measure = partial(self._measure, learner, rows)
        observe = self.meter.steps("centralised")
        arm = centralised_arm(self.config, learner, rows, plan.cohort_size, observe, measure)
        if arm.failures:
            key = "evaluation.centralised_" if "centralised" in self.config.evaluation.own_rates else "training."
            raise ClientError(f"the centralised arm failed: {arm.failures[0].detail}", hint=f"lower {key}learning_rate")
        return arm

    def _evaluate(self, arm: str, state: ServerState | None, rows: FederatedData, number: int) -> RowLosses:
        with self.clock.on("evaluate"):
            losses = self.engine.evaluate(state.model if state else None, rows.held_out)
        if not np.isfinite(losses.stat.mean):
            raise EvaluationError(
                f"round {number}: the held-out loss of the {arm} arm is {losses.stat.mean}",
                hint='lower training.learning_rate, or set model.dtype = "float32"',
            )
        self.tell({"event": "evaluation", "arm": arm, "round": number, "loss": losses.stat.mean})
        return losses

    def _measure(self, learner: Trainer, rows: FederatedData, lora: CohortLora) -> list[RowLosses]:
        with self.clock.on("evaluate"):
            return row_losses(learner.packed, rows.held_out, lora, learner.settings.tokens_measured)

    def _save(self, base: Base, learner: Trainer, rows: FederatedData, state: ServerState) -> dict[str, float]:
        """Write the final adapter, then read it back and measure it again."""
        reported = self.losses["federated"].stat.mean
        whole = merged_adapter(state.model)
        with self.store.commit_folder("adapter") as folder:
            save_adapter(folder, whole, base_name=learner.base_name, conv1d=learner.conv1d)
            base.tokenizer.save_pretrained(folder)
            card = adapter_card(
                whole,
                base=base.name,
                base_licence=base.licence,
                data=rows.dataset.name,
                data_licence=rows.dataset.licence,
                rows=sum(map(len, rows.clients.values())),
                clients=len(rows.clients),
                rounds=state.round,
                loss_before=self.losses["base"].stat.mean,
                loss_after=reported,
                version=__version__,
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
        with self.clock.on("evaluate"):
            model = GlobalModel(load_adapter(self.store.path / "adapter"))
            again = self.engine.evaluate(model, rows.held_out).stat.mean
        # In bfloat16 a remainder beside the base is rounded otherwise than the same increment inside the adapter.
        rounded = bool(state.model.remainder) and base.dtype != torch.float32
        if not abs(again - reported) <= (2e-3 if rounded else 1e-4) * (1 + abs(reported)):
            raise EvaluationError(
                f"the adapter on disk has held-out loss {again:.6f}, the one in memory had {reported:.6f}",
                hint=f"do not use {self.store.path / 'adapter'}; this is a bug, please report it",
            )
        return {"loss": again, "difference": again - reported}

    def _generate(self, base, learner, rows, template, state, outcome) -> list[dict[str, Any]]:
        window = context_window(base.model.config)
        examples, prompts, self.unanswered = asked_rows(self.config, rows, template, base.tokenizer, window)
        if self.unanswered:
            self._warn(self.unanswered)
        if not prompts:
            return []
        models = {"base": None, "federated": state.model}
        if "centralised" in outcome:
            models["centralised"] = GlobalModel(outcome["centralised"].adapters[POOLED])
        answers = {}
        for name, model in models.items():
            lora = learner.make_lora().load(model) if model is not None else None
            answers[name] = generate(
                base.model,
                base.tokenizer,
                prompts,
                lora=lora,
                stops=template.stops,
                max_new_tokens=self.config.evaluation.max_new_tokens,
            )
        records = [
            generation_record(example, {arm: each[i] for arm, each in answers.items()})
            for i, example in enumerate(examples)
        ]
        self.store.write_lines("evaluation/generations.jsonl", records)
        return records

    def _metrics(
        self, rows: FederatedData, outcome: Mapping[str, Arm], records: list, lines: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        local = outcome["local"].losses if "local" in outcome else {}
        measured = {name: results.arm_metrics(losses, rows) for name, losses in self.losses.items()}
        for name, scores in generation_scores(records).items():
            measured[name]["generation"] = scores
        if local:
            measured["local"] = {client: results.arm_metrics(losses, rows) for client, losses in local.items()}
        start = [[0, self.losses["base"].stat.mean]]
        measured_rounds = [
            [line["round"], line["held_out_loss"]] for line in lines if line["held_out_loss"] is not None
        ]
        curves: dict[str, Any] = {"federated": start + measured_rounds}
        if "centralised" in outcome:
            curves["centralised"] = start + outcome["centralised"].curves[POOLED]
        if local:
            curves["local"] = {client: start + curve for client, curve in outcome["local"].curves.items()}
        metrics = {
            "held_out_rows": len(rows.held_out),
            "held_out_tokens": int(self.losses["base"].tokens.sum()),
            "arms": measured,
            "curves": curves,
            "differences": results.differences(self.losses, local, self.config.run.seed),
            "own_rows": results.own_rows(self.losses["federated"], local, rows),
            "generation_differences": generation_differences(records),
        }
        if self.own_losses:
            metrics["personal"] = results.personal_metrics(self.own_losses, self.losses, local, rows, self.shares)
        if self.own.members:
            metrics["clusters"] = self.own.members
        self.store.write_json("evaluation/metrics.json", metrics)
        return metrics

    def _summary(self, base, learner, plan, rows, state, metrics, lines, check, outcome, seen) -> dict[str, Any]:
        measured = dict(metrics["arms"])
        local = measured.pop("local", None)
        brief = {name: results.brief(m) for name, m in measured.items()}
        if local is not None:
            brief["local"] = {client: results.brief(m) for client, m in local.items()}
        adapter = merged_adapter(state.model)
        return {
            "arms": brief,
            "budget": {
                "federated": dataclasses.asdict(federated_budget(lines, plan.cohort_size, peak_rate(self.config))),
                **{name: dataclasses.asdict(arm.budget) for name, arm in outcome.items()},
            },
            "bytes_up": sum(line["bytes_up"] for line in lines),
            "bytes_down": sum(line["bytes_down"] for line in lines),
            "seconds": self.clock.read(),
            "model": {
                "name": base.name, "digest": base.digest, "parameters": base.num_parameters,
                "dtype": str(base.dtype).removeprefix("torch."), "device": str(base.device), "licence": base.licence,
                **({"notes": list(self.expected.warnings)} if self.expected.warnings else {}),
            },
            "adapter_sha256": digest(adapter),
            "adapter": {
                "r": adapter.r, "alpha": adapter.alpha, "parameters": adapter.num_parameters, "bytes": adapter.nbytes,
                "targets": sorted({n.rsplit(".", 1)[-1] for n in adapter.factors}),
                "share_of_the_blocks": round(self.expected.adapted_share, 4),
            },
            "data": {
                "name": rows.dataset.name, "digest": rows.dataset.digest, "licence": rows.dataset.licence,
                "rows": len(rows.dataset.examples), "train_rows": sum(map(len, rows.clients.values())),
                "held_out_rows": len(rows.held_out),
                "refused": {**results.reasons(rows.dataset.refused), **results.reasons(rows.tokenized.refused)},
                "changed": {**results.reasons(rows.dataset.changed), **results.reasons(rows.tokenized.changed)},
                "notes": list(rows.notes),
                "cut_rows": rows.tokenized.cut_rows, "details": dict(rows.details),
                "audit": results.audit_findings(rows.audit),
            },
            "clients": len(rows.clients), "labels": _other_labels(rows),
            "rounds": self.config.federation.rounds,
            "cohort": plan.cohort_size,
            "failed": [dataclasses.asdict(f) for arm in outcome.values() for f in arm.failures],
            "peak_memory_bytes": _peak_memory(),
            "command": _again(self.store.path),
            "version": __version__,
            "seed": self.config.run.seed,
            "reload_check": check,
            "trained_rows": times_seen(seen),
            "rows_seen": ROWS_SEEN,
            **_resumptions(self.store.path),
            "unanswered": self.unanswered,
        }  # fmt: skip

    def _reading(self, text: str) -> None:
        self.tell({"event": "phase", "phase": "prepare data", "arm": None, "detail": text})

    def _warn(self, message: str) -> None:
        self.tell({"event": "warning", "message": message})

    @contextmanager
    def _phase(self, name: str, arm: str | None = None) -> Iterator[None]:
        self.tell({"event": "phase", "phase": name, "arm": arm, "detail": ""})
        with self.clock.on(arm if name == "train" and arm else name):
            yield


def _resolved(config: Config, base: Base, learner: Trainer) -> Config:
    """The config with what was measured, picked by memory or left to the method written down, so that it repeats."""
    settings = learner.settings
    picked = {"tokens_per_pass": settings.tokens_per_pass, "clients_at_once": settings.clients_at_once}
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"threads": torch.get_num_threads()}),
            "model": config.model.model_copy(update={"dtype": str(base.dtype).removeprefix("torch.")}),
            "training": config.training.model_copy(update=picked),
            "objective": config.objective.model_copy(update={"rate_ratio": rate_ratio(config)}),
        }
    )


def _resumptions(run_dir: Path) -> dict[str, list[str]]:
    """What the journal says of every time that the run was resumed: what it was forced over, and what was found
    damaged, each with the round after which it went on."""
    resumed = [row for row in read_journal(run_dir / "journal.jsonl").rows if row["what"] == "resumed"]
    return {
        kind: [f"after round {row['round']}: {line}" for row in resumed for line in row[kind]]
        for kind in ("forced", "found")
    }


def _other_labels(rows: FederatedData) -> dict[str, str]:
    """The names, as the data write them, of the clients whose ids are not their names."""
    return {client: label for client, label in rows.partition.labels.items() if label != client}


def _again(run_dir: Path) -> str:
    """The command that repeats a run from the folder that it was started in, where its relative paths hold too."""
    here = Path.cwd()
    path = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
    return shlex.join(["shepherd", "run", str(path / "config.toml")])


def _environment(base: Base) -> dict[str, Any]:
    import peft
    import transformers

    return {
        "shepherd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
        "device": str(base.device),
        "dtype": str(base.dtype),
    }


def _peak_memory() -> int:
    """Most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def evaluate_run(run_dir: Path | str, round_number: int | None = None) -> dict[str, Any]:
    """Measure a run's adapter again, from its files: {"base": …, "federated": …, "difference": …}.

    Reads config.toml and adapter/ of the run directory, or the checkpoint of a round, and its data from where the
    recipe says. Raises EvaluationError when data, held-out rows or tokenizer are not those of the run.
    """
    tuned = load_tuned(run_dir, round_number=round_number)
    rows, _ = prepare_rows(tuned.config, tuned.base.tokenizer)
    config, (divided, made_with) = tuned.config, (read_json(Path(run_dir) / n) for n in ("partition.json", IDENTITY))
    apart = config.data.held_out_source or config.data.source
    for what, then, now, source in (
        ("held-out rows are not those", made_with.get("held_out"), held_out_digest(rows), apart),
        ("data are not those", divided.get("dataset_digest"), rows.partition.dataset_digest, config.data.source),
        ("tokenizer is not that", made_with.get("tokenizer"), tuned.base.tokenizer_digest, config.model.base),
    ):
        if then != now:
            raise EvaluationError(
                f"the {what} of the run: digest {now[:12]}, then {str(then or 'unknown')[:12]}",
                hint=f"give back what {source} held, and the config.toml that the run wrote",
            )
    packed = PackedModel(tuned.base.model)
    before, after = (row_losses(packed, rows.held_out, lora)[0] for lora in (None, tuned.lora))
    return {
        "base": results.arm_metrics(before, rows),
        "federated": results.arm_metrics(after, rows),
        "difference": paired_difference(after, before, stream(config.run.seed, "bootstrap", "base")),
    }
