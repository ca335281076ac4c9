"""The server of IFCA (Ghosh et al., 2006.04088): M models, each aggregated from the clients that chose it.

Each is aggregated by the run's method, so a single cluster equals the global model.

The initialisation differs from IFCA, which assumes M initial models near the optima: adapters with B = 0 all coincide,
and random ones near them do not separate clients. In the first round clients train the global adapter alone; their
updates are grouped, and each cluster starts from the mean of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shepherd.errors import UsageError
from shepherd.server.diagnostics import affordable, change, gram_of
from shepherd.server.method import Method
from shepherd.server.uploads import Uploads
from shepherd.types import ClientId, ClientModel, ClientUpdate, GlobalModel


def group(
    model: GlobalModel, views: Mapping[ClientId, ClientModel], updates: Sequence[ClientUpdate], count: int
) -> dict[ClientId, int]:
    """The group (1 … count) of each client, by the cosines between the changes of their increments.

    Medoids are chosen greedily (BUILD of PAM, Kaufman and Rousseeuw, 1990): first the client with the least sum of
    distances, then the one that reduces the distances to the nearest medoid most. Needs at least `count` clients.
    """
    uploads = Uploads(model, views, updates)
    clients = [update.client for update in uploads.updates]
    gram = np.zeros((len(clients), len(clients)))
    for module in affordable(model, len(clients), uploads.modules):
        start = uploads.start(module)
        gram += gram_of([change(start, local) for local in uploads.each(module)])
    norms = np.sqrt(np.diag(gram))
    apart = 1 - gram / np.where(norms > 0, np.outer(norms, norms), 1.0)
    numbers = medoids(apart, count)
    return {client: 1 + int(number) for client, number in zip(clients, numbers, strict=True)}


def medoids(apart: np.ndarray, count: int) -> np.ndarray:
    """The group int64[K] (from 0) of each client, from distances float64[K, K]; no group is empty."""
    found: list[int] = []
    nearest = np.full(len(apart), np.inf)
    for _ in range(count):
        cost = np.minimum(nearest[:, None], apart).sum(axis=0)
        cost[found] = np.inf
        found.append(int(np.argmin(cost)))
        nearest = np.minimum(nearest, apart[:, found[-1]])
    numbers = np.argmin(apart[:, found], axis=1)
    numbers[found] = np.arange(count)  # even where two medoids coincide
    return numbers


def combine_clusters(
    method: Method,
    clusters: Sequence[GlobalModel],
    views: Mapping[ClientId, Sequence[ClientModel]],
    updates: Sequence[ClientUpdate],
    numbers: Mapping[ClientId, int],
    weights: Mapping[ClientId, float],
    effective_steps: Mapping[ClientId, float] | None = None,
) -> tuple[GlobalModel, ...]:
    """The next model of each cluster, aggregated over its clients; a cluster without clients is unchanged.

    views: the client models of all clusters, by client. updates: of the adapter of the client's cluster. The weights
    within a cluster are scaled to their sum over the round. Raises the errors of `Method.combine`.
    """
    everyone = sorted(updates, key=lambda update: update.client)
    total = sum(weights[update.client] for update in everyone)
    models = []
    for index, model in enumerate(clusters):
        own = [update for update in everyone if numbers[update.client] == index + 1]
        part = sum(weights[update.client] for update in own)
        if part > 0:
            shares = {update.client: weights[update.client] * (total / part) for update in own}
            model = method.combine(model, {u.client: views[u.client][index] for u in own}, own, shares, effective_steps)
        models.append(model)
    return tuple(models)


def check_clusters(method: Method, scaffold: bool) -> None:
    """Raise UsageError, with a compatible choice, for a method that does not support clusters."""
    p = method.pieces
    reasons = {
        "its adapter is reset in each round, so no cluster would keep one": p.split.resets or p.view.name == "fresh",
        "what does not fit into its adapter lies beside the base, which all clusters share": p.remainder.keeps
        or p.start.name == "principal",
        "its clients train a core, and clusters choose between adapters": p.start.heads > 0,
        "its clients keep local parts already": p.personal,
        "its clients choose their slots for the global adapter alone": p.view.probe is not None,
    }
    found = [f'federation.method = "{method.name}" do not fit: {reason}' for reason, holds in reasons.items() if holds]
    if scaffold:
        found.append(
            "objective.scaffold = true do not fit: control variates belong to one model, and clients change clusters"
        )
    if found:
        raise UsageError(
            f'personalization.name = "ifca" and {found[0]}',
            hint='use federation.method = "fedit", "ffa_lora", "rolora" or "flexlora" and objective.scaffold = false, '
            'or personalization.name = "finetune"',
        )
