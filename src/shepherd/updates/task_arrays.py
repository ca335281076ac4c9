"""The arrays of a task's message: numbered when they are written, read by their names.

Equal arrays are one tensor. `<number>.T` is the transpose of an array that lies in Fortran order, which it keeps: the
order in memory decides how a product is computed, and so its last bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shepherd.types import Tensors
from shepherd.updates.layout import Header, Values, WireError, narrow, widen

DTYPES: Mapping[str, str] = {"<f8": "F64", "<f4": "F32", "|b1": "BOOL"}
"""The dtypes that an array of a task may have, by numpy's name."""
FLOATS, CHOICES = ("F64", "F32"), ("BOOL",)
_TRANSPOSED = ".T"


class ArrayWriter:
    """Arrays to write, each by its number: one that was added before, or is equal to one, keeps its number."""

    def __init__(self) -> None:
        self.values: list[Values] = []
        self._by_content: dict[tuple[str, tuple[int, ...], bool, bytes], str] = {}
        self._by_id: dict[int, tuple[str, np.ndarray]] = {}  # with the array, so that no other takes its id

    def add(self, array: np.ndarray) -> str:
        """The name of the array's tensor. Raises ValueError for an array that is not float32, float64 or bool."""
        if id(array) not in self._by_id:
            self._by_id[id(array)] = self._add_content(array), array
        return self._by_id[id(array)][0]

    def add_all(self, arrays: Tensors) -> dict[str, str]:
        """The names of their tensors by their own names."""
        return {name: self.add(array) for name, array in arrays.items()}

    def _add_content(self, array: np.ndarray) -> str:
        dtype = DTYPES.get(array.dtype.str)
        if dtype is None:
            raise ValueError(f"a task has no arrays of {array.dtype}")
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        array = array.T if transposed else array
        content = (dtype, array.shape, transposed, narrow(array, dtype))
        name = self._by_content.get(content)
        if name is None:
            name = self._by_content[content] = f"{len(self.values)}{_TRANSPOSED if transposed else ''}"
            self.values.append(Values(name, *content[:2], content[3]))
        return name


class ArrayReader:
    """The tensors of a message as copied arrays: each is read once, when a field first names it."""

    def __init__(self, data: bytes, header: Header) -> None:
        self.data, self.header = data, header
        self.taken: dict[str, np.ndarray] = {}

    def take(self, name: Any, where: str, dtypes: tuple[str, ...] = FLOATS) -> np.ndarray:
        """The array of the tensor `name`; `where` is the field that names it.

        Raises WireError: "tensors" where there is none, "shape" for another dtype, "slots" for a truth value that is
        neither 0 nor 1, "non-finite" for NaN or infinity.
        """
        entry = self.header.entries.get(name) if type(name) is str else None
        if entry is None:
            raise WireError("tensors", f"{where} names no tensor of the message")
        if entry.dtype not in dtypes:
            raise WireError("shape", f"{where} is {entry.dtype}, expected {' or '.join(dtypes)}")
        if name not in self.taken:
            array = widen(self.data, self.header.start, entry)
            finite = np.isfinite(array)
            if not finite.all():
                raise WireError("non-finite", f"{where}: {int((~finite).sum())} values are not finite")
            self.taken[name] = array.T if name.endswith(_TRANSPOSED) else array
        return self.taken[name]

    def take_all(self, names: Mapping[str, Any], where: str, dtypes: tuple[str, ...] = FLOATS) -> dict[str, np.ndarray]:
        """The arrays by their own names, as `take`."""
        return {key: self.take(name, f"{where} {i}", dtypes) for i, (key, name) in enumerate(names.items())}
