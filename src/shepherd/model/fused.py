"""Low-rank terms of all clients of a pass in few large products, for GPUs, where many small kernels are slow.

Every token is multiplied with the factors of all clients: with rank r_k of client k, hidden [T, Σ r_k] is masked to
the columns of each token's client. That is Σ r_k / r times the arithmetic of the low-rank terms, in a sixth of the
calls or fewer. A non-finite value reaches other clients here (0 · ∞), so such a pass is repeated client by client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 512
"""Largest Σ r_k for shared products; wider passes are computed client by client."""


@dataclass(frozen=True)
class Columns:
    """Assignment of the columns of `hidden` to clients: own bool[T, R], slots in order, their ranks, scales[R]."""

    own: Tensor
    slots: tuple[int, ...]
    ranks: tuple[int, ...]
    scales: Tensor

    @classmethod
    def of(cls, segments: Sequence, held: Sequence, tokens: int, device: torch.device) -> Columns | None:
        """The columns of a pass, or None where sharing does not apply. segments: (slot, start, end), one per slot."""
        slots = tuple(segment.slot for segment in segments)
        ranks = tuple(held[slot].r for slot in slots)
        if len(slots) < 2 or len(set(slots)) < len(slots) or sum(ranks) > WIDEST:
            return None
        owner = torch.full((tokens,), -1)
        for index, segment in enumerate(segments):
            owner[segment.start : segment.end] = index
        column = torch.repeat_interleave(torch.arange(len(slots)), torch.tensor(ranks))
        scales = torch.tensor([held[slot].scale for slot in slots])[column]
        return cls((owner[:, None] == column).to(device), slots, ranks, scales.to(device))


def rows_to_add_to(output: Tensor) -> tuple[Tensor, bool]:
    """The output of a layer as rows [T, out], and whether they share its memory; a copy where it must not change."""
    rows = output.reshape(-1, output.shape[-1])
    in_place = not output._is_view() and rows.data_ptr() == output.data_ptr()
    return (rows if in_place else rows.clone()), in_place


class AddLowRankTogether(torch.autograd.Function):
    """`products.AddLowRank` for all segments at once. mask: the dropout mask of x, or None."""

    @staticmethod
    def forward(ctx, output, x, anchor, held, name, columns, mask):
        x2 = x.reshape(-1, x.shape[-1])
        inputs = x2 if mask is None else x2 * mask
        factors = [held[slot].factors(x.dtype)[name] for slot in columns.slots]
        A = torch.cat([A for A, _ in factors])
        B = torch.cat([B for _, B in factors]) * columns.scales.to(x.dtype)[:, None]
        hidden = torch.where(columns.own, inputs @ A.T, 0)
        result, in_place = rows_to_add_to(output)
        result.addmm_(hidden, B)
        ctx.save_for_backward(x2, hidden, A, B, mask)
        ctx.held, ctx.name, ctx.columns, ctx.shape = held, name, columns, x.shape
        if in_place:
            ctx.mark_dirty(output)
            return output
        return result.view(output.shape)

    @staticmethod
    def backward(ctx, grad_output):
        x2, hidden, A, B, mask = ctx.saved_tensors
        columns = ctx.columns
        slots = [ctx.held[slot] for slot in columns.slots]
        g2 = grad_output.reshape(-1, grad_output.shape[-1])
        grad_hidden = torch.where(columns.own, g2 @ B.T, 0)
        inputs = x2 if mask is None else x2 * mask
        if any("A" in slot.moves for slot in slots):
            _spread((grad_hidden.T @ inputs).float(), slots, columns.ranks, ctx.name, "A")
        if any("B" in slot.moves for slot in slots):
            _spread((hidden.T @ g2).float() * columns.scales[:, None], slots, columns.ranks, ctx.name, "B")
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad_hidden @ A
            grad_x = (grad_x if mask is None else grad_x.mul_(mask)).view(ctx.shape)
        return grad_output, grad_x, *(None,) * 5


def _spread(gradient: Tensor, slots: Sequence, ranks: Sequence[int], name: str, part: str) -> None:
    """Add the rows of each slot to its own gradient, in one call."""
    pairs = [
        (slot.gradients[name]["AB".index(part)], rows)
        for slot, rows in zip(slots, gradient.split(list(ranks)), strict=True)
        if part in slot.moves
    ]
    torch._foreach_add_([total for total, _ in pairs], [rows for _, rows in pairs])
