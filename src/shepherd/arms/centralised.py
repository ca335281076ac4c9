"""All rows at one place, at the budget of the federated arm."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from shepherd.arms.arm import Arm, Setup, arms


@arms
def centralised() -> Arm:
    """One model on the rows of all clients, pooled."""
    return Arm(order=30, style="centralised", rival="pooling all data (centralised)", gain="pooling", train=_train)


def _train(setup: Setup) -> Any:
    """As many optimizer steps as the average client takes, on as many rows a step as a whole cohort takes together."""
    shares = [setup.share(len(rows)) for rows in setup.clients.values()]
    count = round(setup.cohort_size * fmean(rows for rows, _ in shares))
    steps = max(1, round(fmean(steps for _, steps in shares)))
    pooled = tuple(row for client in sorted(setup.clients) for row in setup.clients[client])
    return setup.train_one(pooled, count, steps)
