"""Losses of many continuations of one prompt, which goes through the model once and leaves its key-value cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from shepherd.model.lora import CohortLora


@torch.no_grad()
def continuation_losses(
    model: torch.nn.Module,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    lora: CohortLora | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """The negative log-likelihood of each continuation given the prompt, summed over its tokens, in nats: float64[n].

    lora: a cohort of one slot, or None for the bare base. Prompt and continuations have at least one token.
    """
    device = next(model.parameters()).device
    if lora is not None:
        lora.segments = None
    found = np.zeros(len(continuations))
    with lora.attached() if lora is not None else nullcontext():
        ids = torch.tensor([list(prompt)], device=device)
        read = model(input_ids=ids, use_cache=True)
        first = read.logits[:, -1:].float().log_softmax(-1)
        for start in range(0, len(continuations), batch_size):
            part = [list(one) for one in continuations[start : start + batch_size]]
            longest = max(map(len, part))
            # On the right: what follows a token does not reach it. Any token will do.
            filled = torch.tensor([one + [one[-1]] * (longest - len(one)) for one in part], device=device)
            logs = first.expand(len(part), -1, -1)
            if longest > 1:
                cache = copy.deepcopy(read.past_key_values)
                cache.batch_repeat_interleave(len(part))
                logits = model(input_ids=filled[:, :-1], past_key_values=cache, use_cache=True).logits
                logs = torch.cat([logs, logits.float().log_softmax(-1)], dim=1)
            losses = F.nll_loss(logs.transpose(1, 2), filled, reduction="none")
            lengths = torch.tensor([len(one) for one in part], device=device)
            counted = torch.arange(longest, device=device)[None] < lengths[:, None]
            found[start : start + len(part)] = (losses.double() * counted).sum(1).cpu().numpy()
    return found
