"""Each client alone: it trains in every round as it would for the federation, and nothing is averaged."""

from __future__ import annotations

from typing import Any

from shepherd.arms.arm import Arm, Setup, arms


@arms
def local() -> Arm:
    """Each client of evaluation.local_clients alone, one model per client."""
    return Arm(
        title="Each client alone",
        label="mean alone",
        order=10,
        style="local",
        spent="Clients alone, together",
        phase="training, clients alone",
        per_client=True,
        train=_train,
    )


def _train(setup: Setup) -> Any:
    return setup.train_each({client: setup.clients[client] for client in setup.alone})
