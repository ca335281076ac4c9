"""Terms of the local objective besides the loss: FedProx's proximal term and SCAFFOLD's control variates.

All act on flat vectors. With μ = 0 and without control variates none is applied, so the bits are those of FedAvg.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shepherd.errors import ClientError
from shepherd.model.slots import Layout
from shepherd.types import PRIVATE_CONTROL, Tensors


def add_proximal(gradient: Tensor, values: Tensor, start: Tensor, mu: float) -> None:
    """gradient += ∇ (μ/2)‖θ − θ_t‖² (FedProx, 1812.06127, eq. 2). For LoRA it depends on the gauge of B and A."""
    gradient.add_(values - start, alpha=mu)


Pair = tuple[Tensor, Tensor]
"""(A[r, in], Bᵀ[r, out])."""


def add_product_proximal(gradient: Pair, values: Pair, start: Pair, mu: float, scale: float) -> None:
    """gradient += ∇ (μ/2)‖s(BA − B_tA_t)‖²: the distance between increments, gauge-invariant. O(r²(in + out)).

    With the differences dA and dB, BA − B_tA_t = dB A + B_t dA, which does not cancel near the start. So
    ∂/∂B = μs²(dB AAᵀ + B_t dA Aᵀ) and ∂/∂A = μs²(BᵀdB A + BᵀB_t dA).
    """
    (grad_A, grad_B), (A, B), (A_t, B_t) = gradient, values, start
    dA, dB = A - A_t, B - B_t
    weight = mu * scale**2
    grad_A.add_((B @ dB.T) @ A + (B @ B_t.T) @ dA, alpha=weight)
    grad_B.add_((A @ A.T) @ dB + (A @ dA.T) @ B_t, alpha=weight)


class Control:
    """SCAFFOLD's control variates for one part of one client (1910.06378, algorithm 1, option II).

    y ← y − η(g − c_k + c) in each step; at the end c_k⁺ = c_k − c + (x − y)/Ση. With momentum ρ the corrected gradient
    passes through it like any other, and Ση counts a gradient as often as it moved the client:
    Σ_j η_j (1 − ρ^j)/(1 − ρ). So c_k is a mean gradient, and clients of unequal steps settle where the mean of their
    gradients is zero. An adaptive optimizer is corrected after its steps, by −η(c − c_k): c_k is then a mean
    preconditioned step, and the point where the mean of such steps is zero is not the optimum, with or without
    SCAFFOLD. c and c_k are zero at first. Raises ClientError for control variates of another shape.
    """

    def __init__(
        self,
        layout: Layout,
        start: Tensor,
        server: Tensors,
        private: Tensors,
        mask: Tensor | None = None,
        momentum: float = 0.0,
    ) -> None:
        self.momentum, self._moves = momentum, 0.0
        self.layout, self.start, self.mask = layout, start, mask
        self.total_rate = 0.0
        self.c = self._load(server, "")
        self.c_k = self._load(private, PRIVATE_CONTROL)
        self.shift = self._masked(self.c - self.c_k)

    def correct(self, gradient: Tensor) -> None:
        """Add the correction to the gradient of a step of SGD."""
        gradient.add_(self.shift)

    def correct_values(self, values: Tensor, rate: float) -> None:
        """Subtract the correction from the values after a step of another optimizer at this rate."""
        values.sub_(self.shift, alpha=rate)

    def count(self, rate: float) -> None:
        """Account for one step at this rate, in which momentum applies the earlier gradients once more."""
        self._moves = self.momentum * self._moves + 1.0
        self.total_rate += rate * self._moves

    def finish(self, values: Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(sent: Δc_k by "<name>.control"; kept: c_k⁺ by "control/<name>"). A part that never moved keeps its c_k."""
        change = torch.zeros_like(self.c_k)
        if self.total_rate:
            change = self._masked((self.start - values) / self.total_rate - self.c)
        travels, kept = (self.layout.unpack(v.cpu().numpy()) for v in (change, self.c_k + change))
        return (
            {f"{name}.control": array for name, array in travels.items()},
            {f"{PRIVATE_CONTROL}{name}": array for name, array in kept.items()},
        )

    def _masked(self, vector: Tensor) -> Tensor:
        return vector if self.mask is None else vector * self.mask

    def _load(self, tensors: Tensors, prefix: str) -> Tensor:
        """The control variates of the part as one vector float32[n], zero without any."""
        found = {f"{name}.{self.layout.part}": shape for name, shape in self.layout.shapes.items()}
        full = {}
        for name, shape in found.items():
            array = tensors.get(prefix + name)
            if array is not None and array.shape != shape:
                raise ClientError(
                    f"the control variate of {name} is {list(array.shape)}, the client trains {list(shape)}",
                    hint="SCAFFOLD needs the same rank for every client",
                )
            full[name] = np.zeros(shape, np.float32) if array is None else array
        return torch.from_numpy(self.layout.pack(full)).to(self.start.device)
