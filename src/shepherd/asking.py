"""Who is asked in a round, and which of the answers count: draws, arrival, failures, strikes, memory.

asked = ask(state, plan, engine, observe)       # after it: asked.counted, .late, .failures, .weights(plan), …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shepherd.clients.pool import Draw, Pool
from shepherd.clients.progress import Progress, StepReport
from shepherd.errors import ClientError
from shepherd.plan import Engine, Plan
from shepherd.rng import stream
from shepherd.server.optimizer import control
from shepherd.server.weights import capped, update_weights
from shepherd.types import (
    ClientFailure,
    ClientHistory,
    ClientId,
    ClientModel,
    ClientUpdate,
    ServerState,
    TrainTask,
    Work,
)
from shepherd.updates.rules import update_norm
from shepherd.updates.spool import Spool


@dataclass
class Asked:
    """All who were asked in a round and what came back. `usable` holds good answers, those that were `late` too.

    norms, bytes_up: of the usable ones. bad: answers that the gate refused, and failures. draws: what the selection
    said, one after another. times: how often each client was drawn. steps: how many each told of. clusters: each
    client's views of the clusters' models. skipped: too few answered, or nobody was drawn, so nothing counts.
    """

    work: dict[ClientId, Work] = field(default_factory=dict)
    views: dict[ClientId, ClientModel] = field(default_factory=dict)
    clusters: dict[ClientId, tuple[ClientModel, ...]] = field(default_factory=dict)
    usable: dict[ClientId, ClientUpdate] = field(default_factory=dict)
    bad: list[ClientFailure] = field(default_factory=list)
    norms: dict[ClientId, float] = field(default_factory=dict)
    bytes_up: int = 0
    late: set[ClientId] = field(default_factory=set)
    seconds: dict[ClientId, float] = field(default_factory=dict)
    draws: list[Draw] = field(default_factory=list)
    times: dict[ClientId, int] = field(default_factory=dict)
    steps: dict[ClientId, int] = field(default_factory=dict)
    skipped: bool = False

    @property
    def in_time(self) -> list[ClientUpdate]:
        """Usable answers that were not late. Float sums depend on order, arrival does not repeat: sorted by client."""
        return [self.usable[c] for c in sorted(self.usable) if c not in self.late]

    @property
    def counted(self) -> list[ClientUpdate]:
        """The updates that the next model is made of."""
        return [] if self.skipped else self.in_time

    @property
    def answered(self) -> int:
        """Draws that were answered in time: what min_updates counts."""
        return sum(self.times[update.client] for update in self.in_time)

    @property
    def failures(self) -> list[ClientFailure]:
        """Failures of clients without a usable answer, by client."""
        return sorted((f for f in self.bad if not self._beside(f)), key=lambda f: f.client)

    @property
    def ignored(self) -> list[ClientFailure]:
        """What clients sent beside the answer that counted, by client."""
        return sorted((f for f in self.bad if self._beside(f)), key=lambda f: f.client)

    def _beside(self, failure: ClientFailure) -> bool:
        return failure.client in self.usable or failure.client in self.late or failure.code == "duplicate"

    @property
    def missing(self) -> tuple[ClientId, ...]:
        """Those of whom nothing came."""
        heard = {*self.usable, *self.late, *(f.client for f in self.failures)}
        return tuple(c for c in sorted(self.work) if c not in heard)

    @property
    def unused(self) -> dict[ClientId, int]:
        """Rows that clients trained on whose update does not count: all of a usable answer, else those of the steps
        that the client told of."""
        lost = self.work.keys() - {update.client for update in self.counted}
        steps = {c: self.work[c].steps if c in self.usable else self.steps.get(c, 0) for c in lost}
        rows = {c: self.work[c].rows_of(min(steps[c], self.work[c].steps)) for c in sorted(lost)}
        return {client: count for client, count in rows.items() if count}

    def weights(self, plan: Plan) -> dict[ClientId, float]:
        """The weight of each counted update: the selection's where it gives some, else by federation.weights.

        They sum to one over the updates that count, but for those of a selection with a fixed denominator.
        """
        updates = self.counted
        if plan.select.fixed:
            given = {c: w for draw in self.draws for c, w in (draw.weights or {}).items()}
            return {u.client: given[u.client] for u in updates}
        weights = update_weights(updates, plan.weights)
        if plan.select.weighs:
            total = sum(self.times[u.client] for u in updates)
            weights = tuple(self.times[u.client] / total for u in updates)
        weights = capped(weights, plan.policy.max_weight)
        return {u.client: w for u, w in zip(updates, weights, strict=True)}


def ask(state: ServerState, plan: Plan, engine: Engine, spool: Spool, observe: Callable[[StepReport], None]) -> Asked:
    """Ask a cohort, with `wait` again and again, until enough have answered. `spool` keeps their updates.

    Raises ClientError when fewer than `min_updates` gave a usable answer, unless the policy skips the round or the
    selection drew nobody.
    """
    asked, policy = Asked(), plan.policy
    for _ in range(1 + (policy.retries if policy.on_too_few == "wait" else 0)):
        _draw_and_train(asked, state, plan, engine, spool, observe)
        if asked.answered >= plan.min_updates:
            return asked
    asked.skipped = True
    nobody_drawn = bool(asked.draws) and not asked.work
    if policy.on_too_few != "skip" and not nobody_drawn:
        raise ClientError(_too_few(asked, state, plan), hint=_advice(asked.failures))
    return asked


def _draw_and_train(
    asked: Asked,
    state: ServerState,
    plan: Plan,
    engine: Engine,
    spool: Spool,
    observe: Callable[[StepReport], None],
) -> None:
    """Draw as many clients as the cohort lacks, of those not asked yet; train them; let their answers through the gate.

    With over-selection more are drawn, and the first ones in order of arrival count.
    """
    number, policy = state.round + 1, plan.policy
    wanted = plan.cohort_size - asked.answered
    pool = pool_of([c for c in plan.clients if c not in asked.work and c not in state.quarantined], state, plan)
    size = min(len(pool.clients), policy.ask(wanted))
    if not size:
        return
    again = [len(asked.draws)] if asked.draws else []
    draw = plan.select.draw(pool, size, stream(plan.seed, "select", number, *again))
    asked.draws.append(draw)
    asked.times |= {client: draw.times(client) for client in draw.clients}
    work = {client: plan.work(client, number, state.cursors.get(client, 0)) for client in draw.clients}
    ranks = {client: plan.rank(client) for client in draw.clients}
    views, *beside = (plan.method.views(m, ranks, number, plan.seed) for m in (state.model, *state.clusters))
    seconds = {client: policy.clock(work[client], number) if policy.clock else 0.0 for client in draw.clients}
    clusters = {c: tuple(of[c] for of in beside) for c in draw.clients if beside}
    asked.work |= work
    asked.views |= views
    asked.clusters |= clusters
    asked.seconds |= seconds
    # Who is known to be late need not be simulated: its update would be thrown away.
    late = {client for client in draw.clients if policy.deadline and seconds[client] > policy.deadline}
    asked.late |= late
    observe({client: "late" if client in late else "waiting" for client in draw.clients})
    task = TrainTask(
        number,
        {client: view for client, view in views.items() if client not in late},
        plan.seed,
        {client: share for client, share in work.items() if client not in late},
        state.model.remainder,
        plan.objective,
        control(state.model.memory) if plan.objective.scaffold else {},
        {client: own for client, own in clusters.items() if client not in late},
    )
    private = {client: state.clients[client] for client in task.work if client in state.clients}

    def watch(report: StepReport) -> None:
        asked.steps.update((client, news.step) for client, news in report.items() if isinstance(news, Progress))
        observe(report)

    gate = plan.gate()

    def admitted(answer: Any) -> ClientUpdate | ClientFailure:
        passed = gate.admit(answer, task)
        refused = isinstance(passed, ClientFailure)
        if passed.client in task.work and not (refused and passed.code == "duplicate"):
            failed = "failed" if isinstance(answer, ClientFailure) else "rejected"
            observe({passed.client: failed if refused else "done"})
        if refused:
            return passed
        asked.bytes_up += passed.nbytes
        asked.norms[passed.client] = update_norm(passed)
        return spool.keep(passed)

    # Not a loop: its variable would hold on to an answer while the engine makes the next.
    answers = list(map(admitted, engine.train(task, private, watch))) if task.work else []
    asked.bad += [a for a in answers if isinstance(a, ClientFailure)]
    for update in sorted((a for a in answers if isinstance(a, ClientUpdate)), key=lambda u: seconds[u.client]):
        asked.usable[update.client] = update
        if policy.over_select and wanted <= 0:
            asked.late.add(update.client)
            observe({update.client: "late"})
        wanted -= asked.times[update.client]


def pool_of(clients: Sequence[ClientId], state: ServerState, plan: Plan) -> Pool:
    """What a selection may know of these clients before the round after `state`."""
    names = tuple(sorted(clients))
    history = {c: state.history[c] for c in names if c in state.history}
    parts = {"examples": plan.sizes, "uniform": dict.fromkeys(names, 1)}.get(plan.weights, {})
    total = sum(parts.get(c, 0) for c in names)
    return Pool(
        state.round + 1,
        names,
        {c: plan.sizes[c] for c in names if c in plan.sizes},
        {c: parts[c] / total for c in names if c in parts},
        {c: seen.round for c, seen in history.items()},
        {c: seen.loss for c, seen in history.items() if seen.loss is not None},
        {c: seen.seconds for c, seen in history.items() if seen.seconds is not None},
    )


def remembered(state: ServerState, asked: Asked, number: int) -> dict[ClientId, ClientHistory]:
    """The server's memory of clients after a round; what a client did not tell this time stays as it was."""
    history = dict(state.history)
    for client in sorted(asked.work):
        before = history.get(client, ClientHistory(number))
        loss, seconds = before.loss, before.seconds
        if client in asked.usable:
            loss = asked.usable[client].metrics.get("loss", loss)
        if client in asked.usable or client in asked.late:
            seconds = asked.seconds[client]
        history[client] = ClientHistory(number, loss, seconds)
    return history


def strikes_of(
    state: ServerState, asked: Asked, quarantine_after: int
) -> tuple[dict[ClientId, int], tuple[ClientId, ...]]:
    """Unusable rounds of each client since its last good one, and who has reached the limit in this round."""
    good = {*asked.usable, *asked.late}
    strikes = {client: count for client, count in state.strikes.items() if client not in good}
    for client in sorted({f.client for f in asked.failures} & asked.work.keys()):
        strikes[client] = strikes.get(client, 0) + 1
    limit = quarantine_after
    reached = tuple(c for c in sorted(strikes) if limit and strikes[c] >= limit and c not in state.quarantined)
    return strikes, reached


def shown(failure: ClientFailure) -> Mapping[str, str]:
    """A failure as a record shows it."""
    return {"client": failure.client, "code": failure.code, "detail": failure.detail}


def _too_few(asked: Asked, state: ServerState, plan: Plan) -> str:
    lines = [f"round {state.round + 1}: {asked.answered} usable updates, {plan.min_updates} needed"]
    lines += [f"  {f.client}: {f.code}: {f.detail}" for f in asked.failures]
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
