"""LoRA for a cohort on one frozen base: one slot per client, with individual ranks and scales.

The factors of a slot form one flat float32 vector, all A before all B, so that the local optimizer, the norm and the
update operate on one vector, and freezing a factor skips a contiguous part.

Forward hooks add the low-rank term to the output of each adapted layer. `segments` assigns the tokens of a pass to
slots; a token is multiplied with the A and B of its client only, so no client's gradient or NaN reaches another, and
the shape of every product of a client, and with it every bit, depends on that client alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shepherd.errors import ModelError
from shepherd.model.fused import AddLowRankTogether, Columns
from shepherd.model.products import AddLowRank, dropout_mask, product_dtype
from shepherd.model.slots import Segment, Slot, features, of_clients
from shepherd.rng import derive
from shepherd.types import Adapter, Factors, GlobalModel

if TYPE_CHECKING:
    from shepherd.lowrank import LowRank


class CohortLora:
    """The adapters of a cohort and a frozen increment of the base; in effect while `attached`.

    modules: {name: layer}. With `dropout` > 0, the dropout masks on the input of A depend on the seed of the sequence
    and the module alone, so that recomputation and other cuts into passes repeat them.

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
        self.together = torch.device(device).type == "cuda"  # share products among clients: see fused.py
        self._shared: tuple[Sequence[Segment], Columns | None] | None = None

    @property
    def slots(self) -> int:
        """The number of slots."""
        return len(self.held)

    def hold(self, adapters: Sequence[Adapter], *, trainable: bool = False) -> CohortLora:
        """Set the slots to these adapters, whose ranks and scales may differ. Raises ModelError for foreign modules."""
        self.held = [Slot(adapter, self.sizes, self.device, trainable) for adapter in adapters]
        return self

    def lay(self, remainder: Mapping[str, LowRank]) -> CohortLora:
        """Set the frozen increment {module: low-rank matrix} of the base, for every token. Raises ModelError."""
        self._frozen = {name: self._increment(name, term) for name, term in remainder.items() if term.R.shape[0]}
        return self

    def load(self, model: GlobalModel) -> CohortLora:
        """Set one slot to the global adapter, and the frozen increment to its remainder."""
        return self.lay(model.remainder).hold([model.adapter])

    def read(self, slot: int) -> dict[str, Factors]:
        """The factors of a slot, copied as float32 arrays."""
        return self.held[slot].read()

    @contextmanager
    def attached(self) -> Iterator[CohortLora]:
        """Context in which the model computes with the adapters and the frozen increment."""
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
                mask = None if drop is None else dropout_mask(x.reshape(-1, x.shape[-1]), x.dtype, drop)
                return AddLowRankTogether.apply(output, x, anchor, self.held, name, columns, mask)
            return AddLowRank.apply(output, x, anchor, self.held, name, segments, drop)

        return add_low_rank

    def _columns(self, segments: Sequence[Segment], tokens: int, x: Tensor) -> Columns | None:
        """The column layout of products shared among the clients of a pass, or None for separate products."""
        if not (self.together and torch.is_grad_enabled()):
            return None
        if self._shared is None or self._shared[0] is not segments:
            self._shared = (segments, Columns.of(of_clients(segments), self.held, tokens, x.device))
        return self._shared[1]

    def _increment(self, name: str, term: LowRank) -> list[tuple[Tensor, ...]]:
        """(R, L), or (L R,) where that is smaller; two such entries where a large part is kept separate."""
        if name not in self.sizes or (term.R.shape[1], term.L.shape[0]) != self.sizes[name]:
            raise ModelError(
                f"the remainder of {name} is {term.L.shape[0]} × {term.R.shape[1]}, "
                + ("the layer has other sizes" if name in self.sizes else "there is no such adapted layer"),
                hint="use the base model and lora.targets that the run was started with",
            )
        n_in, n_out = self.sizes[name]
        found: list[tuple[Tensor, ...]] = []
        for part in term.parts() if term.apart else (term,):
            L, R = (torch.from_numpy(np.asarray(m, np.float32)).to(self.device) for m in (part.L, part.R))
            if len(R):
                found.append((L @ R,) if len(R) * (n_in + n_out) > n_in * n_out else (R, L))
        return found

    def _frozen_term(self, name: str, x: Tensor) -> Tensor:
        # As the adapters' products, with which it may have to cancel. A base computes in one dtype: cast once for good.
        x = x.to(product_dtype(x))
        if self._frozen[name][0][0].dtype != x.dtype:
            self._frozen[name] = [tuple(weight.to(x.dtype) for weight in term) for term in self._frozen[name]]
        first, *others = (reduce(F.linear, term, x) for term in self._frozen[name])
        return reduce(torch.add, others, first)
