"""The promises of an aggregation rule (see server/aggregators.py for the contract)."""

from __future__ import annotations

from typing import Any

import numpy as np

from shepherd.server.aggregators import Aggregator, Rule, build_aggregator

SHAPES = ((3, 5), (7, 3), (1, 1))
CLIENTS = (1, 2, 3, 6)
TOLERANCE = 1e-12


def check_aggregator(rule: Rule | Aggregator | str, **options: Any) -> None:
    """Hold a rule, or a registered name with its options, to the promises of aggregation.

    The rule keeps the shape of a factor, is finite for finite deltas, gives a lone client's delta back, gives back
    what all clients agree on, does not depend on the order of the clients, gives the same result twice, and, with
    deltas that are all zero, leaves the model where it is.

    Raises AssertionError, with the promise and the sizes, for the first that is broken; UsageError where the rule fails
    or returns another shape.
    """
    made = build_aggregator({"name": rule, **options} if isinstance(rule, str) else rule)
    for clients in CLIENTS:
        for shape in SHAPES:
            _check(made, clients, shape)


def _check(made: Aggregator, clients: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng([clients, *shape])
    stacked, weights = rng.normal(size=(clients, *shape)), rng.uniform(0.1, 1.0, clients)
    weights /= weights.sum()
    where = f"{clients} clients, a factor of {list(shape)}"

    def of(deltas: np.ndarray, shares: np.ndarray) -> np.ndarray:
        return made.aggregate(deltas.copy(), shares.copy(), where)  # copies: a rule may work in place

    def promise(holds: bool, words: str) -> None:
        if not holds:
            raise AssertionError(f"aggregator {made.name!r}: {words} ({where})")

    result = of(stacked, weights)
    promise(bool(np.isfinite(result).all()), "finite deltas give a result that is not finite")
    promise(np.array_equal(result, of(stacked, weights)), "the same deltas give another result the second time")
    order = rng.permutation(clients)
    promise(_near(of(stacked[order], weights[order]), result), "the result depends on the order of the clients")
    same = np.broadcast_to(stacked[0], stacked.shape)
    promise(_near(of(same, weights), stacked[0]), "clients that agree do not get what they agree on")
    promise(not of(np.zeros_like(stacked), weights).any(), "deltas of zero move the model")


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE))
