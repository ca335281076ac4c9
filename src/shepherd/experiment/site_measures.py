"""Measures of sites, sums and weights, as the entries that metrics.json has of an arm; and the task that ends a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shepherd.clients.personal.methods import Personalization
from shepherd.errors import EvaluationError
from shepherd.evaluation.row_losses import RowLosses
from shepherd.experiment.events import Emit
from shepherd.experiment.schedule import Schedule
from shepherd.experiment.summary import finite
from shepherd.federation import messages
from shepherd.round import Plan
from shepherd.types import ClientId, ClientModel, ServerState, Stat, Tokens, TrainTask, Work

Measures = Mapping[ClientId, messages.Measured]


class Measured(NamedTuple):
    """What was measured at the end of a run.

    arms: base and federated as metrics.json has them. by_site: the answers of the sites to both, empty where the
    coordinator has rows of its own. differences: federated − base by single rows, which sites do not send.
    """

    arms: Mapping[str, dict[str, Any]]
    by_site: Mapping[str, Measures]
    differences: list[dict[str, Any]]


def in_common(base: Measures, federated: Measures) -> dict[str, Measures]:
    """The answers of the sites that measured both models, on as many rows."""
    same = [c for c in sorted(base.keys() & federated.keys()) if rows_of(base[c]) == rows_of(federated[c])]
    return {"base": {c: base[c] for c in same}, "federated": {c: federated[c] for c in same}}


def entry_of_sites(measures: Measures) -> dict[str, Any]:
    """An arm by what sites measured of it: over all their rows, by the categories that they show, and by site.

    Accuracy and standard error need single rows, so they are null.
    """
    categories: dict[str, tuple[Stat, int]] = {}
    for answer in measures.values():
        for name, total, weight, rows in answer.groups:
            before, count = categories.get(name, (Stat(), 0))
            categories[name] = before + Stat(total, weight), count + rows
    everything = sum((stat for stat, _ in categories.values()), Stat())
    return {
        **_entry(everything, sum(rows for _, rows in categories.values())),
        "per_category": {name: _entry(*found) for name, found in sorted(categories.items()) if name},
        "per_client": {client: _entry(answer.stat, rows_of(answer)) for client, answer in sorted(measures.items())},
        "generation": None,
    }


def entry_of_rows(losses: RowLosses, rows: tuple[Tokens, ...]) -> dict[str, Any]:
    """An arm by what the coordinator measured on rows of its own."""
    of = np.array([row.category for row in rows])
    parts = {str(name): finite(losses.select(of == name).summary()) for name in sorted(set(of))}
    return {**finite(losses.summary()), "per_category": parts, "per_client": {}, "generation": None}


def checked(entry: dict[str, Any], arm: str, number: int, emit: Emit) -> dict[str, Any]:
    """The entry of an arm after round `number`, which is reported. Raises EvaluationError for a loss that is not
    finite."""
    if entry["loss"] is None and entry["rows"]:
        raise EvaluationError(
            f"round {number}: the held-out loss of the {arm} arm is not finite",
            hint='lower training.learning_rate, or set model.dtype = "float32"',
        )
    if entry["loss"] is not None:
        emit({"event": "evaluation", "arm": arm, "round": number, "loss": entry["loss"]})
    return entry


def rows_of(answer: messages.Measured) -> int:
    """Held-out rows behind an answer."""
    return sum(rows for *_, rows in answer.groups)


def _entry(stat: Stat, rows: int) -> dict[str, float | None]:
    loss = stat.mean
    return finite(
        {
            "loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": math.nan, "stderr": math.nan,
            "rows": rows, "tokens": int(stat.weight),
        }
    )  # fmt: skip


def finish_task(state: ServerState, plan: Plan, personal: Personalization, schedule: Schedule) -> TrainTask:
    """The last models as a task for each client of a plan: of them a site makes its own model.

    The work states what the site will do: the steps of a fine-tuning, or where there are none the share of a round,
    which is as much as it does for the other measures.
    """
    view = ClientModel(state.model.adapter)

    def work_of(client: ClientId) -> Work:
        at = state.cursors.get(client, 0)
        if not personal.steps:
            return plan.work(client, state.round, at)
        return schedule.tuning(client, at, plan.sizes[client], personal)

    work = {client: work_of(client) for client in sorted(plan.sizes)}
    models = tuple(ClientModel(model.adapter) for model in state.clusters)
    return TrainTask(
        state.round + 1,
        dict.fromkeys(work, view),
        plan.seed,
        work,
        state.model.remainder,
        plan.objective,
        clusters=dict.fromkeys(work, models) if models else {},
    )
