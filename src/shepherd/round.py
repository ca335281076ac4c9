"""ONE ROUND of federated tuning, in order. Read this first.

select a cohort -> give each client its view of the model -> train locally -> gate -> combine -> next global model

Up to the gate the story is told in asking.py; the nouns are in plan.py and types.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace

from shepherd.asking import ask, remembered, shown, strikes_of
from shepherd.clients.progress import StepReport
from shepherd.plan import Engine, Plan, Policy
from shepherd.server.clusters import combine_clusters, group
from shepherd.server.diagnostics import diagnose
from shepherd.server.optimizer import control_without
from shepherd.server.traffic import added_ranks, round_bytes
from shepherd.store.records import RoundRecord, notes, troubles
from shepherd.types import ServerState
from shepherd.updates.tensors import cluster_part

__all__ = ["Engine", "Plan", "Policy", "RoundRecord", "notes", "run_round", "troubles"]


def run_round(
    state: ServerState, plan: Plan, engine: Engine, observe: Callable[[StepReport], None] = lambda report: None
) -> tuple[ServerState, RoundRecord]:
    """Run the round after `state`. Beside what each client keeps, its memory does not grow with their number
    (docs/decisions/0010).

    Raises ClientError when fewer than `min_updates` clients gave a usable update, unless the policy skips the round.
    """
    number = state.round + 1
    begin = time.perf_counter()
    with plan.spool() as spool:
        asked = ask(state, plan, engine, spool, observe)
        work, views, updates = asked.work, asked.views, asked.counted
        trained = time.perf_counter()

        model, clusters, numbers, weights, seen = state.model, state.clusters, {}, {}, None
        if updates:
            weights = asked.weights(plan)
            steps = {u.client: plan.effective_steps(work[u.client], u.steps, number) for u in updates}
            model = plan.method.combine(state.model, views, updates, weights, steps)
            if clusters:
                numbers = {u.client: u.cluster for u in updates}
                own = [replace(u, delta=cluster_part(u.delta)) for u in updates]
                clusters = combine_clusters(plan.method, clusters, asked.clusters, own, numbers, weights, steps)
            elif 0 < plan.clusters <= len(updates):
                numbers = group(state.model, views, updates, plan.clusters)
                begun = {c: (view,) * plan.clusters for c, view in views.items()}
                same = [state.model] * plan.clusters
                clusters = combine_clusters(plan.method, same, begun, updates, numbers, weights, steps)
            total = sum(weights.values())  # One, unless the selection has a fixed denominator.
            shares = {c: w / total for c, w in weights.items()}
            pieces = plan.method.pieces
            seen = diagnose(state.model, model, views, updates, shares, pieces.payload, pieces.weigh)
        aggregated = time.perf_counter()

    strikes, quarantined = strikes_of(state, asked, plan.policy.quarantine_after)
    for client in quarantined if plan.objective.scaffold else ():
        share, own = plan.method.population.get(client, 0.0), state.clients.get(client, {})
        model = replace(model, memory=control_without(model.memory, share, own))
    longest = max((w.learning_rates for w in work.values()), key=len, default=(0.0,))
    asked_ranks, counted_ranks = ([plan.rank(c) for c in some] for some in (views, (u.client for u in updates)))
    _, down = round_bytes(
        plan.method, state.model.adapter, number, asked_ranks, counted_ranks, plan.objective.scaffold,
        len(state.clusters), added_ranks(state.model.remainder, model.remainder),
    )  # fmt: skip
    record = RoundRecord(
        round=number,
        cohort=tuple(sorted(work)),
        missing=asked.missing,
        rejected=tuple(map(shown, asked.failures)),
        weights=weights,
        train_loss={u.client: u.metrics["loss"] for u in updates},
        steps={u.client: u.steps for u in updates},
        examples={u.client: work[u.client].rows for u in updates},
        tokens={u.client: u.num_tokens for u in updates},
        bytes_up=asked.bytes_up,
        bytes_down=down,
        seconds={"train": trained - begin, "aggregate": aggregated - trained},
        learning_rate=(longest[0], longest[-1]),
        deviation=seen.deviation if seen else 0.0,
        update_norm={u.client: asked.norms[u.client] for u in updates},
        diagnostics=asdict(seen) if seen else {},
        late=tuple(sorted(asked.late)),
        ignored=tuple(map(shown, asked.ignored)),
        quarantined=quarantined,
        skipped=asked.skipped,
        clusters=numbers,
        unused_examples=asked.unused,
    )
    return replace(
        state,
        round=number,
        model=model,
        cursors={**state.cursors, **{u.client: work[u.client].first_row + work[u.client].rows for u in updates}},
        clients={**state.clients, **{u.client: u.private for u in updates if u.private}},
        strikes=strikes,
        quarantined=tuple(sorted({*state.quarantined, *quarantined})),
        history=remembered(state, asked, number),
        clusters=clusters,
    ), record
