"""Aggregation weights of a round and of the population, with a cap on the weight of one client.

With a cap, a client that overstates its size cannot dominate the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shepherd.types import ClientId, ClientUpdate


def capped(weights: Sequence[float], most: float) -> tuple[float, ...]:
    """Weights capped at `most`, with the excess distributed in proportion over the others; the sum stays one.

    most = 1 changes nothing. Where n · most < 1, all weights are 1 / n, the smallest possible maximum.
    """
    if max(weights) <= most:
        return tuple(weights)
    if most * len(weights) <= 1:
        return (1 / len(weights),) * len(weights)
    over: set[int] = set()
    while True:
        rest = sum(w for i, w in enumerate(weights) if i not in over)
        grown = (1 - most * len(over)) / rest
        more = {i for i, w in enumerate(weights) if i not in over and w * grown > most}
        if not more:
            return tuple(most if i in over else w * grown for i, w in enumerate(weights))
        over |= more


def population_weights(sizes: Mapping[ClientId, int], by: str, most: float = 1.0) -> dict[ClientId, float]:
    """The weight p_k of each client under full participation, by "examples" (its rows) or "uniform".

    most: the cap on one weight. Empty for "tokens", which are known only after a round.
    """
    if by == "tokens":
        return {}
    parts = sizes if by == "examples" else dict.fromkeys(sizes, 1)
    total = sum(parts.values())
    shares = capped([part / total for part in parts.values()], most)
    return dict(zip(parts, shares, strict=True))


def update_weights(updates: Sequence[ClientUpdate], by: str) -> tuple[float, ...]:
    """Weights that sum to one: by "examples", by "tokens" (targets), or "uniform"."""
    match by:
        case "examples":
            sizes = [float(update.num_examples) for update in updates]
        case "tokens":
            sizes = [float(update.num_tokens) for update in updates]
        case "uniform":
            sizes = [1.0] * len(updates)
        case _:
            raise ValueError(f"unknown weights: {by!r}. Known: examples, tokens, uniform")
    total = sum(sizes)
    return tuple(size / total for size in sizes)


def round_weights(
    updates: Sequence[ClientUpdate],
    by: str,
    most: float = 1.0,
    *,
    times: Mapping[ClientId, int] | None = None,
    shares: Mapping[ClientId, float] | None = None,
) -> dict[ClientId, float]:
    """The weight of each update of a round: by "examples", "tokens" or "uniform", none above `most`.

    A selection may replace `by`. times: the number of draws of each client, to which its weight is proportional.
    shares: weights of a selection with a fixed denominator, not renormalised. All others sum to one over the updates.
    Empty without updates.
    """
    if not updates:
        return {}
    if shares is not None:
        return {u.client: shares[u.client] for u in updates}
    if times is not None:
        total = sum(times[u.client] for u in updates)
        weights = tuple(times[u.client] / total for u in updates)
    else:
        weights = update_weights(updates, by)
    return {u.client: w for u, w in zip(updates, capped(weights, most), strict=True)}
