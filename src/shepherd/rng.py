"""Named random streams: the same numbers everywhere, in any order, on any engine. There are no global seeds.

    stream(seed, "select", 3).permutation(100)                  # round 3
    stream(seed, "shuffle", "client-007", 0).permutation(50)    # client-007, first pass over its data

A stream is a pure function of its path, so nothing about randomness has to be saved, and adding or removing a
client does not change another client's numbers. Not for keys or privacy noise: those must not be repeatable.

    >>> stream(0, "select", 3).random() == stream(0, "select", 3).random()
    True
    >>> stream(0, "select", 3).random() == stream(0, "select", 4).random()
    False
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """A 64-bit seed for `path`, a pure function of (seed, path). ("a", "b") and ("ab",) differ, 1 and "1" differ.

    >>> len({derive(0, "a", "b"), derive(0, "ab"), derive(0, 1), derive(0, "1"), derive(1, "1")})
    5
    """
    parts = (f"{type(part).__name__[0]}:{part}".replace("\\", r"\\").replace("\x1f", r"\x1f") for part in path)
    text = "\x1f".join([str(int(seed)), *parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """A Philox generator for `path`, e.g. ("select", round) or ("shuffle", client, epoch)."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))
