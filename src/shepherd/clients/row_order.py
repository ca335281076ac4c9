"""The row order of a client: its training rows shuffled anew for each pass, the passes concatenated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.rng import stream
from shepherd.types import ClientId, Tokens


def next_rows(tokens: Sequence[Tokens], client: ClientId, first: int, rows: int, seed: int) -> list[Tokens]:
    """Rows first … first + rows − 1 of a client's row order.

    The order continues over rounds, so that a client does not train on the same first rows in each round.
    """
    size = len(tokens)
    orders: dict[int, np.ndarray] = {}
    picked = []
    for position in range(first, first + rows):
        epoch, index = divmod(position, size)
        if epoch not in orders:
            orders[epoch] = _order(size, client, epoch, seed)
        picked.append(tokens[orders[epoch][index]])
    return picked


def times_drawn(size: int, client: ClientId, rows: int, seed: int) -> np.ndarray:
    """int[size]: the number of times that each row occurs among the first `rows` of the client's row order."""
    passes, rest = divmod(rows, size)
    times = np.full(size, passes)
    times[_order(size, client, passes, seed)[:rest]] += 1
    return times


def _order(size: int, client: ClientId, epoch: int, seed: int) -> np.ndarray:
    return stream(seed, "shuffle", client, epoch).permutation(size)
