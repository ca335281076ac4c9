"""The frozen base model, as it is before tuning."""

from __future__ import annotations

from shepherd.arms.arm import Arm, arms


@arms
def base() -> Arm:
    """The untuned base model."""
    return Arm(title="Base model", order=0, style="base", rival="the untuned base model")
