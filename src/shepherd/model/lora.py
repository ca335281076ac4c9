"""LoRA for a whole cohort on one frozen base: one slot per client, each with a rank and a scale of its own.

A slot's factors lie in one flat float32 vector, all A first, then all B, so that A and B are vectors too: a client's
optimizer, its norm and its update are those of one vector, and a factor that is frozen is a vector left alone.

Forward hooks add the low-rank term to the output of each adapted layer. A pass says which tokens belong to which
slot (`segments`); every token meets its own client's A and B only, so no client's gradient or NaN reaches another,
and the shape of every product of a client depends on that client alone. So do its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shepherd.errors import ModelError
from shepherd.model.together import AddLowRankTogether, Columns, rows_to_add_to
from shepherd.rng import derive
from shepherd.types import Adapter, Factors, GlobalModel, Tensors

if TYPE_CHECKING:
    from shepherd.lowrank import LowRank

NOBODY = -1
"""The slot of tokens that only fill a pass up."""

Sizes = Mapping[str, tuple[int, int]]
"""(in, out) of every adapted layer, by module name."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) of a pass belong to client slot `slot`, or to NOBODY."""

    slot: int
    start: int
    end: int


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer: torch's Linear and its quantised kin, or the transposed Conv1D of GPT-2."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)  # Conv1D keeps its weight as [in, out]


@dataclass(frozen=True)
class Layout:
    """How the tensors of one part, "<module>.<part>" by name, lie in a flat vector, module after module.

    `shapes` by module are those of the tensors as they travel. A transposed part lies in the vector as its transposes:
    B[out, r] as [r, out], because products with few columns are up to four times slower on a CPU than with few rows.
    """

    part: str
    shapes: Mapping[str, tuple[int, ...]]
    transposed: bool = False

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def pack(self, tensors: Tensors) -> np.ndarray:
        """Tensors by name -> float32[size]. Raises ModelError for one that is missing or has another shape."""
        parts = []
        for name, shape in self.shapes.items():
            key = f"{name}.{self.part}"
            if key not in tensors or tensors[key].shape != shape:
                found = f"is {list(tensors[key].shape)}" if key in tensors else "is missing"
                raise ModelError(f"{key} {found}, expected {list(shape)}")
            array = np.asarray(tensors[key], np.float32)
            parts.append((array.T if self.transposed else array).ravel())
        return np.concatenate(parts)

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """float32[size] -> contiguous tensors by name: views of `vector`, or copies of a transposed part."""
        return {
            f"{name}.{self.part}": np.ascontiguousarray(matrix.T) if self.transposed else matrix
            for name, matrix in self.split(vector).items()
        }

    def split(self, vector):
        """float32[size] -> the matrices as they lie in the vector, by module: views."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            end = offset + int(np.prod(shape))
            views[name] = vector[offset:end].reshape(shape[::-1] if self.transposed else shape)
            offset = end
        return views


class Slot:
    """One client's adapter in a cohort: `vector` float32[n], its `gradient`, and what a backward pass adds to it.

    `moves` names the factors that the next backward pass is about, "AB", "A" or "B"; the others' gradient stays as it
    is. Raises ModelError when the adapter's modules or shapes are not those of the layers.
    """

    def __init__(self, adapter: Adapter, sizes: Sizes, device: torch.device | str, trainable: bool) -> None:
        _check(adapter, sizes)
        self.r, self.scale, self.moves = adapter.r, adapter.scale, "AB"
        self.layouts = {
            "A": Layout("A", {name: (adapter.r, n_in) for name, (n_in, _) in sizes.items()}),
            "B": Layout("B", {name: (n_out, adapter.r) for name, (_, n_out) in sizes.items()}, transposed=True),
        }
        self.device = device
        self.vector = self.packed(adapter)
        self.gradient = torch.zeros_like(self.vector) if trainable else None
        self.gradients = self._matrices(self.gradient) if trainable else {}
        self._factors = self._matrices(self.vector)
        self._cast: dict[torch.dtype, Mapping[str, tuple[Tensor, Tensor]]] = {}
        self.changed()

    def packed(self, adapter: Adapter) -> Tensor:
        """The vector of an adapter of this slot's modules and rank."""
        tensors = tensors_of(adapter.factors)
        return torch.from_numpy(np.concatenate([self.layouts[part].pack(tensors) for part in "AB"])).to(self.device)

    def flat(self, part: str) -> tuple[Tensor, Tensor | None]:
        """The vector of all A or of all B, and its gradient."""
        first = self.layouts["A"].size
        cut = slice(0, first) if part == "A" else slice(first, None)
        return self.vector[cut], None if self.gradient is None else self.gradient[cut]

    def factors(self, dtype: torch.dtype) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(A[r, in], Bᵀ[r, out]) by module in the dtype of the products, cast once per change."""
        if dtype not in self._cast:
            self._cast[dtype] = self._matrices(self.vector.to(dtype))
        return self._cast[dtype]

    def changed(self) -> None:
        """To be called after the vector was changed."""
        self._cast = {torch.float32: self._factors}

    def read(self) -> dict[str, Factors]:
        """The factors, as float32 arrays of their own."""
        tensors = self.tensors()
        return {name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in self.layouts["A"].shapes}

    def tensors(self) -> dict[str, np.ndarray]:
        """The factors by the names of `View.tensors`, as float32 arrays of their own."""
        return {
            name: array
            for part, layout in self.layouts.items()
            for name, array in layout.unpack(self.flat(part)[0].cpu().numpy().copy()).items()
        }

    def _matrices(self, vector: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        first = self.layouts["A"].size
        A, B = self.layouts["A"].split(vector[:first]), self.layouts["B"].split(vector[first:])
        return {name: (A[name], B[name]) for name in A}


def tensors_of(factors: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    """Factors by module -> tensors by the names of `View.tensors`."""
    return {f"{name}.{part}": getattr(pair, part) for name, pair in factors.items() for part in "AB"}


class CohortLora:
    """The adapters of a cohort, and an increment that lies frozen beside the base; in force while `attached`.

    modules maps names to layers. With `dropout` > 0 the input of A is dropped by masks that depend on the sequence's
    own seed and the module alone: recomputation and other cuts repeat them.

        lora = CohortLora(modules).load(model)      # a GlobalModel, to evaluate or to generate
        lora.hold([view.adapter for view in views], trainable=True)
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], *, dropout: float = 0.0, device: torch.device | str = "cpu"
    ) -> None:
        self.modules, self.dropout, self.device = dict(modules), dropout, device
        self.sizes = {name: features(layer) for name, layer in self.modules.items()}
        self.held: list[Slot] = []
        self.segments: Sequence[Segment] | None = None
        self.dropout_seeds: Sequence[tuple[int, int, int]] = ()  # (start, end, seed) of each sequence of the pass
        self._frozen: dict[str, list[tuple[Tensor, ...]]] = {}
        self.together = torch.device(device).type == "cuda"  # share products among clients: see together.py
        self._shared: tuple[Sequence[Segment], Columns | None] | None = None

    @property
    def slots(self) -> int:
        return len(self.held)

    def hold(self, adapters: Sequence[Adapter], *, trainable: bool = False) -> CohortLora:
        """One slot for each adapter, in place of those that were there. Ranks and scales may differ."""
        self.held = [Slot(adapter, self.sizes, self.device, trainable) for adapter in adapters]
        return self

    def lay(self, remainder: Mapping[str, LowRank]) -> CohortLora:
        """Put a frozen increment beside the base for every token, in place of the one that was there."""
        self._frozen = {name: self._increment(name, term) for name, term in remainder.items() if term.R.shape[0]}
        return self

    def load(self, model: GlobalModel) -> CohortLora:
        """One slot with the model's adapter, and its remainder beside the base."""
        return self.lay(model.remainder).hold([model.adapter])

    def read(self, slot: int) -> dict[str, Factors]:
        """The factors of a slot, as float32 arrays of their own."""
        return self.held[slot].read()

    @contextmanager
    def attached(self) -> Iterator[CohortLora]:
        """Within this context the model computes with the adapters and the frozen increment."""
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
        # Gradients of factors do not go through autograd, so something else has to ask for a backward pass.
        anchor = torch.zeros((), requires_grad=any(slot.gradient is not None for slot in self.held))

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
            if name in self._frozen:
                output = (output + self._frozen_term(name, x)).to(output.dtype)
            columns = self._columns(segments, tokens, x)
            if columns is not None:
                mask = None if drop is None else _mask(x.reshape(-1, x.shape[-1]), x.dtype, drop)
                return AddLowRankTogether.apply(output, x, anchor, self.held, name, columns, mask)
            return _AddLowRank.apply(output, x, anchor, self.held, name, segments, drop)

        return add_low_rank

    def _columns(self, segments: Sequence[Segment], tokens: int, x: Tensor) -> Columns | None:
        """How the clients of this pass share its products, or None where each has its own."""
        if not (self.together and torch.is_grad_enabled()):
            return None
        if self._shared is None or self._shared[0] is not segments:
            self._shared = (segments, Columns.of(_owned(segments), self.held, tokens, x.device))
        return self._shared[1]

    def _increment(self, name: str, term: LowRank) -> list[tuple[Tensor, ...]]:
        """(R, L), or (L R,) where that is smaller; two such where a part of it is held apart."""
        if name not in self.sizes or (term.R.shape[1], term.L.shape[0]) != self.sizes[name]:
            raise ModelError(
                f"the remainder of {name} is {term.L.shape[0]} × {term.R.shape[1]}, "
                + ("the layer has other sizes" if name in self.sizes else "there is no such adapted layer"),
                hint="use the base model and lora.targets that the run was started with",
            )
        n_in, n_out = self.sizes[name]
        found = []
        for part in term.parts() if term.apart else (term,):
            L, R = (torch.from_numpy(np.asarray(m, np.float32)).to(self.device) for m in (part.L, part.R))
            if len(R):
                found.append((L @ R,) if len(R) * (n_in + n_out) > n_in * n_out else (R, L))
        return found

    def _frozen_term(self, name: str, x: Tensor) -> Tensor:
        # As the adapters' products, with which it may have to cancel. A base computes in one dtype: cast once for good.
        x = x.to(_product_dtype(x))
        if self._frozen[name][0][0].dtype != x.dtype:
            self._frozen[name] = [tuple(weight.to(x.dtype) for weight in term) for term in self._frozen[name]]
        first, *others = (reduce(F.linear, term, x) for term in self._frozen[name])
        return reduce(torch.add, others, first)


class _AddLowRank(torch.autograd.Function):
    """output[segment k] += scaleₖ · (x[segment k] Aₖᵀ) Bₖᵀ, by hand so that nothing but x and A·xᵀ is kept.

    The products run in the dtype of the base, as under autocast; on a CPU in float32. The backward pass adds to the
    gradients of the slots (float32) itself: returned gradients would be one more copy of every factor for each pass.
    """

    @staticmethod
    def forward(ctx, output, x, anchor, held, name, segments, drop):
        x2 = x.reshape(-1, x.shape[-1])
        result, in_place = rows_to_add_to(output)
        dtype = _product_dtype(x)
        inputs = x2.to(dtype) if drop is None else x2.to(dtype) * _mask(x2, dtype, drop)
        hidden = []
        for segment in _owned(segments):
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
        dtype = _product_dtype(x2)
        g2 = grad_output.reshape(-1, grad_output.shape[-1]).to(dtype)
        mask = None if ctx.drop is None else _mask(x2, dtype, ctx.drop)
        inputs = x2.to(dtype) if mask is None else x2.to(dtype) * mask
        grad_x = torch.empty(x2.shape, dtype=dtype, device=x2.device) if ctx.needs_input_grad[1] else None
        for h, segment in zip(hidden, _owned(ctx.segments), strict=True):
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
            if ctx.segments[-1].slot == NOBODY:
                grad_x[ctx.segments[-1].start :] = 0
            grad_x = (grad_x if mask is None else grad_x.mul_(mask)).to(x2.dtype).view(ctx.shape)
        return grad_output, grad_x, *(None,) * 5


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """total += scale · left @ right, in one go where the dtypes allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


def _owned(segments: Sequence[Segment]) -> Sequence[Segment]:
    return segments[:-1] if segments[-1].slot == NOBODY else segments


def _product_dtype(x: Tensor) -> torch.dtype:
    """float32 on a CPU: there each new shape of a bfloat16 product costs 1 ms and half a megabyte of kernels."""
    return torch.float32 if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.dtype


def _mask(x: Tensor, dtype: torch.dtype, drop: tuple[float, Sequence[tuple[int, int, int]]]) -> Tensor:
    p, sequences = drop
    keep = torch.ones(x.shape, dtype=torch.bool)
    for start, end, seed in sequences:
        generator = torch.Generator().manual_seed(seed % 2**63)
        keep[start:end] = torch.rand((end - start, x.shape[1]), generator=generator) >= p
    return (keep / (1 - p)).to(x.device, dtype)


def _check(adapter: Adapter, sizes: Sizes) -> None:
    if set(adapter.factors) != set(sizes):
        missing, extra = sorted(set(sizes) - set(adapter.factors)), sorted(set(adapter.factors) - set(sizes))
        raise ModelError(
            f"the adapter's modules do not fit the model: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}",
            hint="use the base model and lora.targets that the adapter was trained with",
        )
    for name, (n_in, n_out) in sizes.items():
        A, B = adapter.factors[name]
        if A.shape != (adapter.r, n_in) or B.shape != (n_out, adapter.r):
            raise ModelError(
                f"{name}: the adapter has A{list(A.shape)}, B{list(B.shape)}; "
                f"expected A[{adapter.r}, {n_in}], B[{n_out}, {adapter.r}]",
                hint="the rank and the base model must be those that the adapter was trained with",
            )
