"""Whether what a process holds stays flat: memory, descriptors and threads over the samples of a soak.

not_flat({"site": [Held(80.0, 9, 40), ...]})      # [] where nothing grows
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FEWEST = 8
"""Samples without which nothing is known."""


class Held(NamedTuple):
    """What a process holds at a time: resident MiB, open descriptors, threads."""

    mib: float
    descriptors: int
    threads: int


MOST = Held(mib=32.0, descriptors=2, threads=16)
"""The growth that counts as none: a few messages of 10 MB on their way more or less."""


def not_flat(samples: Mapping[str, Sequence[Held]], most: Held = MOST) -> list[str]:
    """What grows, one sentence each: the median of the last quarter is above that of the second by more than `most`.

    The first quarter is left out: a process grows until it has done everything once. Raises ValueError for fewer than
    FEWEST samples of a process, which would find everything flat.
    """
    found = []
    for name, values in samples.items():
        if len(values) < FEWEST:
            raise ValueError(f"{len(values)} samples of {name} say nothing; at least {FEWEST} do")
        quarter = len(values) // 4
        for field, allowed in zip(Held._fields, most, strict=True):
            figures = [float(getattr(value, field)) for value in values]
            early, late = statistics.median(figures[quarter : 2 * quarter]), statistics.median(figures[-quarter:])
            if late - early > allowed:
                found.append(f"{name}: {field} from {early:.0f} to {late:.0f}, above {allowed:.0f} more")
    return found
