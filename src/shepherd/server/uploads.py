"""Decoding of the updates of a round: the factors of each client after local training, in float64.

Modules are decoded, or read from disk, one at a time: memory holds one module of all clients, or of one client where a
sum suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shepherd.errors import ClientError
from shepherd.types import CONTROL, Adapter, ClientId, ClientModel, ClientUpdate, GlobalModel
from shepherd.updates.tensors import shapes, view_part


@dataclass(frozen=True)
class Local:
    """One module of one client after local training: A float64[r, in], B float64[out, r]; increment scale · B @ A.

    moved: bool[r], the rank slots that the client trained. sent: "AB", "A" or "B", the factors of its update.
    """

    A: np.ndarray
    B: np.ndarray
    scale: float
    moved: np.ndarray
    sent: str = "AB"


LocalTransform = Callable[[Local, Local, int], Local]
"""(local, start, round) -> the local factors to be merged; see pieces/payload.py."""


def unchanged(local: Local, start: Local, round_number: int) -> Local:
    """The trained factors, unchanged."""
    return local


class Uploads:
    """The updates of a round, sorted by client, with the global model and the client models of its start.

    views: the client models of the updates, with the chosen slots; all have the same local modules. Raises ClientError,
    with client and tensor, for an update whose modules or shapes are not those of its client model.
    """

    def __init__(
        self,
        model: GlobalModel,
        views: Mapping[ClientId, ClientModel],
        updates: Sequence[ClientUpdate],
        transform: LocalTransform = unchanged,
    ) -> None:
        # Float sums depend on order, arrival does not repeat: sort by client.
        self.model, self.transform = model, transform
        self.updates = tuple(sorted(updates, key=lambda u: u.client))
        if not self.updates:
            raise ClientError("there is no update to combine", hint="raise federation.min_updates to at least 1")
        self.views = {update.client: _with_choice(views[update.client], update) for update in self.updates}

    @property
    def round(self) -> int:
        """The number of the round (from 1)."""
        return self.updates[0].round

    @property
    def r(self) -> int:
        """The global rank."""
        return self.model.adapter.r

    @property
    def modules(self) -> list[str]:
        """The modules that were sent. For the others the server has just their initial value."""
        local = self.views[self.updates[0].client].local_modules
        return [module for module in self.model.adapter.factors if module not in local]

    def start(self, module: str) -> Local:
        """The global factors of a module at the start of the round."""
        return local_of(self.model.adapter, module)

    def moved(self, module: str) -> list[np.ndarray]:
        """The trained slots of each client, bool[r_k]."""
        views = [self.views[update.client] for update in self.updates]
        return [np.ones(v.adapter.r, bool) if v.slots is None else np.asarray(v.slots[module], bool) for v in views]

    def changes(self, name: str) -> Iterator[np.ndarray]:
        """The change of the tensor `name` by each client, float64 at full size, zero in slots that were not sent."""
        return (_change(self.views[update.client], update, name) for update in self.updates)

    def control_changes(self) -> dict[str, Iterator[np.ndarray]]:
        """SCAFFOLD's c_k⁺ − c_k by tensor and client, empty without SCAFFOLD."""
        names = [name for name in self.updates[0].delta if name.endswith(CONTROL)]
        return {name.removesuffix(CONTROL): self.changes(name) for name in names}

    def each(self, module: str) -> Iterator[Local]:
        """The factors after local training, by client, decoded one client at a time."""
        start = self.start(module)
        for update in self.updates:
            yield self.transform(_local(self.views[update.client], update, module), start, self.round)

    def locals(self, module: str) -> tuple[Local, ...]:
        """The factors after local training of all clients at once."""
        return tuple(self.each(module))


def local_of(adapter: Adapter, module: str) -> Local:
    """The factors of one module of an adapter in float64, with all slots trained."""
    A, B = adapter.factors[module]
    return Local(A.astype(np.float64), B.astype(np.float64), adapter.scale, np.ones(adapter.r, bool))


def _local(view: ClientModel, update: ClientUpdate, module: str) -> Local:
    start = local_of(view.adapter, module)
    moved = start.moved if view.slots is None else np.asarray(view.slots[module], bool)
    if view.core is not None:
        values = view.core.values[module] + _change(view, update, f"{module}.core")
        return Local(start.A, expand_core(view.core.basis[module], values), start.scale, moved, "B")
    A, B = start.A, start.B
    if "A" in view.sends:
        A = A + _change(view, update, f"{module}.A")
    if "B" in view.sends:
        B = B + _change(view, update, f"{module}.B")
    return Local(A, B, start.scale, moved, view.sends)


def _change(view: ClientModel, update: ClientUpdate, name: str) -> np.ndarray:
    return view.scatter(name, update.delta[name]).astype(np.float64)


def expand_core(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """basis[out, r] @ blockdiag(values[heads, r/heads, r/heads]), in float64: the B of a core."""
    heads, size, _ = values.shape
    blocks = basis.astype(np.float64).reshape(len(basis), heads, size)
    return np.einsum("ohi,hij->ohj", blocks, values.astype(np.float64)).reshape(len(basis), heads * size)


def _with_choice(view: ClientModel, update: ClientUpdate) -> ClientModel:
    """The client model with the slots of the update. Raises ClientError where the tensors differ."""
    try:
        view = view.chosen(update.slots)
    except ValueError as error:
        raise ClientError(f"{update.client}: {error}", hint="an engine must let updates pass the gate") from None
    expected, given = shapes(view.tensors()), shapes(view_part(update.delta))
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            theirs, ours = _shape(given.get(name)), _shape(expected.get(name))
            raise ClientError(
                f"{update.client}: {name} is {theirs}, the round asked for {ours}",
                hint="all clients must use the ranks and modules that the server sent them",
            )
    return view


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
