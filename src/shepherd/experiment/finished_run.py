"""The results of a finished run -> metrics.json and summary.json: two pure functions, one writer."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from shepherd._version import __version__
from shepherd.evaluation.answers import generation_differences, generation_scores
from shepherd.evaluation.row_losses import LOSSES, HeldOutLosses, RowLosses, losses_bytes
from shepherd.evaluation.scoring import described, score_answers
from shepherd.evaluation.selection import Best
from shepherd.experiment.arms import POOLED, TrainedArm
from shepherd.experiment.federated import Federated, federated_budget
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.outputs import Answers
from shepherd.experiment.personal_models import PersonalModels
from shepherd.experiment.privacy_account import package_of_accountant, statement_of
from shepherd.experiment.resume import resumptions
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.rows_seen import LEFT_OUT, ROWS_SEEN, left_out, rows_seen, seen_by_id, times_seen
from shepherd.experiment.session import Session
from shepherd.experiment.summary import (
    arm_metrics,
    audit_findings,
    best_clients,
    best_metrics,
    brief,
    differences,
    own_rows,
    personal_metrics,
    reasons,
)
from shepherd.model.adapter import digest
from shepherd.server.merged_adapter import merged_adapter
from shepherd.store import RunDirectory
from shepherd.store.records import read_rounds

Lines = Sequence[Mapping[str, Any]]
"""The lines of rounds.jsonl."""


@dataclass(frozen=True)
class Outcome:
    """All arms of a finished run. check: the loss of the adapter as it was read back, and its difference."""

    base: RowLosses
    federated: Federated
    baselines: Mapping[str, TrainedArm]
    personal: PersonalModels
    check: Mapping[str, float]
    answers: Answers

    def losses(self, data: FederatedData) -> HeldOutLosses:
        """The held-out losses of every model, with the ids and groups of the rows."""
        models = {"base": self.base, "federated": self.federated.losses}
        for name, arm in self.baselines.items():
            if arm.per_client:
                models |= {f"{name}/{client}": losses for client, losses in arm.losses.items()}
            else:
                models[name] = arm.losses[POOLED]
        ids = tuple(row.id for row in data.held_out)
        holds = {client: tuple(sorted(data.groups_of(client))) for client in sorted(data.clients)}
        return HeldOutLosses(ids, data.groups, holds, models)


def write_summary(inputs: Inputs, outcome: Outcome, session: Session) -> dict[str, Any]:
    """Write evaluation/ and summary.json, with which the run is finished; the summary."""
    store, data = session.store, inputs.data
    lines, losses = read_rounds(store.path), outcome.losses(data)
    store.write_bytes(LOSSES, losses_bytes(losses))
    best = best_clients(losses, inputs.seed)
    measured = metrics(inputs, outcome, losses, best, lines)
    store.write_json("evaluation/metrics.json", measured)
    # Which rows DP-SGD drew is a secret of its noise.
    seen = rows_seen(lines, data.sizes, inputs.seed) if inputs.plan.examples is None else None
    if seen is not None:
        store.write_lines(ROWS_SEEN, seen_by_id(seen, data))
    store.write_lines(LEFT_OUT, left_out(data))
    found = summary(inputs, outcome, lines, measured, seen, session.reporter.clock.read(), store.path)
    if "privacy" in measured:
        found["privacy"] = measured["privacy"]
        store.write_json("privacy.json", {"shepherd": __version__, **package_of_accountant(), **measured["privacy"]})
    if best:
        found["best"] = {arm: best_metrics(one) for arm, one in best.items()}
    store.write_json("summary.json", found)
    store.journal("finished")
    return found


def write_report(store: RunDirectory) -> None:
    """Write report.html."""
    from shepherd.report.html import write_report as write

    with store.explained("report.html"):
        write(store.path)


def metrics(
    inputs: Inputs, outcome: Outcome, losses: HeldOutLosses, best: Mapping[str, Best], lines: Lines
) -> dict[str, Any]:
    """The contents of metrics.json: every arm's losses, the curves, and the differences with their intervals."""
    data, personal = inputs.data, outcome.personal
    measured: dict[str, Any] = {name: arm_metrics(found, data) for name, found in losses.pooled.items()}
    scores = score_answers(outcome.answers.records, inputs.metrics)
    for name, means in generation_scores(outcome.answers.records, scores).items():
        measured[name]["generation"] = means
    for name, models in losses.each.items():
        measured[name] = {client: arm_metrics(found, data) for client, found in models.items()}
    found = {
        "held_out_rows": len(data.held_out),
        "held_out_tokens": int(outcome.base.tokens.sum()),
        "arms": measured,
        "curves": _curves(outcome, losses, lines),
        "differences": differences(losses, best, inputs.seed),
        "own_rows": own_rows(losses),
        "generation_differences": generation_differences(scores),
    }
    if inputs.config.evaluation.sets_metrics:  # the report knows the default ones
        found["generation_metrics"] = described(inputs.metrics)
    if personal.losses:
        found["personal"] = personal_metrics(personal.losses, losses, personal.shares)
    if personal.members:
        found["clusters"] = personal.members
    if guarantee := statement_of(inputs.plan, inputs.config.privacy.publish_nothing):
        found["privacy"] = guarantee
    return found


def _curves(outcome: Outcome, losses: HeldOutLosses, lines: Lines) -> dict[str, Any]:
    """[round, held-out loss] of each arm from the base, at round 0, to the end."""
    start: list[Any] = [[0, outcome.base.stat.mean]]
    measured = [[line["round"], line["held_out_loss"]] for line in lines if line["held_out_loss"] is not None]
    curves: dict[str, Any] = {"federated": start + measured}
    for name, arm in outcome.baselines.items():
        if not arm.per_client:
            curves[name] = start + arm.curves[POOLED]
    for name in losses.each:
        curves[name] = {client: start + curve for client, curve in outcome.baselines[name].curves.items()}
    return curves


def summary(
    inputs: Inputs,
    outcome: Outcome,
    lines: Lines,
    measured: Mapping[str, Any],
    seen: Mapping[str, np.ndarray] | None,
    seconds: Mapping[str, float],
    run_dir: Path,
) -> dict[str, Any]:
    """The contents of summary.json, which `shepherd run` prints and the report begins with."""
    base, data, state = inputs.base, inputs.data, outcome.federated.state
    each = {name for name, arm in outcome.baselines.items() if arm.per_client}
    losses = {
        name: {client: brief(m) for client, m in found.items()} if name in each else brief(found)
        for name, found in measured["arms"].items()
    }
    adapter, cohort = merged_adapter(state.model), inputs.plan.cohort_size
    expected = inputs.estimate
    return {
        "arms": losses,
        "budget": {
            "federated": {
                **dataclasses.asdict(federated_budget(lines, cohort, inputs.schedule.peak())),
                **({"target_tokens": None} if inputs.plan.examples is not None else {}),
            },
            **{name: dataclasses.asdict(arm.budget) for name, arm in outcome.baselines.items()},
        },
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "seconds": seconds,
        "model": {
            "name": base.name, "digest": base.digest, "parameters": base.num_parameters,
            "dtype": str(base.dtype).removeprefix("torch."), "device": str(base.device), "licence": base.licence,
            **({"notes": list(expected.warnings)} if expected.warnings else {}),
        },
        "adapter_sha256": digest(adapter),
        "adapter": {
            "r": adapter.r, "alpha": adapter.alpha, "parameters": adapter.num_parameters, "bytes": adapter.nbytes,
            "targets": sorted({n.rsplit(".", 1)[-1] for n in adapter.factors}),
            "share_of_the_blocks": round(expected.adapted_share, 4),
        },
        "data": {
            "name": data.dataset.name, "digest": data.dataset.digest, "licence": data.dataset.licence,
            "rows": len(data.dataset.examples), "train_rows": sum(map(len, data.clients.values())),
            "held_out_rows": len(data.held_out),
            "refused": {**reasons(data.dataset.refused), **reasons(data.tokenized.refused)},
            "changed": {**reasons(data.dataset.changed), **reasons(data.tokenized.changed)},
            "notes": list(data.notes),
            "cut_rows": data.tokenized.cut_rows, "details": dict(data.details),
            "audit": audit_findings(data.audit),
        },
        "clients": len(data.clients), "labels": data.other_labels,
        "rounds": inputs.schedule.rounds,
        "cohort": cohort,
        "failed": [dataclasses.asdict(f) for arm in outcome.baselines.values() for f in arm.failures],
        "peak_memory_bytes": peak_memory(),
        "command": _again(run_dir),
        "version": __version__,
        "seed": inputs.seed,
        "reload_check": outcome.check,
        **({"trained_rows": times_seen(seen), "rows_seen": ROWS_SEEN} if seen is not None else {}),
        **resumptions(run_dir),
        "unanswered": outcome.answers.missing,
    }  # fmt: skip


def _again(run_dir: Path) -> str:
    """The command that repeats a run from the folder that it was started in, where its relative paths hold too."""
    here = Path.cwd()
    path = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
    return shlex.join(["shepherd", "run", str(path / "config.toml")])


def peak_memory() -> int:
    """Most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)
