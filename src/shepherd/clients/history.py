"""Client histories between rounds: last participation, losses, durations and strikes.

Input: the histories before a round and its replies. Output: the histories after it, and the pool of the next selection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from shepherd.clients.pool import Pool
from shepherd.types import ClientHistory, ClientId, ClientUpdate


def pool_of(
    clients: Iterable[ClientId],
    round_number: int,
    history: Mapping[ClientId, ClientHistory],
    sizes: Mapping[ClientId, int],
    weights: str,
) -> Pool:
    """The pool of these clients for the selection of round `round_number` (from 1).

    sizes: training rows of each. weights: federation.weights; with "tokens", whose counts are unknown before training,
    the pool has no shares.
    """
    names = tuple(sorted(clients))
    known = {c: history[c] for c in names if c in history}
    parts = {"examples": sizes, "uniform": dict.fromkeys(names, 1)}.get(weights, {})
    total = sum(parts.get(c, 0) for c in names)
    return Pool(
        round_number,
        names,
        {c: sizes[c] for c in names if c in sizes},
        {c: parts[c] / total for c in names if c in parts},
        {c: seen.round for c, seen in known.items()},
        {c: seen.loss for c, seen in known.items() if seen.loss is not None},
        {c: seen.seconds for c, seen in known.items() if seen.seconds is not None},
    )


def remembered(
    history: Mapping[ClientId, ClientHistory],
    round_number: int,
    cohort: Iterable[ClientId],
    updates: Mapping[ClientId, ClientUpdate],
    seconds: Mapping[ClientId, float],
) -> dict[ClientId, ClientHistory]:
    """The histories after a round of this cohort; values that a client did not report are carried over.

    updates: the admitted ones. seconds: durations of the clients that replied, in time or late.
    """
    after = dict(history)
    for client in sorted(cohort):
        before = after.get(client, ClientHistory(round_number))
        loss = updates[client].metrics.get("loss", before.loss) if client in updates else before.loss
        after[client] = ClientHistory(round_number, loss, seconds.get(client, before.seconds))
    return after


def strikes_of(
    strikes: Mapping[ClientId, int], good: Collection[ClientId], failed: Collection[ClientId]
) -> dict[ClientId, int]:
    """The strikes of each client after a round: its consecutive replies that were rejected, or whose training `failed`.

    good: the clients that replied, whose strikes end. Of a lost client nothing is known, and its strikes stay as they
    were (docs/decisions/0014).
    """
    after = {client: count for client, count in strikes.items() if client not in good}
    for client in sorted(failed):
        after[client] = after.get(client, 0) + 1
    return after


def quarantined_by(strikes: Mapping[ClientId, int], limit: int, before: Collection[ClientId]) -> tuple[ClientId, ...]:
    """The clients that newly reach the limit, sorted; limit 0 disables quarantine. before: those already in it."""
    return tuple(c for c in sorted(strikes) if limit and strikes[c] >= limit and c not in before)
