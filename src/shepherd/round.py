"""ONE ROUND of federated tuning, in order. Read this first.

select a cohort -> give each client its view of the model -> train locally -> gate -> combine -> next global model
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from shepherd.clients.selection import Selection
from shepherd.clients.training import StepReport
from shepherd.errors import ClientError
from shepherd.evaluation.losses import RowLosses
from shepherd.rng import stream
from shepherd.server.aggregation import update_weights
from shepherd.server.diagnostics import diagnose
from shepherd.server.method import Method
from shepherd.types import (
    ClientFailure,
    ClientId,
    ClientUpdate,
    GlobalModel,
    Objective,
    ServerState,
    Tensors,
    Tokens,
    TrainTask,
    Work,
)
from shepherd.updates.gate import admit, update_norm


class Engine(Protocol):
    """Who runs the clients. The algorithm does not know whether they are in this process or in another country."""

    def train(
        self, task: TrainTask, private: Mapping[ClientId, Tensors], observe: Callable[[StepReport], None]
    ) -> Iterable[ClientUpdate | ClientFailure]:
        """One update or failure for every client of the task, sorted by client.

        `private` is what simulated clients kept from earlier rounds; real sites keep theirs and are not told.
        """
        ...

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of rows that the server holds, under a model or the bare base."""
        ...


@dataclass(frozen=True)
class Plan:
    """What stays the same over the rounds of a run.

    `work(client, round, first_row)` is a client's share, `rank(client)` the rank of its adapter.
    """

    seed: int
    clients: tuple[ClientId, ...]
    cohort_size: int
    select: Selection
    method: Method
    weights: str
    min_updates: int
    work: Callable[[ClientId, int, int], Work]
    rank: Callable[[ClientId], int]
    objective: Objective


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Sizes in bytes, times in seconds, losses in nats per target token.

    examples counts the rows that a client trained on. learning_rate holds the rates of the first and the last local
    step of the client with the most steps. diagnostics: see server/diagnostics.py.
    """

    round: int
    cohort: tuple[ClientId, ...]
    missing: tuple[ClientId, ...]
    rejected: tuple[Mapping[str, str], ...]
    weights: Mapping[ClientId, float]
    train_loss: Mapping[ClientId, float]
    steps: Mapping[ClientId, int]
    examples: Mapping[ClientId, int]
    tokens: Mapping[ClientId, int]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    learning_rate: tuple[float, float]
    deviation: float
    update_norm: Mapping[ClientId, float]
    diagnostics: Mapping[str, Any]


def run_round(
    state: ServerState, plan: Plan, engine: Engine, observe: Callable[[StepReport], None] = lambda report: None
) -> tuple[ServerState, RoundRecord]:
    """Run the round after `state`. Raises ClientError when fewer than `min_updates` clients gave a usable update."""
    number = state.round + 1
    cohort = plan.select(plan.clients, plan.cohort_size, stream(plan.seed, "select", number))
    work = {client: plan.work(client, number, state.cursors.get(client, 0)) for client in cohort}
    views = {c: plan.method.view(state.model, c, plan.rank(c), number, plan.seed) for c in cohort}
    task = TrainTask(number, views, plan.seed, work, state.model.remainder, plan.objective)
    private = {client: state.clients[client] for client in cohort if client in state.clients}

    begin = time.perf_counter()
    answers = _first_of_each([admit(answer, task) for answer in engine.train(task, private, observe)])
    trained = time.perf_counter()
    # Float sums depend on order, arrival does not repeat: sort by client.
    updates = sorted((a for a in answers if isinstance(a, ClientUpdate)), key=lambda u: u.client)
    failures = sorted((a for a in answers if isinstance(a, ClientFailure)), key=lambda f: f.client)
    if len(updates) < plan.min_updates:
        raise ClientError(_too_few(number, updates, failures, plan.min_updates), hint=_advice(failures))

    weights = update_weights(updates, plan.weights)
    by_client = {u.client: w for u, w in zip(updates, weights, strict=True)}
    model = plan.method.combine(state.model, views, updates, by_client)
    seen = diagnose(state.model, model, views, updates, by_client)
    aggregated = time.perf_counter()

    cursors = dict(state.cursors)
    for update in updates:
        cursors[update.client] = work[update.client].first_row + work[update.client].rows
    longest = max(work.values(), key=lambda w: w.steps).learning_rates
    answered = {a.client for a in answers}
    record = RoundRecord(
        round=number,
        cohort=cohort,
        missing=tuple(client for client in cohort if client not in answered),
        rejected=tuple({"client": f.client, "code": f.code, "detail": f.detail} for f in failures),
        weights=by_client,
        train_loss={u.client: u.metrics["loss"] for u in updates},
        steps={u.client: u.steps for u in updates},
        examples={u.client: work[u.client].rows for u in updates},
        tokens={u.client: u.num_tokens for u in updates},
        bytes_up=sum(u.nbytes for u in updates),
        bytes_down=sum(view.adapter.nbytes for view in views.values()),
        seconds={"train": trained - begin, "aggregate": aggregated - trained},
        learning_rate=(longest[0], longest[-1]),
        deviation=seen.deviation,
        update_norm={u.client: update_norm(u) for u in updates},
        diagnostics=asdict(seen),
    )
    clients = {**state.clients, **{u.client: u.private for u in updates if u.private}}
    return replace(state, round=number, model=model, cursors=cursors, clients=clients), record


def _first_of_each(answers: Iterable[ClientUpdate | ClientFailure]) -> list[ClientUpdate | ClientFailure]:
    """One answer of each client counts, the first; later ones are dropped, so that nobody counts twice."""
    first: dict[ClientId, ClientUpdate | ClientFailure] = {}
    for answer in answers:
        first.setdefault(answer.client, answer)
    return list(first.values())


def _too_few(number: int, updates: Sequence[ClientUpdate], failures: Sequence[ClientFailure], least: int) -> str:
    reasons = "\n".join(f"  {f.client}: {f.code}: {f.detail}" for f in failures)
    return f"round {number}: {len(updates)} usable updates, {least} needed\n{reasons}"


def _advice(failures: Sequence[ClientFailure]) -> str:
    if any(f.code == "non-finite" for f in failures):
        return 'lower training.learning_rate, or set model.dtype = "float32"'
    return ""
