"""LoRA for a whole cohort on one frozen base: A[K, r, in], B[K, out, r], one slot per client.

The factors of all K clients lie in one flat float32 tensor [K, n]; each module's stacked A and B are views of it.
Gradients lie in a second one. So a client is a row: its optimizer, its norm and its update are those of one vector.

Forward hooks add the low-rank term to the output of each adapted layer. A pass says which tokens belong to which
slot (`segments`); every token meets its own client's A and B only, so no client's gradient or NaN reaches another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shepherd.errors import ModelError
from shepherd.rng import derive
from shepherd.types import Adapter, Factors


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) of a pass belong to client slot `slot`."""

    slot: int
    start: int
    end: int


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer: torch's Linear and its quantised kin, or the transposed Conv1D of GPT-2."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)  # Conv1D keeps its weight as [in, out]


class CohortLora:
    """K adapters of one shape on one frozen model, in force while `attached`.

    modules maps names to layers. `scale` multiplies B·A·x. With `dropout` > 0 the input of A is dropped by
    masks that depend on the sequence's own seed and the module alone: recomputation and other cuts repeat them.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        r: int,
        scale: float,
        slots: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.modules = dict(modules)
        self.r, self.scale, self.dropout = r, scale, dropout
        sizes = {name: features(layer) for name, layer in self.modules.items()}
        self.width = sum(r * (n_in + n_out) for n_in, n_out in sizes.values())
        self.flat = torch.zeros(slots, self.width, device=device)
        self.grad = torch.zeros(0, device=device)
        self.segments: Sequence[Segment] | None = None
        self.dropout_seeds: Sequence[tuple[int, int, int]] = ()  # (start, end, seed) of each sequence of the pass
        self._sizes = sizes
        self._A: dict[str, Tensor] = {}
        self._B: dict[str, Tensor] = {}
        self._grads: dict[str, tuple[Tensor, Tensor]] = {}
        offset = 0
        for name, (n_in, n_out) in sizes.items():
            self._A[name] = self._view(self.flat, offset, r, n_in)
            offset += r * n_in
            self._B[name] = self._view(self.flat, offset, n_out, r)
            offset += n_out * r

    @property
    def slots(self) -> int:
        return self.flat.shape[0]

    def require_grad(self) -> None:
        """Make the factors trainable; a backward pass adds to `grad` [K, n], in float32."""
        self.grad = torch.zeros_like(self.flat)
        offset = 0
        for name, (n_in, n_out) in self._sizes.items():
            for leaf in (self._A[name], self._B[name]):
                leaf.requires_grad_(True)
            grad_A = self._view(self.grad, offset, self.r, n_in)
            grad_B = self._view(self.grad, offset + self.r * n_in, n_out, self.r)
            self._grads[name] = (grad_A, grad_B)
            offset += self.r * (n_in + n_out)

    def load(self, slot: int, adapter: Adapter) -> None:
        """Copy an adapter into a slot. Raises ModelError when its modules, rank, shapes or scale differ from ours."""
        if not math.isclose(adapter.scale, self.scale, rel_tol=1e-9):
            raise ModelError(
                f"the adapter's scale is {adapter.scale:g}, expected {self.scale:g}",
                hint="lora.alpha and lora.rslora must be those that the adapter was trained with",
            )
        self.flat.data[slot] = torch.from_numpy(self.pack(adapter.factors)).to(self.flat.device)

    def read(self, slot: int) -> dict[str, Factors]:
        """The factors of a slot, as float32 arrays of their own."""
        return self.unpack(self.flat.detach()[slot].cpu().numpy().copy())

    def pack(self, factors: Mapping[str, Factors]) -> np.ndarray:
        """Factors -> float32[n] in this cohort's order."""
        if set(factors) != set(self._sizes):
            missing, extra = sorted(set(self._sizes) - set(factors)), sorted(set(factors) - set(self._sizes))
            raise ModelError(
                f"the adapter's modules do not fit the model: {len(missing)} missing {missing[:3]}, "
                f"{len(extra)} unknown {extra[:3]}",
                hint="use the base model and lora.targets that the adapter was trained with",
            )
        parts = []
        for name, (n_in, n_out) in self._sizes.items():
            A, B = factors[name]
            if A.shape != (self.r, n_in) or B.shape != (n_out, self.r):
                raise ModelError(
                    f"{name}: the adapter has A{list(A.shape)}, B{list(B.shape)}; "
                    f"expected A[{self.r}, {n_in}], B[{n_out}, {self.r}]",
                    hint="the rank and the base model must be those that the adapter was trained with",
                )
            parts += [np.asarray(A, np.float32).ravel(), np.asarray(B, np.float32).ravel()]
        return np.concatenate(parts)

    def unpack(self, row: np.ndarray) -> dict[str, Factors]:
        """float32[n] -> factors by module; views of `row`."""
        factors, offset = {}, 0
        for name, (n_in, n_out) in self._sizes.items():
            A = row[offset : offset + self.r * n_in].reshape(self.r, n_in)
            offset += self.r * n_in
            B = row[offset : offset + n_out * self.r].reshape(n_out, self.r)
            offset += n_out * self.r
            factors[name] = Factors(A, B)
        return factors

    @contextmanager
    def attached(self) -> Iterator[CohortLora]:
        """Within this context the model computes with the adapters."""
        handles = [
            layer.register_forward_hook(self._hook(index, name))
            for index, (name, layer) in enumerate(self.modules.items())
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int, name: str):
        A, B, grads = self._A[name], self._B[name], self._grads.get(name)

        def add_low_rank(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            tokens = x.numel() // x.shape[-1]
            segments = self.segments if self.segments is not None else (Segment(0, 0, tokens),)
            if segments[-1].end != tokens:
                raise ModelError(
                    f"{name} saw {tokens} of the pass's {segments[-1].end} tokens: it routes tokens "
                    "(mixture of experts), so a cohort cannot share it",
                    hint="leave routed layers out of lora.targets",
                )
            drop = None
            if self.dropout and self.dropout_seeds and torch.is_grad_enabled():
                drop = (self.dropout, [(start, end, derive(seed, index)) for start, end, seed in self.dropout_seeds])
            return _AddLowRank.apply(output, x, A, B, grads, self.scale, segments, drop)

        return add_low_rank

    @staticmethod
    def _view(flat: Tensor, offset: int, rows: int, columns: int) -> Tensor:
        return flat.detach()[:, offset : offset + rows * columns].view(flat.shape[0], rows, columns)


class _AddLowRank(torch.autograd.Function):
    """output[segment k] += scale · (x[segment k] Aₖᵀ) Bₖᵀ, written by hand so that nothing but x and x·Aᵀ is kept.

    The products run in the dtype of the base, as under autocast; on a CPU in float32. The backward pass adds to the
    slots of `grads` (float32) itself: returned gradients would be a full [K, …] for each pass, mostly zeros.
    """

    @staticmethod
    def forward(ctx, output, x, A, B, grads, scale, segments, drop):
        x2, y2 = x.reshape(-1, x.shape[-1]), output.reshape(-1, output.shape[-1])
        in_place = not output._is_view() and y2.data_ptr() == output.data_ptr()
        result = y2 if in_place else y2.clone()
        dtype = _product_dtype(x)
        inputs = x2.to(dtype) if drop is None else x2.to(dtype) * _mask(x2, dtype, drop)
        a, b = A.to(dtype), B.to(dtype)
        hidden = torch.empty(x2.shape[0], A.shape[1], dtype=dtype, device=x.device)
        for segment in segments:
            rows, k = slice(segment.start, segment.end), segment.slot
            torch.mm(inputs[rows], a[k].T, out=hidden[rows])
            result[rows].add_(hidden[rows] @ b[k].T, alpha=scale)
        ctx.save_for_backward(x2, A, B, hidden)
        ctx.grads, ctx.scale, ctx.segments, ctx.drop, ctx.shape = grads, scale, segments, drop, x.shape
        if in_place:
            ctx.mark_dirty(output)
            return output
        return result.view(output.shape)

    @staticmethod
    def backward(ctx, grad_output):
        x2, A, B, hidden = ctx.saved_tensors
        dtype = hidden.dtype
        g2 = grad_output.reshape(-1, grad_output.shape[-1]).to(dtype)
        mask = None if ctx.drop is None else _mask(x2, dtype, ctx.drop)
        inputs = x2.to(dtype) if mask is None else x2.to(dtype) * mask
        a, b = A.to(dtype), B.to(dtype)
        grad_A, grad_B = ctx.grads
        grad_x = torch.empty(x2.shape, dtype=dtype, device=x2.device) if ctx.needs_input_grad[1] else None
        for segment in ctx.segments:
            rows, k = slice(segment.start, segment.end), segment.slot
            grad_hidden = (g2[rows] @ b[k]).mul_(ctx.scale)
            grad_A[k] += grad_hidden.T @ inputs[rows]
            grad_B[k] += (g2[rows].T @ hidden[rows]).mul_(ctx.scale)
            if grad_x is not None:
                torch.mm(grad_hidden, a[k], out=grad_x[rows])
        if grad_x is not None:
            grad_x = (grad_x if mask is None else grad_x.mul_(mask)).to(x2.dtype).view(ctx.shape)
        return grad_output, grad_x, *(None,) * 6


def _product_dtype(x: Tensor) -> torch.dtype:
    """float32 on a CPU: there each new shape of a bfloat16 product costs 1 ms and half a megabyte of kernels."""
    return torch.float32 if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.dtype


def _mask(x: Tensor, dtype: torch.dtype, drop: tuple[float, Sequence[tuple[int, int, int]]]) -> Tensor:
    p, sequences = drop
    keep = torch.empty(x.shape, dtype=torch.bool)
    for start, end, seed in sequences:
        generator = torch.Generator().manual_seed(seed % 2**63)
        keep[start:end] = torch.rand((end - start, x.shape[1]), generator=generator) >= p
    return (keep / (1 - p)).to(x.device, dtype)
