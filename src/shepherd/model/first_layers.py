"""The layers that read embeddings: those whose input is a function of the token alone, before any attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_CHUNK = 256
_PROBE = 8


class TokenInputs(NamedTuple):
    """Layers with one input, and that input for each token of the vocabulary, float32[V, in]."""

    layers: tuple[str, ...]
    inputs: np.ndarray


@torch.no_grad()
def token_inputs(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[TokenInputs]:
    """The inputs of those layers {name: layer} that read embeddings of tokens alone, those with equal ones together.

    Found by a test pass: the input at a token must not change when the other tokens do. None of a model that adds
    positions to its embeddings, and none of layers after the first attention.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    probe = list(range(min(_PROBE, vocabulary)))
    forwards, backwards = (_inputs(model, layers, ids, set()) for ids in (probe, probe[::-1]))
    direct = [
        name
        for name, seen in forwards.items()
        if len(seen) == len(probe) and torch.allclose(seen, backwards[name].flip(0), rtol=1e-4, atol=1e-6)
    ]
    groups: list[list[str]] = []
    for name in direct:
        same = next((group for group in groups if torch.equal(forwards[group[0]], forwards[name])), None)
        groups.append([name]) if same is None else same.append(name)
    if not groups:
        return []
    heads = {group[0] for group in groups}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in heads}
    for start in range(0, vocabulary, _CHUNK):
        found = _inputs(model, layers, range(start, min(start + _CHUNK, vocabulary)), heads)
        for name in heads:
            parts[name].append(found[name].cpu().numpy())
    return [TokenInputs(tuple(group), np.concatenate(parts[group[0]])) for group in groups]


class _Enough(Exception):
    """All inputs that are wanted were seen: the rest of the pass is not needed."""


def _inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], ids: Sequence[int], wanted: set[str]
) -> dict[str, Tensor]:
    """{layer: its input float32[tokens, in]} of one sequence; the pass ends when the `wanted` layers were reached."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].detach().float().reshape(-1, given[0].shape[-1]).clone()
            if wanted and wanted <= seen.keys():
                raise _Enough

        return keep

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    device = next(model.parameters()).device
    try:
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
