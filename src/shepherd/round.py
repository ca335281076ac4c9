"""ONE ROUND of federated tuning, in order. Read this first.

    sample a cohort -> TrainTask -> engine.train -> gate -> aggregate -> next state, and the round's record

First the nouns: what stays the same over the rounds (Plan, Policy) and who runs the clients (Engine). Shapes and units
stand in types.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from shepherd.clients.history import pool_of, quarantined_by, remembered, strikes_of
from shepherd.clients.pool import Draw, Selection
from shepherd.clients.progress import Observe, Progress, StepReport, ignore
from shepherd.errors import ClientError
from shepherd.outcomes import STRIKES, outcome_of
from shepherd.rng import stream
from shepherd.server.clusters import combine_clusters, group
from shepherd.server.diagnostics import diagnose
from shepherd.server.method import Method
from shepherd.server.optimizer import control, control_without
from shepherd.server.traffic import added_ranks, round_bytes
from shepherd.server.weights import round_weights
from shepherd.store.records import RoundRecord, notes, troubles
from shepherd.types import (
    ClientFailure,
    ClientId,
    GlobalModel,
    Objective,
    ServerState,
    SiteFacts,
    Stat,
    Tensors,
    Tokens,
    TrainTask,
    Work,
)
from shepherd.updates.clipping import ClipNorm, clip_of, clip_specs, clipped, unclipped_norm, was_clipped
from shepherd.updates.composition import Transforms
from shepherd.updates.gate import Gate
from shepherd.updates.privacy.client_level import ClientLevel
from shepherd.updates.privacy.example_level import ExampleLevel
from shepherd.updates.replies import Admitted, Late, Outcome, Replies, Reply, failure_entry
from shepherd.updates.rules import update_norm
from shepherd.updates.spool import Spool
from shepherd.updates.tensors import cluster_part
from shepherd.updates.transforms import Contributions

if TYPE_CHECKING:  # evaluation loads torch, and a server that only aggregates does without
    from shepherd.evaluation.row_losses import RowLosses

__all__ = ["Engine", "Plan", "Policy", "RoundRecord", "notes", "run_round", "troubles"]

SERVER = "(server)"
"""In place of a client id, where the server itself starts from a client model."""


class Engine(Protocol):
    """Who runs the clients. The algorithm does not know whether they are in this process or in another country.

    An engine keeps the private state of its clients (control variates, local modules). Client c goes on from the state
    that it had at row `task.work[c].first_row` of its row order; that row moves on when an update of c counts, and only
    then. So what a client kept of an update that was lost, late or rejected has no effect, and a site that keeps its
    states by that row goes back to the right one by itself.
    """

    def describe(self) -> Mapping[ClientId, SiteFacts]:
        """What a plan may know of each client: how many rows it trains on, and their digest."""
        ...

    def restore(self, private: Mapping[ClientId, Tensors]) -> None:
        """Put back the private state of simulated clients as it was committed; before each round, so after a restart
        too. Sites have theirs, and none of it is here."""
        ...

    def train(self, task: TrainTask, deadline: float, enough: Callable[[], bool], observe: Observe) -> Iterable[Reply]:
        """A reply for every client of the task, as they come: an update, in memory or as it travelled, a failure, or
        that it is late.

        An engine in real time stops after `deadline` seconds (inf: never), or when `enough()` is true, which may change
        with each reply that was taken; all clients that it still waits for are late. Simulated clients arrive by the
        plan's virtual clock: their engine yields all, with a deadline of inf and never enough.

        Whatever a client raises must end here: an exception of `train` is the engine's, ends the run, and nothing of
        the round is committed.
        """
        ...

    def measure(self, model: GlobalModel | None, cohort: Iterable[ClientId]) -> Mapping[ClientId, Stat]:
        """Each client's loss on the rows that it holds, in nats per target token, under a model or the bare base."""
        ...

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of rows that the server holds, under a model or the bare base."""
        ...


@dataclass(frozen=True)
class Policy:
    """What becomes of a round when clients fail, are late, or are too few. See `[federation]` for the meanings.

    `clock(work, round)` gives the seconds until a client replies; without one, clients arrive in the order in which the
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
        """Clients to sample so that `wanted` reply: (1 + over_select) · wanted, rounded up."""
        return math.ceil(round((1 + self.over_select) * wanted, 9))

    @property
    def draws(self) -> int:
        """The most cohorts that are sampled in one round."""
        return 1 + (self.retries if self.on_too_few == "wait" else 0)


@dataclass(frozen=True)
class Plan:
    """What stays the same over the rounds of a run.

    `work(client, round, first_row)` is a client's share, `rank(client)` the rank of its adapter, `gate()` a gate for
    one round, `spool()` the place of its updates, `effective_steps(work, steps, round)` FedNova's divisor for a client
    that took `steps` of its steps. `sizes` counts the rows that each client holds, `probed` those on which it trains
    before each round for a choice of slots. clusters: how many are trained beside the global model. clip: the L2 norm
    to which updates are clipped, 0 for none. transforms: of the updates, on clients and on the server, after clipping.
    privacy: what draws the cohorts, sets the clip and adds noise to the sum, or None.
    examples: privacy of rows, by DP-SGD in local training, or None.
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
    clip: ClipNorm = 0.0
    transforms: Transforms = field(default_factory=Transforms)
    privacy: ClientLevel | None = None
    examples: ExampleLevel | None = None
    policy: Policy = Policy()
    gate: Callable[..., Gate] = Gate
    spool: Callable[[], Spool] = Spool
    sizes: Mapping[ClientId, int] = field(default_factory=dict)
    probed: Mapping[ClientId, int] = field(default_factory=dict)
    clusters: int = 0
    effective_steps: Callable[[Work, int, int], float] = lambda work, steps, round_number: float(steps)

    def clip_norm(self, state: ServerState) -> float:
        """The L2 norm to which the updates of the round after `state` are clipped; 0: they are not."""
        if self.privacy is not None:
            return state.clip or self.privacy.clip
        return state.median_norm if self.clip == "median" else self.clip

    @property
    def reports_norms(self) -> bool:
        """Whether clients report the norm of their updates before clipping."""
        return self.clip == "median" or (self.privacy is not None and self.privacy.adaptive)

    @property
    def asked(self) -> int:
        """Clients sampled in a round, over-selection included."""
        return min(len(self.clients), self.policy.ask(self.cohort_size))


@dataclass(frozen=True)
class Aggregate:
    """The next model, and how it came about: weights and clusters (from 1) of the updates that counted, diagnostics.

    clip: that of the next round where the plan has privacy.
    """

    model: GlobalModel
    clusters: tuple[GlobalModel, ...]
    weights: Mapping[ClientId, float] = field(default_factory=dict)
    cluster_of: Mapping[ClientId, int] = field(default_factory=dict)
    deviation: float = 0.0
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    clip: float = 0.0


# The round


def run_round(
    state: ServerState, plan: Plan, engine: Engine, observe: Observe = ignore
) -> tuple[ServerState, RoundRecord]:
    """Run the round after `state`. Beside each client's private state, its memory does not grow with their number
    (docs/decisions/0010).

    Raises ClientError when fewer than `min_updates` clients gave a usable update, unless the policy skips the round.
    """
    begin = time.perf_counter()
    engine.restore(state.clients)
    with plan.spool() as spool:
        replies = gather_replies(state, plan, engine, spool, observe)
        trained = time.perf_counter()
        result = aggregate(state, plan, replies)
        aggregated = time.perf_counter()
    after = next_state(state, plan, replies, result)
    seconds = {"train": trained - begin, "aggregate": aggregated - trained}
    return after, record(state, after, plan, replies, result, seconds)


def gather_replies(state: ServerState, plan: Plan, engine: Engine, spool: Spool, observe: Observe) -> Replies:
    """Sample a cohort and train it, with `wait` further ones, until enough have replied. `spool` keeps their updates.

    Raises ClientError when fewer than `min_updates` gave a usable update, unless the policy skips the round or the
    selection drew nobody.
    """
    replies = Replies()
    for _ in range(plan.policy.draws):
        wanted = plan.cohort_size - replies.usable
        cohort = sample_cohort(state, plan, replies, wanted)
        if cohort is not None:
            task = task_of(state, plan, cohort)
            replies = replies.joined(train_cohort(cohort, task, wanted, plan, engine, spool, observe))
        if replies.usable >= plan.min_updates or plan.privacy is not None:  # which releases noise in every round
            return replies
    nobody_drawn = replies.draws and not replies.work
    if plan.policy.on_too_few != "skip" and not nobody_drawn:
        raise ClientError(_too_few(replies, state, plan), hint=_advice(replies.failures))
    return replace(replies, skipped=True)


def sample_cohort(state: ServerState, plan: Plan, so_far: Replies, wanted: int) -> Replies | None:
    """Sample a cohort, with the models that its clients start from. None: nobody is left."""
    cohort = draw_cohort(state, plan, so_far, wanted)
    if cohort is None:
        return None
    ranks = {client: plan.rank(client) for client in cohort.work}
    number = state.round + 1
    views, *clusters = (plan.method.views(m, ranks, number, plan.seed) for m in (state.model, *state.clusters))
    of_clusters = {c: tuple(of[c] for of in clusters) for c in cohort.work if clusters}
    return replace(cohort, views=views, cluster_views=of_clusters)


def draw_cohort(state: ServerState, plan: Plan, so_far: Replies, wanted: int) -> Replies | None:
    """Draw clients that are neither in quarantine nor in the round already, more than wanted with over-selection.

    The result has neither models nor replies yet; `late` are those whose virtual seconds exceed the deadline. None:
    nobody is left.
    """
    number, policy = state.round + 1, plan.policy
    if plan.privacy is not None:
        return _cohort_of(state, plan, _secret_draw(plan.privacy, number))
    free = [c for c in plan.clients if c not in so_far.work and c not in state.quarantined]
    size = min(len(free), policy.ask(wanted))
    if not size:
        return None
    pool = pool_of(free, number, state.history, plan.sizes, plan.weights)
    again = [so_far.draws] if so_far.draws else []
    return _cohort_of(state, plan, plan.select.draw(pool, size, stream(plan.seed, "select", number, *again)))


def _secret_draw(privacy: ClientLevel, round_number: int) -> Draw:
    """A draw from all clients of the plan, whether or not they failed before, with weights that depend on nobody."""
    drawn = privacy.draw(round_number)
    return Draw(drawn, dict.fromkeys(drawn, privacy.weight), len(drawn), fixed=True)


def _cohort_of(state: ServerState, plan: Plan, draw: Draw) -> Replies:
    """The cohort of a draw, with its work."""
    number, policy = state.round + 1, plan.policy
    work = {client: plan.work(client, number, state.cursors.get(client, 0)) for client in draw.clients}
    seconds = {client: policy.clock(work[client], number) if policy.clock else 0.0 for client in draw.clients}
    return Replies(
        work=work,
        times={client: draw.times(client) for client in draw.clients},
        seconds=seconds,
        draws=1,
        shares=draw.weights or {},
        late=frozenset(c for c in draw.clients if policy.deadline and seconds[c] > policy.deadline),
    )


def task_of(state: ServerState, plan: Plan, cohort: Replies) -> TrainTask:
    """The round's work for a cohort. Who is known to be late is not simulated: its update would be thrown away."""
    sent = [client for client in cohort.work if client not in cohort.late]
    whole = TrainTask(
        state.round + 1,
        cohort.views,
        plan.seed,
        cohort.work,
        state.model.remainder,
        plan.objective,
        control(state.model.memory) if plan.objective.scaffold else {},
        cohort.cluster_views,
        (*clip_specs(plan.clip_norm(state), plan.reports_norms), *plan.transforms.sent),
        plan.examples.task if plan.examples is not None else None,
    )
    return whole.part(sent)


def train_cohort(
    cohort: Replies, task: TrainTask, wanted: int, plan: Plan, engine: Engine, spool: Spool, observe: Observe
) -> Replies:
    """Train a cohort and let its updates through the gate: the cohort with its replies.

    With over-selection the first `wanted` draws in order of arrival count.
    """
    policy, gate = plan.policy, plan.gate()
    first = wanted if policy.over_select else None
    steps: dict[ClientId, int] = {}
    outcomes: list[Outcome] = []

    def enough() -> bool:
        arrived = sum(cohort.times[o.update.client] for o in outcomes if isinstance(o, Admitted))
        return policy.clock is None and first is not None and arrived >= first

    def watch(report: StepReport) -> None:
        steps.update((client, news.step) for client, news in report.items() if isinstance(news, Progress))
        observe(report)

    observe({client: "late" if client in cohort.late else "waiting" for client in cohort.work})
    deadline = policy.deadline if policy.deadline and policy.clock is None else math.inf
    for reply in engine.train(task, deadline, enough, watch) if task.work else ():
        outcomes.append(admit(reply, task, gate, spool, observe))
        del reply  # an update need not stay in memory while the engine makes the next
    received = cohort.received(outcomes, steps, first)
    for client in (c for c in received.admitted if c in received.late):
        observe({client: "late"})
    return received


def admit(reply: Reply, task: TrainTask, gate: Gate, spool: Spool, observe: Observe) -> Outcome:
    """Check a reply, clip its update where the client should have, and spool it.

    The first usable reply of a client counts.
    """
    if isinstance(reply, Late):
        observe({reply.client: "late"})
        return reply
    passed = gate.admit(reply, task)
    if not isinstance(passed, ClientFailure):
        observe({passed.client: "done"})
        kept, norm = clipped(passed, clip_of(task)), update_norm(passed)
        after = norm if kept is passed else update_norm(kept)
        return Admitted(spool.keep(kept), passed.nbytes, after, unclipped_norm(passed, norm, gate.limits.norm))
    if passed.client in task.work and passed.code != "duplicate":
        observe({passed.client: outcome_of(passed.code, passed.detail)})
    return passed


def aggregate(state: ServerState, plan: Plan, replies: Replies) -> Aggregate:
    """The next model from the updates that count, and those of the clusters; the model as it was where none counts.

    The server halves of transforms may add pseudo-updates to what is merged, also where no update counts, and so does
    the noise of privacy; what is released of a private round is its model, so there are no diagnostics.
    """
    updates, views, method, number = replies.counted, replies.views, plan.method, state.round + 1
    weights = round_weights(
        updates,
        plan.weights,
        plan.policy.max_weight,
        times=replies.times if plan.select.weighs else None,
        shares=replies.shares if plan.select.fixed else None,
    )
    steps = {u.client: plan.effective_steps(replies.work[u.client], u.steps, number) for u in updates}
    start = partial(method.view, state.model, SERVER, state.model.adapter.r, number, plan.seed)
    given = Contributions(number, tuple(updates), views, weights, steps)
    merged, clip = plan.transforms.on_server(given, start, plan.seed), 0.0
    if plan.privacy is not None:
        unclipped = [replies.unclipped[u.client] for u in updates]
        merged, clip = plan.privacy.release(merged, start(), plan.clip_norm(state), unclipped)
    if not merged.updates:
        return Aggregate(state.model, state.clusters, clip=clip)
    model = method.combine(state.model, merged.views, merged.updates, merged.weights, merged.steps)
    if not updates or plan.privacy is not None:
        return Aggregate(model, state.clusters, weights, clip=clip)
    clusters, cluster_of = _aggregate_clusters(state, plan, replies, weights, steps)
    total = sum(weights.values())  # One, unless the selection has a fixed denominator.
    shares = {c: w / total for c, w in weights.items()}
    seen = diagnose(state.model, model, views, updates, shares, method.pieces.payload, method.pieces.weigh)
    return Aggregate(model, clusters, weights, cluster_of, seen.deviation, asdict(seen))


def _aggregate_clusters(
    state: ServerState,
    plan: Plan,
    replies: Replies,
    weights: Mapping[ClientId, float],
    steps: Mapping[ClientId, float],
) -> tuple[tuple[GlobalModel, ...], Mapping[ClientId, int]]:
    """(the next model of each cluster, the cluster of each client). They start when a round has an update for each."""
    updates, method = replies.counted, plan.method
    if state.clusters:
        cluster_of = {u.client: u.cluster for u in updates}
        parts = [replace(u, delta=cluster_part(u.delta)) for u in updates]
        views, before = replies.cluster_views, state.clusters
        return combine_clusters(method, before, views, parts, cluster_of, weights, steps), cluster_of
    if not 0 < plan.clusters <= len(updates):
        return state.clusters, {}
    cluster_of = group(state.model, replies.views, updates, plan.clusters)
    views = {c: (view,) * plan.clusters for c, view in replies.views.items()}
    before = (state.model,) * plan.clusters
    return combine_clusters(method, before, views, updates, cluster_of, weights, steps), cluster_of


def next_state(state: ServerState, plan: Plan, replies: Replies, result: Aggregate) -> ServerState:
    """The state after a round. Only counted updates move their clients on, in rows and in private state."""
    number, updates, work = state.round + 1, replies.counted, replies.work
    against = {f.client for f in replies.failures if outcome_of(f.code, f.detail) in STRIKES}
    strikes = strikes_of(state.strikes, replies.replied, against & work.keys())
    reached = quarantined_by(strikes, plan.policy.quarantine_after, state.quarantined)
    model = result.model
    for client in reached if plan.objective.scaffold else ():
        share, private = plan.method.population.get(client, 0.0), state.clients.get(client, {})
        model = replace(model, memory=control_without(model.memory, share, private))
    replied = {client: replies.seconds[client] for client in replies.replied}
    return replace(
        state,
        round=number,
        model=model,
        cursors={**state.cursors, **{u.client: work[u.client].first_row + work[u.client].rows for u in updates}},
        clients={**state.clients, **{u.client: u.private for u in updates if u.private}},
        strikes=strikes,
        quarantined=tuple(sorted({*state.quarantined, *reached})),
        history=remembered(state.history, number, work, replies.admitted, replied),
        clusters=result.clusters,
        median_norm=median(replies.unclipped[u.client] for u in updates)
        if plan.clip == "median" and updates
        else state.median_norm,
        clip=result.clip if plan.privacy is not None and plan.privacy.adaptive else 0.0,
    )


def record(
    state: ServerState,
    after: ServerState,
    plan: Plan,
    replies: Replies,
    result: Aggregate,
    seconds: Mapping[str, float],
) -> RoundRecord:
    """The round between two states as one line of rounds.jsonl."""
    updates, work = replies.counted, replies.work
    limit = plan.clip_norm(state)
    longest = max((w.learning_rates for w in work.values()), key=len, default=(0.0,))
    # Of a private round the planned bytes go down, not those of its secret cohort.
    sampled = plan.clients[: plan.cohort_size] if plan.privacy is not None else tuple(work)
    sampled_ranks, counted_ranks = ([plan.rank(c) for c in some] for some in (sampled, (u.client for u in updates)))
    _, bytes_down = round_bytes(
        plan.method, state.model.adapter, after.round, sampled_ranks, counted_ranks, plan.objective.scaffold,
        len(state.clusters), added_ranks(state.model.remainder, after.model.remainder),
    )  # fmt: skip
    return RoundRecord(
        round=after.round,
        cohort=tuple(sorted(work)),
        missing=replies.missing,
        rejected=tuple(map(failure_entry, replies.failures)),
        weights=result.weights,
        train_loss={u.client: u.metrics["loss"] for u in updates if "loss" in u.metrics},
        steps={u.client: u.steps for u in updates},
        examples={u.client: work[u.client].rows for u in updates},
        tokens={} if plan.examples is not None else {u.client: u.num_tokens for u in updates},
        bytes_up=replies.bytes_up,
        bytes_down=bytes_down,
        seconds=seconds,
        learning_rate=(longest[0], longest[-1]),
        deviation=result.deviation,
        update_norm={u.client: replies.norms[u.client] for u in updates},
        diagnostics=result.diagnostics,
        late=tuple(sorted(replies.late)),
        ignored=tuple(map(failure_entry, replies.ignored)),
        quarantined=tuple(c for c in after.quarantined if c not in state.quarantined),
        skipped=replies.skipped and result.model is state.model,  # a transform may move it without any update
        clusters=result.cluster_of,
        unused_examples=replies.unused,
        clipped=sum(was_clipped(replies.unclipped[u.client], limit) for u in updates) if plan.clip else None,
        clip_norm=limit if plan.clip or plan.privacy is not None else None,
    )


# A round that too few clients completed


def _too_few(replies: Replies, state: ServerState, plan: Plan) -> str:
    lines = [f"round {state.round + 1}: {replies.usable} usable updates, {plan.min_updates} needed"]
    lines += [f"  {f.client}: {f.code}: {f.detail}" for f in replies.failures]
    lines += [f"  {client}: late: the deadline is {plan.policy.deadline:g} s" for client in sorted(replies.late)]
    lines += [f"  {client}: quarantined" for client in state.quarantined]
    return "\n".join(lines)


def _advice(failures: Sequence[ClientFailure]) -> str:
    codes = {f.code.partition(":")[0] for f in failures}
    finite = 'lower training.learning_rate, or set model.dtype = "float32"'
    known = {
        "diverged": finite,
        "non-finite": finite,
        "out-of-memory": "lower training.clients_at_once or training.tokens_per_pass",
        "error": "the text of a client's error stays with the client: --debug shows it",
    }
    return "; ".join(dict.fromkeys(advice for code, advice in known.items() if code in codes)) or (
        'set federation.on_too_few to "skip" or "wait" to go on without them' if codes else ""
    )
