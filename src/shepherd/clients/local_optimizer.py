"""The local optimizer of one client: the trainable parameters of a round, their objective and their update rule.

A client trains the parts A and B, or a core in place of B while A is fixed. Each part is one flat vector with separate
rate, gradient and optimizer state, so a part that a step skips keeps its bits: no weight decay, no momentum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shepherd.clients.objectives import Control, add_product_proximal, add_proximal
from shepherd.model.slots import Layout, Slot
from shepherd.types import PRIVATE_CONTROL, Adapter, ClientModel, Core, Objective, Tensors

if TYPE_CHECKING:
    from shepherd.clients.settings import LocalTraining


@dataclass(eq=False)
class Part:
    """A flat vector of trainable parameters, float32[n]. `mask` is 1 for those that may move, else 0.

    `start`: the values at the start of the round. `anchor`: the centre of the proximal term.
    """

    name: str
    layout: Layout
    values: Tensor
    gradient: Tensor
    start: Tensor
    anchor: Tensor
    mask: Tensor | None = None
    control: Control | None = None


class CoreMap:
    """The map B = basis · blockdiag(core) of every module: values are pushed forward, gradients pulled back.

    core {module: [h, r / h, r / h]}, basis {module: [out, r]}; A is fixed (Fed-SB, 2502.15436; Ravan, 2506.05568).
    """

    def __init__(self, slot: Slot, core: Core) -> None:
        self.layout = Layout("core", {name: core.values[name].shape for name in slot.layouts["A"].shapes})
        self.slot = slot
        packed = self.layout.pack({f"{name}.core": values for name, values in core.values.items()})
        self.values = torch.from_numpy(packed).to(slot.vector.device)
        self.gradient = torch.zeros_like(self.values)
        self._cores, self._gradients = self.layout.split(self.values), self.layout.split(self.gradient)
        self._bases = {}  # [h, r / h, out]
        for name, (heads, width, _) in self.layout.shapes.items():
            basis = np.ascontiguousarray(core.basis[name].T, np.float32).reshape(heads, width, -1)
            self._bases[name] = torch.from_numpy(basis).to(slot.vector.device)
        self.push()

    def push(self) -> None:
        """Write B = basis · blockdiag(core) into the slot."""
        for name, (_, B) in self.slot.factors(torch.float32).items():
            torch.bmm(self._cores[name].transpose(1, 2), self._bases[name], out=B.view(self._bases[name].shape))

    def pull(self, slot: Slot | None = None) -> None:
        """Compute the gradient of the core from that of B, in the core's slot or in a twin of it."""
        for name, (_, grad_B) in (slot or self.slot).gradients.items():
            grad_B = grad_B.view(self._bases[name].shape)
            torch.bmm(self._bases[name], grad_B.transpose(1, 2), out=self._gradients[name])


class LocalOptimizer:
    """The trainable parts of one client and their optimizer.

    Each local step is `begin`, a backward pass, `settle`, `clip`, `step`. The proximal term pulls towards `anchor`, an
    adapter of the same rank, or towards the adapter at the start of the round.
    """

    def __init__(
        self,
        slot: Slot,
        view: ClientModel,
        settings: LocalTraining,
        objective: Objective | None = None,
        control: Tensors | None = None,
        private: Tensors | None = None,
        anchor: Adapter | None = None,
    ) -> None:
        if slot.gradient is None:
            raise ValueError("the slot has no gradient: hold its adapter with trainable=True")
        self.slot, self.view, self.settings, self.objective = slot, view, settings, objective or Objective()
        self._gradient = slot.gradient
        if view.core is not None and any("A" in moves for moves in view.trains):
            raise ValueError(f"with a core A is fixed, but the view trains {view.trains}")
        self.core = CoreMap(slot, view.core) if view.core is not None else None
        compared = view.slots is not None or self.objective.proximal or self.objective.scaffold
        self._start = slot.vector.clone() if compared else slot.vector
        self._anchor = self._start if anchor is None else slot.packed(anchor)
        self.parts = [self._core_part(self.core)] if self.core is not None else [self._factor(name) for name in "AB"]
        if self.objective.scaffold:
            for part in self._sent():
                momentum = settings.momentum if settings.optimizer == "sgd" else 0.0
                part.control = Control(part.layout, part.start, control or {}, private or {}, part.mask, momentum)
        self.active = self.parts
        self._optimizer = build_optimizer([part.values for part in self.parts], settings)

    def begin(self, step: int) -> None:
        """Start local step `step` (from 0) of a round: select the parts that it trains and reset their gradients."""
        moves = self.view.trains[step % len(self.view.trains)]
        self.active = self.parts if self.core is not None else [part for part in self.parts if part.name in moves]
        self.slot.moves = moves
        self._gradient.zero_()

    def settle(self, targets: int) -> Tensor:
        """Turn the gradient of a loss summed over `targets` tokens into that of the objective; return its norm."""
        self._gradient.mul_(1.0 / targets)
        mu, form = self.objective.proximal, self.objective.proximal_form
        if mu and form == "product":
            self._add_product_proximal(mu)
        if self.core is not None:
            self.core.pull()
        for part in self.active:
            if mu and form == "factors":
                add_proximal(part.gradient, part.values, part.anchor, mu)
            if part.mask is not None:
                part.gradient.mul_(part.mask)
        return torch.linalg.vector_norm(self._gradient if self.core is None else self.core.gradient)

    def gradients_of(self, twin: Slot) -> list[Tensor]:
        """The gradient of the active parts that a twin of the slot accumulated, float32[n] each; no objective is added.

        Masked entries are zero. May be views of the twin's gradient.
        """
        if self.core is not None:
            self.core.pull(twin)
            found = [self.core.gradient.clone()]
        else:
            vectors = [twin.flat(part.name)[1] for part in self.active]
            found = [vector for vector in vectors if vector is not None]
        return [
            vector if part.mask is None else vector.mul_(part.mask)
            for part, vector in zip(self.active, found, strict=True)
        ]

    def settle_with(self, gradients: Sequence[Tensor]) -> Tensor:
        """Set the gradients of the active parts to these plus those of the objective's terms; return their norm.

        gradients: any float dtype, in the order of `gradients_of`. The slot's gradient must be zero, as after `begin`.
        """
        self.settle(1)
        for part, gradient in zip(self.active, gradients, strict=True):
            part.gradient.add_(gradient.to(part.gradient.dtype).to(part.gradient.device))
            if part.mask is not None:
                part.gradient.mul_(part.mask)
        return torch.linalg.vector_norm(self._gradient if self.core is None else self.core.gradient)

    def clip(self, norm: float) -> None:
        """Clip the gradient, of this norm, to `max_grad_norm`."""
        limit = self.settings.max_grad_norm
        if limit and norm > limit:
            for part in self.active:
                part.gradient.mul_(limit / norm)

    def step(self, rate: float) -> None:
        """Take one optimizer step: A at this rate, B or the core at rate_ratio times it."""
        sgd = self.settings.optimizer == "sgd"
        corrected = [(part, part.control) for part in self.active if part.control is not None]
        if sgd:
            for part, control in corrected:
                control.correct(part.gradient)
        for part, group in zip(self.parts, self._optimizer.param_groups, strict=True):
            group["lr"] = self._rate(part, rate)
            # Without a gradient, torch's optimizers change neither a vector nor its state, not even by weight decay.
            part.values.grad = part.gradient if part in self.active else None
        self._optimizer.step()
        for part, control in corrected:
            if not sgd:
                control.correct_values(part.values, self._rate(part, rate))
            control.count(self._rate(part, rate))
        for part in self.active:
            if part.mask is not None:
                part.values.copy_(torch.where(part.mask > 0, part.values, part.start))
        if self.core is not None:
            self.core.push()
        self.slot.changed()

    def tensors(self) -> dict[str, np.ndarray]:
        """The trained tensors by name, as copies: A, B, and the core if there is one."""
        found = self.slot.tensors()
        if self.core is not None:
            found |= self.core.layout.unpack(self.core.values.cpu().numpy().copy())
        return found

    def delta(self) -> dict[str, np.ndarray]:
        """The update local − start, by the names of `ClientModel.tensors`."""
        begins, trained = self.view.tensors(), self.tensors()
        ends = self.view.gather({name: trained[name] for name in begins})
        return {name: ends[name] - begin for name, begin in begins.items()}

    def controls(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(sent, kept) of SCAFFOLD's control variates; both empty without it.

        The kept ones cover all slots. Local modules have none, so their steps are not corrected.
        """
        travels: dict[str, np.ndarray] = {}
        kept: dict[str, np.ndarray] = {}
        for part in self.parts:
            if part.control is not None:
                change, c_k = part.control.finish(part.values)
                kept |= {n: array for n, array in c_k.items() if self.view.travels(n.removeprefix(PRIVATE_CONTROL))}
                travels |= change
        return self.view.gather(travels), kept

    def _sent(self) -> list[Part]:
        """The parts that are sent, which alone have control variates."""
        return self.parts if self.core is not None else [part for part in self.parts if part.name in self.view.sends]

    def _rate(self, part: Part, rate: float) -> float:
        return rate if part.name == "A" else rate * self.objective.rate_ratio

    def _add_product_proximal(self, mu: float) -> None:
        layouts = self.slot.layouts
        cut = layouts["A"].size
        A_t, B_t = layouts["A"].split(self._anchor[:cut]), layouts["B"].split(self._anchor[cut:])
        for name, values in self.slot.factors(torch.float32).items():
            add_product_proximal(self.slot.gradients[name], values, (A_t[name], B_t[name]), mu, self.slot.scale)
        for part in self.parts:
            if part not in self.active:
                part.gradient.zero_()

    def _factor(self, name: str) -> Part:
        values, _ = self.slot.flat(name)
        cut = self.slot.layouts["A"].size
        vectors = self._gradient, self._start, self._anchor
        gradient, start, anchor = (vector[:cut] if name == "A" else vector[cut:] for vector in vectors)
        mask = None
        if self.view.slots is not None:
            mask = torch.ones_like(values)
            for module, rows in self.slot.layouts[name].split(mask).items():
                rows[~self._may_move(self.view.slots[module])] = 0.0
        return Part(name, self.slot.layouts[name], values, gradient, start, anchor, mask)

    def _core_part(self, core: CoreMap) -> Part:
        mask = None
        if self.view.slots is not None:
            mask = torch.zeros_like(core.values)
            for module, matrices in core.layout.split(mask).items():
                may = self._may_move(self.view.slots[module]).view(matrices.shape[:2])
                matrices.copy_(may[:, :, None] & may[:, None, :])
        start = core.values.clone()
        return Part("core", core.layout, core.values, core.gradient, start, start, mask)

    def _may_move(self, slots: np.ndarray) -> Tensor:
        """bool[r] on the device: the rank slots of a module that may move."""
        return torch.from_numpy(np.asarray(slots, bool)).to(self.slot.vector.device)


def build_optimizer(vectors: list[Tensor], settings: LocalTraining) -> torch.optim.Optimizer:
    """A torch optimizer that updates the vectors in place, with one parameter group for each."""
    groups = [{"params": [vector]} for vector in vectors]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum, weight_decay=settings.weight_decay)
    raise ValueError(f"unknown optimizer: {settings.optimizer!r}. Known: adamw, adam, sgd")
