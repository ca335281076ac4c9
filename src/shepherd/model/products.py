"""The low-rank term s·B·A·x of a packed row, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shepherd.model.fused import rows_to_add_to
from shepherd.model.slots import PADDING, of_clients


class AddLowRank(torch.autograd.Function):
    """output[segment k] += scaleₖ · (x[segment k] Aₖᵀ) Bₖᵀ, with only x and A·xᵀ saved for the backward pass.

    The products run in the dtype of the base, as under autocast; on a CPU in float32. The backward pass accumulates
    into the float32 gradients of the slots directly: returned gradients would copy every factor in each pass.
    """

    @staticmethod
    def forward(ctx, output, x, anchor, held, name, segments, drop):
        x2 = x.reshape(-1, x.shape[-1])
        result, in_place = rows_to_add_to(output)
        dtype = product_dtype(x)
        inputs = x2.to(dtype) if drop is None else x2.to(dtype) * dropout_mask(x2, dtype, drop)
        hidden = []
        for segment in of_clients(segments):
            rows, slot = slice(segment.start, segment.end), held[segment.slot]
            A, B = slot.factors(dtype)[name]
            hidden.append(A @ inputs[rows].T)  # few rows, not few columns: see Layout
            if result.dtype == dtype:
                result[rows].addmm_(hidden[-1].T, B, alpha=slot.scale)
            else:
                result[rows].add_(hidden[-1].T @ B, alpha=slot.scale)
        ctx.save_for_backward(x2, *hidden)
        ctx.held, ctx.name, ctx.segments, ctx.drop, ctx.shape = held, name, segments, drop, x.shape
        if in_place:
            ctx.mark_dirty(output)
            return output
        return result.view(output.shape)

    @staticmethod
    def backward(ctx, grad_output):
        x2, *hidden = ctx.saved_tensors
        dtype = product_dtype(x2)
        g2 = grad_output.reshape(-1, grad_output.shape[-1]).to(dtype)
        mask = None if ctx.drop is None else dropout_mask(x2, dtype, ctx.drop)
        inputs = x2.to(dtype) if mask is None else x2.to(dtype) * mask
        grad_x = torch.empty(x2.shape, dtype=dtype, device=x2.device) if ctx.needs_input_grad[1] else None
        for h, segment in zip(hidden, of_clients(ctx.segments), strict=True):
            rows, slot = slice(segment.start, segment.end), ctx.held[segment.slot]
            A, B = slot.factors(dtype)[ctx.name]
            grad_A, grad_B = slot.gradients[ctx.name]
            grad_hidden = (B @ g2[rows].T).mul_(slot.scale)
            if "A" in slot.moves:
                _add_product(grad_A, grad_hidden, inputs[rows])
            if "B" in slot.moves:
                _add_product(grad_B, h, g2[rows], slot.scale)
            if grad_x is not None:
                torch.mm(grad_hidden.T, A, out=grad_x[rows])
        if grad_x is not None:
            if ctx.segments[-1].slot == PADDING:
                grad_x[ctx.segments[-1].start :] = 0
            grad_x = (grad_x if mask is None else grad_x.mul_(mask)).to(x2.dtype).view(ctx.shape)
        return grad_output, grad_x, *(None,) * 5


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """total += scale · left @ right, in one kernel where the dtypes are equal."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of low-rank products: that of x, but float32 on a CPU.

    On a CPU, each new shape of a bfloat16 product costs 1 ms and half a megabyte of kernels.
    """
    return torch.float32 if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.dtype


def dropout_mask(x: Tensor, dtype: torch.dtype, drop: tuple[float, Sequence[tuple[int, int, int]]]) -> Tensor:
    """The inverted-dropout mask of x: 0 or 1 / (1 - p). drop: (p, (start, end, seed) of each sequence)."""
    p, sequences = drop
    keep = torch.ones(x.shape, dtype=torch.bool)
    for start, end, seed in sequences:
        generator = torch.Generator().manual_seed(seed % 2**63)
        keep[start:end] = torch.rand((end - start, x.shape[1]), generator=generator) >= p
    return (keep / (1 - p)).to(x.device, dtype)
