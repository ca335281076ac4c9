"""Many updates -> one: rules that turn the deltas of a round into the step of the global adapter.

An aggregator takes (updates, weights) and returns the delta to add to the global adapter, by tensor name.
Updates come sorted by client, weights sum to one; sums run in float64, so the order of arrival changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shepherd.registry import Registry
from shepherd.types import Adapter, ClientId, ClientUpdate, Factors, Tensors

Aggregator = Callable[[Sequence[ClientUpdate], Sequence[float]], Tensors]
aggregators = Registry("aggregation")


@aggregators
def fedit() -> Aggregator:
    """Weighted mean of A and of B, each on its own (FedIT, Zhang et al., 2023; FedAvg, McMahan et al., 2017)."""

    def aggregate(updates: Sequence[ClientUpdate], weights: Sequence[float]) -> dict[str, np.ndarray]:
        def mean(name: str) -> np.ndarray:
            total = np.zeros(updates[0].delta[name].shape, np.float64)
            for update, weight in zip(updates, weights, strict=True):
                total += weight * update.delta[name].astype(np.float64)
            return total.astype(np.float32)

        return {name: mean(name) for name in updates[0].delta}

    return aggregate


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


def step(adapter: Adapter, delta: Tensors) -> Adapter:
    """adapter + delta, in float32."""
    factors = {
        name: Factors(A + delta[f"{name}.A"], B + delta[f"{name}.B"]) for name, (A, B) in adapter.factors.items()
    }  # fmt: skip
    return Adapter(factors, adapter.r, adapter.alpha, adapter.rslora, adapter.base_digest)


def aggregation_deviation(
    adapter: Adapter, updates: Sequence[ClientUpdate], weights: Mapping[ClientId, float]
) -> float:
    """‖Σ wₖBₖAₖ − B̄Ā‖ / ‖Σ wₖBₖAₖ‖ over all modules: how far the mean of the factors is from the mean of the products.

    The difference is the weighted covariance of the factors, Σ wₖ(Bₖ−B̄)(Aₖ−Ā), computed from the centred factors:
    by subtraction all digits would be lost when clients agree. Norms by the Gram trick, nothing is densified.
    """
    difference = total = 0.0
    for name, (A, B) in adapter.factors.items():
        w = np.sqrt([weights[u.client] for u in updates])
        As = np.stack([A + u.delta[f"{name}.A"] for u in updates]).astype(np.float64)
        Bs = np.stack([B + u.delta[f"{name}.B"] for u in updates]).astype(np.float64)
        mean_A, mean_B = np.einsum("k,kri->ri", w**2, As), np.einsum("k,kor->or", w**2, Bs)
        difference += _square_norm((Bs - mean_B) * w[:, None, None], (As - mean_A) * w[:, None, None])
        total += _square_norm(Bs * w[:, None, None], As * w[:, None, None])
    return float(np.sqrt(max(difference, 0.0) / total)) if total > 0 else 0.0


def _square_norm(Bs: np.ndarray, As: np.ndarray) -> float:
    """‖Σₖ BₖAₖ‖² for stacked Bs[K, out, r], As[K, r, in]: the trace of (LᵀL)(RRᵀ)."""
    L = np.concatenate(list(Bs), axis=1)
    R = np.concatenate(list(As), axis=0)
    return float(np.sum((L.T @ L) * (R @ R.T)))
