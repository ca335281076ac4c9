"""What a lab adds to Shepherd: importing this module registers its names, and `shepherd list` shows them.

pip install examples/plugin
shepherd run --set federation.aggregator=median --set partition.name=by_length --set partition.clients=4
"""

from __future__ import annotations

import numpy as np

import shepherd


@shepherd.aggregators
def median():
    """Coordinate-wise median of the clients' deltas (Yin et al., 2018, 1803.01498)."""
    return lambda stacked, weights: np.median(stacked, axis=0)


@shepherd.partitioners
def by_length(descending: bool = False):
    """Sort by the length of the conversation, cut into equal parts: a client has short rows or long ones."""

    def partition(examples, clients, rng):
        length = [sum(len(message.content) for message in example.messages) for example in examples]
        parts = np.array_split(np.argsort(length, kind="stable")[:: -1 if descending else 1], clients)
        return {f"length {number}": tuple(examples[i].id for i in part) for number, part in enumerate(parts, 1)}

    return partition


by_length.random = False
