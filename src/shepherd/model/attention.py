"""Causal attention inside each sequence of a packed row, registered through transformers' `AttentionInterface`.

On a GPU in half precision one kernel call takes all sequences (`torch.nn.attention.varlen`); otherwise a loop of SDPA
calls over the sequences.

A packed pass needs no attention masks. The mask function registered with it returns none and records the window of the
mask that the model requested, so that `windows` can be compared with the windows of the attention layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from shepherd.errors import ModelError

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention import varlen
except ImportError:  # torch < 2.10
    varlen_attn = None
else:
    varlen_attn = varlen.varlen_attn

NAME = "shepherd_packed"

_bounds: tuple[int, ...] = ()  # of the current pass; checkpointing reads it again in the backward pass
_starts: dict[torch.device, Tensor] = {}  # the same as int32 on a device, made once per pass
_masked: set[int] = set()  # windows of the masks that the model requested in this pass
_attended: set[int] = set()  # windows passed by its attention layers


def open_pass(bounds: tuple[int, ...]) -> None:
    """Set the sequence boundaries of the next pass: bounds[i]:bounds[i + 1] is sequence i."""
    global _bounds
    _bounds = bounds
    _starts.clear()
    _masked.clear()
    _attended.clear()


def windows() -> tuple[set[int], set[int]]:
    """The attention windows since `open_pass`, in tokens: those of the model's masks, those of its attention layers."""
    return set(_masked), set(_attended)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D]."""
    if not _bounds or _bounds[-1] != query.shape[2]:
        raise ModelError("packed attention was called outside a packed pass")
    if kwargs.get("s_aux") is not None:
        raise ModelError("attention sinks are not supported yet")
    if getattr(module, "is_causal", True) is False:
        raise ModelError("this model has bidirectional attention; packed passes need a causal LM")
    if attention_mask is not None:
        raise ModelError("its attention has a mask or bias of its own, which a packed pass would leave out")
    window = sliding_window or getattr(module, "sliding_window", None)
    if window:
        _attended.add(int(window))
    if _one_kernel(query, value, softcap):
        return _varlen(query, key, value, scaling, window), None
    dtype = query.dtype
    if query.device.type == "cpu":  # SDPA's CPU kernel is slower in bfloat16 than in float32 (measured 1.2–1.5 times)
        query, key, value = query.float(), key.float(), value.float()
    # With the heads outermost in memory, a kernel's last bits depend on the length of the whole pass.
    query, key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value))
    parts = [
        _one_sequence(query[:, :, s:e], key[:, :, s:e], value[:, :, s:e], scaling, softcap, window)
        for s, e in pairwise(_bounds)
    ]
    return torch.cat(parts, dim=2).to(dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _packed_attention)


def _no_mask(*args, local_size: int | None = None, **kwargs) -> None:
    if local_size:
        _masked.add(int(local_size))


AttentionMaskInterface.register(NAME, _no_mask)


def _one_kernel(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the variable-length flash attention kernel applies: half precision, equal head sizes up to 256."""
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
    )


def _varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    starts = _starts.get(query.device)
    if starts is None:
        starts = _starts[query.device] = torch.tensor(_bounds, dtype=torch.int32, device=query.device)
    longest = max(end - start for start, end in pairwise(_bounds))
    repeat = query.shape[1] // key.shape[1]
    options = {}
    if repeat > 1 and _KNOWS_GROUPS:
        options["enable_gqa"] = True
    elif repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    left = -1 if window is None else window - 1
    assert varlen_attn is not None
    out = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=(left, 0), **options)
    return out[None]


_KNOWS_GROUPS = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


def _one_sequence(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None, window: int | None
) -> Tensor:
    length = q.shape[2]
    windowed = window is not None and length > window
    if softcap is not None:
        return _softcapped(q, k, v, scaling, softcap, window if windowed else None)
    mask = _band(length, window, q.device) if windowed else None
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Causal mask bool[n, n]: a token attends to itself and the `window` − 1 tokens before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (distance >= 0) & (distance < (window or length))


def _softcapped(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float, window: int | None) -> Tensor:
    """Attention with tanh-capped scores (Gemma 2), for which SDPA has no kernel."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(-1, -2) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~_band(q.shape[2], window, q.device), float("-inf"))
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v
