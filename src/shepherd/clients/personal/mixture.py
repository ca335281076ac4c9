"""FedDPA's mixture of two adapters weighted by the input (2403.19211): inference, saving and loading.

    h = W0 x + (1 − λ) · s B_g A_g x + λ · s B_l A_l x        λ = w · mean over anchors of cos(e(x), anchor)

One λ for a whole sequence, from its prompt alone: e(x) is the last hidden state of the prompt's last token under the
local adapter. The anchors are the states e of some training rows of the client. On disk a mixture is the PEFT folder of
its local adapter with an additional file, `mixture.safetensors`: anchors float32[n, hidden], weight float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from shepherd.clients.personal.joined import joined
from shepherd.errors import ModelError
from shepherd.model.adapter import load_adapter, save_adapter
from shepherd.model.arrays import from_file, to_bytes
from shepherd.model.forward import ROWS_MULTIPLE, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack
from shepherd.model.slots import Slot
from shepherd.types import Adapter, Tokens

FILE = "mixture.safetensors"


@dataclass(frozen=True, eq=False)
class Mixture:
    """A global and a local adapter with the weights of their mixture.

    anchors: float32[n, hidden]. weight: w, the λ of an input with the state of the anchors.
    """

    shared: Adapter
    local: Adapter
    anchors: np.ndarray
    weight: float

    def shares(self, states: np.ndarray) -> np.ndarray:
        """λ float64[rows] of hidden states float32[rows, hidden], negative where they point away from the anchors."""
        return self.weight * (_unit(states) @ _unit(self.anchors).T).mean(axis=1)

    def measure(
        self, packed: PackedModel, lora: CohortLora, prompts: Sequence[np.ndarray], tokens_per_pass: int = 2048
    ) -> np.ndarray:
        """λ float64[prompts] of prompts given as token ids. Replaces the slots of `lora`."""
        return self.shares(hidden_states(packed, lora, self.local, prompts, tokens_per_pass))

    def hold(self, lora: CohortLora, shares: Sequence[float]) -> CohortLora:
        """Set one slot for each λ, to evaluate or to generate; all share one copy of the factors."""
        (slot,) = lora.hold([joined(self.shared, self.local)]).held
        lora.held = [_GatedSlot(slot, self.shared.r, float(share)) for share in shares]
        return lora


def prompt_of(row: Tokens) -> np.ndarray:
    """The token ids before the first target: the prompt of a row."""
    return row.input_ids[: int(np.flatnonzero(row.loss_mask[1:])[0]) + 1]


def hidden_states(
    packed: PackedModel, lora: CohortLora, local: Adapter, prompts: Sequence[np.ndarray], tokens_per_pass: int = 2048
) -> np.ndarray:
    """The base's last hidden state of each prompt's last token under `local` alone, float32[prompts, hidden].

    A prompt's state does not depend on the others (on a CPU to the last bit): each has a separate slot.
    """
    lora.hold([local])
    lora.held = lora.held * len(prompts)
    items = [Row(index, _ended(ids)) for index, ids in enumerate(prompts)]
    found = []
    with torch.no_grad(), packed.packing(), lora.attached():
        for part in cut(items, tokens_per_pass):
            batch = pack(part, ROWS_MULTIPLE).to(packed.device)
            lora.segments = batch.segments
            found.append(packed.hidden(batch).float().cpu().numpy())
    return np.concatenate(found)


def save_mixture(folder: Path, mixture: Mixture, *, base_name: str, conv1d: bool = False) -> None:
    """Write the local adapter, the anchors and the weight; the global adapter is saved with the run."""
    save_adapter(folder, mixture.local, base_name=base_name, conv1d=conv1d)
    arrays = {"anchors": mixture.anchors, "weight": np.array(mixture.weight)}
    (folder / FILE).write_bytes(to_bytes(arrays))


def load_mixture(folder: Path, shared: Adapter) -> Mixture:
    """Read a mixture saved by `save_mixture`. shared: the run's global adapter. Raises ModelError with the defect.

    load_mixture(run / "personal" / client, load_adapter(run / "adapter"))
    """
    folder = Path(folder)
    local = load_adapter(folder)
    try:
        arrays, _ = from_file(folder / FILE)
        anchors, weight = arrays["anchors"], float(arrays["weight"])
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {FILE}: its adapter is not one of a mixture") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / FILE} cannot be read: {error}") from None
    if anchors.ndim != 2 or not len(anchors) or not np.isfinite(anchors).all() or not np.isfinite(weight):
        raise ModelError(f"{folder / FILE} holds anchors {list(anchors.shape)} and weight {weight}, or not finite ones")
    if local.base_digest != shared.base_digest:
        raise ModelError(
            f"the adapter in {folder} and the global one belong to different bases: "
            f"{local.base_digest[:12] or 'unknown'} and {shared.base_digest[:12] or 'unknown'}",
            hint="give the global adapter of the same run",
        )
    return Mixture(shared, local, anchors, weight)


class _GatedSlot(Slot):
    """A slot whose first r rank slots are weighted by 1 − λ, the others by λ. For inference: it has no gradient.

    It shares the vector of the underlying slot, so that a λ for each row costs no memory.
    """

    def __init__(self, slot: Slot, r: int, share: float) -> None:
        vars(self).update(vars(slot))
        self._slot = slot
        self._gate = torch.tensor([1.0 - share] * r + [share] * (slot.r - r), device=slot.device)[:, None]

    def factors(self, dtype: torch.dtype) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return _GatedFactors(self._slot, self._gate, dtype)


@dataclass(frozen=True)
class _GatedFactors(Mapping):
    """`Slot.factors` with gate · Bᵀ in place of Bᵀ, computed on access to avoid a copy for each row."""

    slot: Slot
    gate: torch.Tensor
    dtype: torch.dtype

    def __getitem__(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        A = self.slot.factors(self.dtype)[module][0]
        B = self.slot.factors(torch.float32)[module][1]  # λ is not rounded to bfloat16 before the product
        return A, (self.gate * B).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.slot.factors(self.dtype))

    def __len__(self) -> int:
        return len(self.slot.factors(self.dtype))


def _ended(ids: np.ndarray) -> Tokens:
    """A prompt as a row with one target, token 0, after it: the state that predicts it is the prompt's last."""
    return Tokens("", np.append(ids, 0).astype(np.int32), np.arange(len(ids) + 1) == len(ids))


def _unit(states: np.ndarray) -> np.ndarray:
    states = states.astype(np.float64)
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-8)
