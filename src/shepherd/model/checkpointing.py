"""Gradient checkpointing of a frozen base: less memory, the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOISE = re.compile(r"drop|jitter")


@contextmanager
def checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the model's blocks keep their inputs alone and are computed again in the backward pass.

    transformers checkpoints in train mode only. The mode of the modules that it asks is set, and of no others: in the
    rest it would switch dropout, the noise of routers and sampled experts on. What those modules themselves drop is
    set to zero meanwhile, in them and in the config.
    """
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        enable, disable = model.activation_checkpointing_enable, model.activation_checkpointing_disable
    else:
        enable, disable = model.gradient_checkpointing_enable, model.gradient_checkpointing_disable
    enable()  # both default to use_reentrant=False
    asked = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    noisy: list[Any] = [*asked, model.config, model.config.get_text_config()]
    before = [
        (owner, name, value)
        for owner in noisy
        for name, value in vars(owner).items()
        if isinstance(value, float) and value and _NOISE.search(name)
    ]
    for owner, name, _ in before:
        setattr(owner, name, 0.0)
    for module in asked:
        module.training = True  # not .train(), which goes down to all that is inside
    try:
        yield
    finally:
        disable()
        model.eval()
        for owner, name, value in before:
            setattr(owner, name, value)
