"""Conflicts of transforms of updates with the method, the server optimizer and other settings of the aggregation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shepherd.server.method import Method
from shepherd.updates.composition import Transforms
from shepherd.updates.transforms import Transform


def conflicts(
    transforms: Transforms, method: Method, *, weights: str, scaffold: bool, clusters: int, mixed_ranks: bool
) -> Iterator[str]:
    """A sentence for every setting that conflicts with a transform: which, why, and an alternative.

    weights: federation.weights. clusters: how many are trained. mixed_ranks: some client has less than the global rank.
    """
    settings: Any = {"weights": weights, "scaffold": scaffold, "clusters": clusters, "mixed_ranks": mixed_ranks}
    for transform in transforms.built:
        for setting, why, instead in reasons(transform, method, **settings):
            what = transform.setting or f'transform "{transform.name}"'
            yield f"{what} and {setting} do not fit: {why}; {instead}"


def _on_weights(transform: Transform) -> bool:
    """Whether a transform needs something of the weights."""
    return bool(transform.needs & {"linear", "uniform weights"})


def reasons(
    transform: Transform, method: Method, *, weights: str, scaffold: bool, clusters: int, mixed_ranks: bool
) -> Iterator[tuple[str, str, str]]:
    """(setting, why, alternative) for every setting that conflicts with one transform; arguments as for `conflicts`."""
    yield from _weighing(transform, method, weights)
    yield from _sum(transform, method, mixed_ranks)
    beside = transform.on_server is not None or "linear" in transform.needs
    if scaffold and (beside or "no control variates" in transform.needs):
        why = "control variates are averaged beside the updates, where the transform does not reach"
        if not beside:
            why = "a client's control variate follows from its update before the transform"
        yield "objective.scaffold = true", why, "set objective.scaffold = false"
    if clusters:
        why = "clusters are formed and merged from the clients' updates alone"
        yield 'personalization.name = "ifca"', why, 'set personalization.name = "none"'


def _weighing(transform: Transform, method: Method, weights: str) -> Iterator[tuple[str, str, str]]:
    """Weights that are not uniform, or not those of the round."""
    if "uniform weights" in transform.needs and weights != "uniform":
        yield (
            f'federation.weights = "{weights}"',
            "it needs the same weight for every client",
            'set federation.weights = "uniform"',
        )
    if not _on_weights(transform) and transform.on_server is None:
        return
    p, optimizer = method.pieces, method.optimizer
    if p.weigh.own:
        why = "the weights follow from the updates, and not from the round"
        yield f'method.weigh = "{p.weigh.name}"', why, 'set method.weigh = "given"'
    if optimizer.by_steps:
        why = "the weight of an update depends on its client's local steps"
        yield f'server.optimizer = "{optimizer.name}"', why, 'use server.optimizer = "fedavg"'


def _sum(transform: Transform, method: Method, mixed_ranks: bool) -> Iterator[tuple[str, str, str]]:
    """A next model that is not a function of the weighted sum of the updates."""
    p = method.pieces
    if mixed_ranks and ("linear" in transform.needs or (p.weigh.by_slot and _on_weights(transform))):
        why = "the weight of a rank slot depends on the ranks of the clients that are sampled"
        yield "lora.ranks", why, "use one rank for all clients"
    if not p.merge.averages and ("linear" in transform.needs or transform.on_server is not None):
        why = "it is no sum of the updates by their weights"
        yield f'federation.aggregator = "{p.merge.name}"', why, "leave federation.aggregator out"
    if "linear" not in transform.needs or p.linear:
        return
    why, instead = "it needs each client's own factors, and not their sum alone", 'use federation.method = "ffa_lora"'
    if p.merge.averages and not p.merge.linear:
        yield f'method.merge = "{p.merge.name}"', why, instead
    if p.payload.name != "plain":
        why = "it changes each client's factors after the transform"
        yield f'method.payload = "{p.payload.name}"', why, 'set method.payload = "plain"'
