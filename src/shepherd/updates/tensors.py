"""Named arrays as bytes: equal arrays give equal bytes; arrays read lazily from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from shepherd.types import CLUSTER, CONTROL, Tensors


class Place(NamedTuple):
    """The position and type of one of several contiguous arrays: its offset in bytes from the first."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Laid(Mapping[str, np.ndarray]):
    """Arrays in a file, from its byte `begin` on, each read on every access.

    read(begin, memory) fills the memory. Not memory-mapped: mapped pages would count as memory of the process.
    """

    read: Callable[[int, memoryview], None]
    begin: int
    layout: Mapping[str, Place]

    def __getitem__(self, name: str) -> np.ndarray:
        offset, shape, dtype = self.layout[name]
        array = np.empty(shape, dtype)
        self.read(self.begin + offset, to_raw(array))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)


def to_raw(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy if it is contiguous."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def view_part(delta: Tensors) -> Tensors:
    """The part of a delta that belongs to the client model. Arrays in a file are not read."""
    return _some(delta, {n: n for n in delta if not n.endswith(CONTROL) and not n.startswith(CLUSTER)})


def cluster_part(delta: Tensors) -> Tensors:
    """The part of a delta that belongs to the adapter of the client's cluster, by the names of its client model."""
    return _some(delta, {n.removeprefix(CLUSTER): n for n in delta if n.startswith(CLUSTER)})


def _some(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """The arrays of these names, {new: old}."""
    if isinstance(tensors, Laid):
        return replace(tensors, layout={new: tensors.layout[old] for new, old in names.items()})
    return {new: tensors[old] for new, old in names.items()}


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of arrays by name, without reading their values."""
    if isinstance(tensors, Laid):
        return {name: place.shape for name, place in tensors.layout.items()}
    return {name: array.shape for name, array in tensors.items()}
