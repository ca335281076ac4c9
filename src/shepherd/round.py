"""ONE ROUND of federated tuning, in order. Read this first.

select a cohort -> give each client its view of the model -> train locally -> gate -> combine -> next global model
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from shepherd.clients.selection import Selection
from shepherd.clients.training import StepReport
from shepherd.errors import ClientError
from shepherd.evaluation.losses import RowLosses
from shepherd.rng import stream
from shepherd.server.aggregation import update_weights
from shepherd.server.diagnostics import diagnose
from shepherd.server.method import Method
from shepherd.server.optimizer import control
from shepherd.server.traffic import bytes_down
from shepherd.server.weights import capped
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
    View,
    Work,
)
from shepherd.updates.gate import Gate, update_norm
from shepherd.updates.wire import Sealed


class Engine(Protocol):
    """Who runs the clients. The algorithm does not know whether they are in this process or in another country."""

    def train(
        self, task: TrainTask, private: Mapping[ClientId, Tensors], observe: Callable[[StepReport], None]
    ) -> Iterable[ClientUpdate | ClientFailure | Sealed]:
        """An update, as it is or as it travelled, or a failure for every client of the task.

        What a client raises must end here: an exception of `train` is one of the engine, and ends the run. `private`
        is what simulated clients kept from earlier rounds; real sites keep theirs and are not told.
        """
        ...

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of rows that the server holds, under a model or the bare base."""
        ...


@dataclass(frozen=True)
class Policy:
    """What becomes of a round when clients fail, are late, or are too few. See `[federation]` for the meanings.

    `clock(work, round)` gives the seconds until a client answers; without one, clients arrive in the order in which the
    engine yields them, and the engine keeps the deadline.
    """

    on_too_few: str = "stop"
    retries: int = 3
    over_select: float = 0.0
    deadline: float = 0.0
    quarantine_after: int = 0
    max_weight: float = 1.0
    clock: Callable[[Work, int], float] | None = None

    def ask(self, wanted: int) -> int:
        """How many clients to ask so that `wanted` answer: (1 + over_select) · wanted, rounded up."""
        return math.ceil(round((1 + self.over_select) * wanted, 9))


@dataclass(frozen=True)
class Plan:
    """What stays the same over the rounds of a run.

    `work(client, round, first_row)` is a client's share, `rank(client)` the rank of its adapter, `gate()` a gate for
    one round.
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
    policy: Policy = Policy()
    gate: Callable[[], Gate] = Gate

    @property
    def asked(self) -> int:
        """Clients that are asked in a round, over-selection included."""
        return min(len(self.clients), self.policy.ask(self.cohort_size))


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Sizes in bytes, times in seconds, losses in nats per target token.

    cohort: all who were asked, in one draw or more. rejected: unusable answers, with client, code and detail. missing:
    those who gave none. late: those whose answer came after the deadline, or after enough others. ignored: what a
    client sent beside the answer that counted. quarantined: who is asked no more from now on. skipped: too few
    answered, so the model is that of the round before. examples counts the rows that a client trained on.
    learning_rate holds the rates of the first and the last local step of the client with the most steps. diagnostics:
    see server/diagnostics.py; empty for a skipped round.
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
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    late: tuple[ClientId, ...] = ()
    ignored: tuple[Mapping[str, str], ...] = ()
    quarantined: tuple[ClientId, ...] = ()
    skipped: bool = False


def troubles(record: RoundRecord) -> dict[str, Any]:
    """What in a round did not go as it should, by the record's own names; nothing of it is empty or false."""
    names = ("rejected", "missing", "late", "ignored", "quarantined", "skipped")
    return {name: getattr(record, name) for name in names if getattr(record, name)}


def notes(record: RoundRecord) -> list[str]:
    """What a person should hear of a round beside its line: who is asked no more, and that it was skipped."""
    codes = {entry["client"]: entry["code"] for entry in record.rejected}
    lines = [f"{c} is quarantined, it is asked no more: {codes[c]} in round {record.round}" for c in record.quarantined]
    if record.skipped:
        lines.append(f"round {record.round} is skipped, too few clients gave a usable update: the model stays as it is")
    return lines


def run_round(
    state: ServerState, plan: Plan, engine: Engine, observe: Callable[[StepReport], None] = lambda report: None
) -> tuple[ServerState, RoundRecord]:
    """Run the round after `state`.

    Raises ClientError when fewer than `min_updates` clients gave a usable update, unless the policy skips the round.
    """
    number, policy = state.round + 1, plan.policy
    begin = time.perf_counter()
    asked = _Asked()
    for draw in range(1 + (policy.retries if policy.on_too_few == "wait" else 0)):
        _ask(asked, draw, state, plan, engine, observe)
        if len(asked.updates) >= plan.min_updates:
            break
    trained = time.perf_counter()
    # Float sums depend on order, arrival does not repeat: sort by client.
    updates = [asked.updates[client] for client in sorted(asked.updates)]
    failures, ignored = _sorted_failures(asked)
    skipped = len(updates) < plan.min_updates
    if skipped and policy.on_too_few != "skip":
        raise ClientError(_too_few(number, updates, failures, asked, state, plan), hint=_advice(failures))
    if skipped:
        updates = []

    work, views = asked.work, asked.views
    by_client, model, seen = {}, state.model, None
    if not skipped:
        weights = capped(update_weights(updates, plan.weights), policy.max_weight)
        by_client = {u.client: w for u, w in zip(updates, weights, strict=True)}
        model = plan.method.combine(state.model, views, updates, by_client)
        seen = diagnose(state.model, model, views, updates, by_client)
    aggregated = time.perf_counter()

    strikes, quarantined = _strikes(state, asked, failures, plan)
    cursors = dict(state.cursors)
    for update in updates:
        cursors[update.client] = work[update.client].first_row + work[update.client].rows
    longest = max((w.learning_rates for w in work.values()), key=len, default=(0.0,))
    failed = {f.client for f in failures}
    record = RoundRecord(
        round=number,
        cohort=tuple(sorted(work)),
        missing=tuple(c for c in sorted(work) if c not in asked.updates and c not in failed and c not in asked.late),
        rejected=tuple(map(_shown, failures)),
        weights=by_client,
        train_loss={u.client: u.metrics["loss"] for u in updates},
        steps={u.client: u.steps for u in updates},
        examples={u.client: work[u.client].rows for u in updates},
        tokens={u.client: u.num_tokens for u in updates},
        bytes_up=asked.bytes_up,
        bytes_down=bytes_down(plan.method, state.model.adapter, [plan.rank(c) for c in views], plan.objective.scaffold),
        seconds={"train": trained - begin, "aggregate": aggregated - trained},
        learning_rate=(longest[0], longest[-1]),
        deviation=seen.deviation if seen else 0.0,
        update_norm={u.client: update_norm(u) for u in updates},
        diagnostics=asdict(seen) if seen else {},
        late=tuple(sorted(asked.late)),
        ignored=tuple(map(_shown, ignored)),
        quarantined=quarantined,
        skipped=skipped,
    )
    clients = {**state.clients, **{u.client: u.private for u in updates if u.private}}
    return replace(
        state,
        round=number,
        model=model,
        cursors=cursors,
        clients=clients,
        strikes=strikes,
        quarantined=tuple(sorted({*state.quarantined, *quarantined})),
    ), record


@dataclass
class _Asked:
    """Who was asked in a round, and what came back. `updates` are those that count, `late` those that do not."""

    work: dict[ClientId, Work] = field(default_factory=dict)
    views: dict[ClientId, View] = field(default_factory=dict)
    updates: dict[ClientId, ClientUpdate] = field(default_factory=dict)
    failures: list[ClientFailure] = field(default_factory=list)
    late: set[ClientId] = field(default_factory=set)
    bytes_up: int = 0


def _ask(
    asked: _Asked, draw: int, state: ServerState, plan: Plan, engine: Engine, observe: Callable[[StepReport], None]
) -> None:
    """Draw as many clients as the cohort lacks, of those not asked yet; train them; let their answers through the gate.

    With over-selection more are drawn, and the first ones in order of arrival count.
    """
    number, policy = state.round + 1, plan.policy
    wanted = plan.cohort_size - len(asked.updates)
    eligible = [c for c in plan.clients if c not in asked.work and c not in state.quarantined]
    size = min(len(eligible), policy.ask(wanted))
    if not size:
        return
    drawn = plan.select(eligible, size, stream(plan.seed, "select", number, *([draw] if draw else [])))
    work = {client: plan.work(client, number, state.cursors.get(client, 0)) for client in drawn}
    views = {c: plan.method.view(state.model, c, plan.rank(c), number, plan.seed) for c in drawn}
    asked.work |= work
    asked.views |= views
    seconds = {client: policy.clock(work[client], number) if policy.clock else 0.0 for client in drawn}
    # Who is known to be late need not be simulated: its update would be thrown away.
    late = {client for client in drawn if policy.deadline and seconds[client] > policy.deadline}
    asked.late |= late
    task = TrainTask(
        number,
        {client: views[client] for client in drawn if client not in late},
        plan.seed,
        {client: work[client] for client in drawn if client not in late},
        state.model.remainder,
        plan.objective,
        control(state.model.memory) if plan.objective.scaffold else {},
    )
    private = {client: state.clients[client] for client in task.work if client in state.clients}
    gate = plan.gate()
    answers = [gate.admit(answer, task) for answer in engine.train(task, private, observe)] if task.work else []
    asked.failures += [a for a in answers if isinstance(a, ClientFailure)]
    usable = sorted((a for a in answers if isinstance(a, ClientUpdate)), key=lambda u: seconds[u.client])
    asked.bytes_up += sum(update.nbytes for update in usable)
    asked.updates |= {update.client: update for update in usable[:wanted]}
    asked.late |= {update.client for update in usable[wanted:]}


def _sorted_failures(asked: _Asked) -> tuple[list[ClientFailure], list[ClientFailure]]:
    """(failures of clients without a usable answer, what others sent beside theirs), each by client."""
    answered = {*asked.updates, *asked.late}
    failures = sorted(asked.failures, key=lambda f: f.client)
    beside = [f for f in failures if f.client in answered or f.code == "duplicate"]
    return [f for f in failures if f not in beside], beside


def _strikes(
    state: ServerState, asked: _Asked, failures: Sequence[ClientFailure], plan: Plan
) -> tuple[dict[ClientId, int], tuple[ClientId, ...]]:
    """Unusable rounds of each client since its last good one, and who has reached the limit in this round."""
    strikes = {client: count for client, count in state.strikes.items() if client not in {*asked.updates, *asked.late}}
    for client in sorted({f.client for f in failures} & asked.work.keys()):
        strikes[client] = strikes.get(client, 0) + 1
    limit = plan.policy.quarantine_after
    reached = tuple(c for c in sorted(strikes) if limit and strikes[c] >= limit and c not in state.quarantined)
    return strikes, reached


def _shown(failure: ClientFailure) -> dict[str, str]:
    return {"client": failure.client, "code": failure.code, "detail": failure.detail}


def _too_few(
    number: int,
    updates: Sequence[ClientUpdate],
    failures: Sequence[ClientFailure],
    asked: _Asked,
    state: ServerState,
    plan: Plan,
) -> str:
    lines = [f"round {number}: {len(updates)} usable updates, {plan.min_updates} needed"]
    lines += [f"  {f.client}: {f.code}: {f.detail}" for f in failures]
    lines += [f"  {client}: late: the deadline is {plan.policy.deadline:g} s" for client in sorted(asked.late)]
    lines += [f"  {client}: quarantined" for client in state.quarantined]
    return "\n".join(lines)


def _advice(failures: Sequence[ClientFailure]) -> str:
    codes = {f.code.partition(":")[0] for f in failures}
    known = {
        "non-finite": 'lower training.learning_rate, or set model.dtype = "float32"',
        "out-of-memory": "lower training.clients_at_once or training.tokens_per_pass",
        "error": "the text of a client's error stays with the client: --debug shows it",
    }
    return "; ".join(advice for code, advice in known.items() if code in codes) or (
        'set federation.on_too_few to "skip" or "wait" to go on without them' if codes else ""
    )
