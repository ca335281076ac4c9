"""What an update is weighted by."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.types import ClientUpdate


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
