"""Gradient checkpointing of a frozen base: less memory, the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOISE = re.compile(r"drop|jitter")


@contextmanager
def checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the model's blocks store only their inputs and are recomputed in the backward pass.

    transformers checkpoints in train mode only. Train mode is set for just the modules that test for it: elsewhere it
    would enable dropout, router noise and sampled experts. The dropout and jitter rates of these modules are zero
    within the context, in the modules and in the config.
    """
    enable: Callable[[], Any]
    disable: Callable[[], Any]
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        enable, disable = model.activation_checkpointing_enable, model.activation_checkpointing_disable
    else:
        enable, disable = model.gradient_checkpointing_enable, model.gradient_checkpointing_disable
    enable()  # both default to use_reentrant=False
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    noisy: list[Any] = [*checkpointed, model.config, model.config.get_text_config()]
    before = [
        (owner, name, value)
        for owner in noisy
        for name, value in vars(owner).items()
        if isinstance(value, float) and value and _NOISE.search(name)
    ]
    for owner, name, _ in before:
        setattr(owner, name, 0.0)
    for module in checkpointed:
        module.training = True  # not .train(), which also sets all submodules
    try:
        yield
    finally:
        disable()
        model.eval()
        for owner, name, value in before:
            setattr(owner, name, value)
