"""Arrays by name as the bytes of a safetensors file, and back: equal arrays give equal bytes. Arrays left in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from shepherd.types import CLUSTER, CONTROL, Tensors


class Place(NamedTuple):
    """One of some arrays that lie end to end: how many bytes after the first one it begins, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Laid(Mapping[str, np.ndarray]):
    """Arrays that lie in a file, from its byte `begin` on. Each is read anew when it is asked for.

    read(begin, memory) fills that memory. Plain reads: pages of a mapped file count as memory of the process.
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
    """Its bytes, without a copy where they lie in order."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def view_part(delta: Tensors) -> Tensors:
    """Of a client's delta what belongs to its view, without what travels beside it. What lies in a file stays there."""
    return _some(delta, {n: n for n in delta if not n.endswith(CONTROL) and not n.startswith(CLUSTER)})


def cluster_part(delta: Tensors) -> Tensors:
    """Of a client's delta that of the adapter of its cluster, by the names of that adapter's view."""
    return _some(delta, {n.removeprefix(CLUSTER): n for n in delta if n.startswith(CLUSTER)})


def _some(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """The arrays of these names, {new: old}."""
    if isinstance(tensors, Laid):
        return replace(tensors, layout={new: tensors.layout[old] for new, old in names.items()})
    return {new: tensors[old] for new, old in names.items()}


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of arrays by name. Nothing is read for it."""
    if isinstance(tensors, Laid):
        return {name: place.shape for name, place in tensors.layout.items()}
    return {name: array.shape for name, array in tensors.items()}
