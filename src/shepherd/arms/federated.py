"""The model of the run: its rounds are the federated arm's training."""

from __future__ import annotations

from shepherd.arms.arm import Arm, arms


@arms
def federated() -> Arm:
    """The global model after the last round."""
    return Arm(order=20, style="federated", phase="training, federated, with checkpoints")
