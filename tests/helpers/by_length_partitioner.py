"""The partitioner of `shepherd.registry`'s docstring, as a package outside Shepherd would hold it."""

from __future__ import annotations

import numpy as np

from shepherd.data.partitioners import Partitioner, deterministic


@deterministic
def by_length(descending: bool = False) -> Partitioner:
    """Sort by length, cut into equal parts."""

    def partition(examples, clients, rng):
        def length(position: int) -> int:
            return sum(len(message.content) for message in examples[position].messages)

        parts = np.array_split(sorted(range(len(examples)), key=length, reverse=descending), clients)
        return {f"part {number}": tuple(examples[i].id for i in part) for number, part in enumerate(parts)}

    return partition
