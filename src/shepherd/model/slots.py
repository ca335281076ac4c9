"""Adapter slots: the assignment of packed tokens to clients, and the flat vectors of their factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shepherd.errors import ModelError
from shepherd.types import Adapter, Factors, Tensors

PADDING = -1
"""The slot of padding tokens."""

Sizes = Mapping[str, tuple[int, int]]
"""(in, out) of every adapted layer, by module name."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) of a pass, of client slot `slot` or PADDING."""

    slot: int
    start: int
    end: int


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer: torch's Linear, its quantised variants, or GPT-2's transposed Conv1D."""
    linear: Any = layer  # quantised layers are not always subclasses of torch's Linear
    if hasattr(layer, "in_features"):
        return linear.in_features, linear.out_features
    rows, columns = linear.weight.shape  # Conv1D keeps its weight as [in, out]
    return rows, columns


@dataclass(frozen=True)
class Layout:
    """The layout of the tensors "<module>.<part>" of one part in a flat vector, module after module.

    shapes: {module: shape of the transmitted tensor}. A transposed part is stored as its transposes: B[out, r] as
    [r, out], because products with few columns are up to four times slower on a CPU than with few rows.
    """

    part: str
    shapes: Mapping[str, tuple[int, ...]]
    transposed: bool = False

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def pack(self, tensors: Tensors) -> np.ndarray:
        """Tensors by name as one vector float32[size]. Raises ModelError for a missing tensor or another shape."""
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
        """The tensors of a vector float32[size] by name, contiguous: views, or copies of a transposed part."""
        return {
            f"{name}.{self.part}": np.ascontiguousarray(matrix.T) if self.transposed else matrix
            for name, matrix in self.split(vector).items()
        }

    def split(self, vector):
        """The matrices of a vector float32[size] by module, as stored: views."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            end = offset + int(np.prod(shape))
            views[name] = vector[offset:end].reshape(shape[::-1] if self.transposed else shape)
            offset = end
        return views


class Slot:
    """One client's adapter in a cohort: `vector` float32[n], its `gradient`, and their views by module.

    `moves`: the factors that the next backward pass differentiates, "AB", "A" or "B"; other gradients stay unchanged.
    Raises ModelError when the adapter's modules or shapes are not those of the layers.
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
        self.gradients = {} if self.gradient is None else self._matrices(self.gradient)
        self._factors = self._matrices(self.vector)
        self._cast: dict[torch.dtype, Mapping[str, tuple[Tensor, Tensor]]] = {torch.float32: self._factors}

    def packed(self, adapter: Adapter) -> Tensor:
        """The flat vector float32[n] of an adapter with this slot's modules and rank."""
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
        """Invalidate the cast factors; to be called after every change of the vector."""
        self._cast.clear()  # not a new dict: it is shared with the twins
        self._cast[torch.float32] = self._factors

    def twin(self, gradient: Tensor) -> Slot:
        """A slot with these factors themselves, not a copy, and this gradient float32[n], which only it writes to."""
        made = copy(self)
        made.gradient, made.gradients = gradient, self._matrices(gradient)
        return made

    def read(self) -> dict[str, Factors]:
        """The factors, as new float32 arrays."""
        tensors = self.tensors()
        return {name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in self.layouts["A"].shapes}

    def tensors(self) -> dict[str, np.ndarray]:
        """The factors by the names of `ClientModel.tensors`, as new float32 arrays."""
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
    """Factors by module -> tensors by the names of `ClientModel.tensors`."""
    return {f"{name}.{part}": getattr(pair, part) for name, pair in factors.items() for part in "AB"}


def of_clients(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The segments of a pass without its padding, which comes last."""
    return segments[:-1] if segments[-1].slot == PADDING else segments


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
