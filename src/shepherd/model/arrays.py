"""Serialisation of tensors as safetensors files, for adapters and the state of clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from shepherd.types import Tensors

KINDS = "?bBhHiIlLqQefd"
"""Truth values, whole numbers, and floating point numbers of 16, 32 and 64 bits (numpy's letters)."""


def to_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with sorted metadata (the library writes them in random order).

    Raises ValueError for arrays without a safetensors type (texts, objects, complex numbers).
    """
    odd = sorted(f"{name} ({array.dtype})" for name, array in tensors.items() if array.dtype.char not in KINDS)
    if odd:
        raise ValueError(f"no safetensors type for {', '.join(odd)}")
    # Not ascontiguousarray, which turns a single number into a vector. Without metadata, None: the library cannot read
    # the empty mapping that it writes.
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    data = save(arrays, metadata=dict(metadata or {}) or None)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])  # One copy, not two.


def from_file(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. Raises SafetensorError for any other file."""
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata() or {}
    return load_file(file), metadata
