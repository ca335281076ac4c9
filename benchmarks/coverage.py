"""How often a 95 % interval holds the true difference: Student's t, which is reported, and two bootstraps.

python benchmarks/coverage.py [--trials 20000] [--bootstrap-trials 2000]

Rows differ by tokens × a draw from a distribution; the true difference per token is its mean. Seeded: the same numbers
come out again. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from shepherd.evaluation.statistics import bootstrap_interval, difference_of_sums

Draw = Callable[[np.random.Generator, int], np.ndarray]
DIFFERENCES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0, 1, n), 0.0),
    "t, 3 degrees": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(1, n), 1.0),
    "log-normal": (lambda rng, n: rng.lognormal(0, 1, n), float(np.exp(0.5))),
}
LENGTHS: dict[str, Draw] = {
    "all 40": lambda rng, n: np.full(n, 40.0),
    "10 to 40": lambda rng, n: rng.integers(10, 41, n).astype(float),
    "log-normal, σ = 1": lambda rng, n: np.ceil(rng.lognormal(4, 1, n)),
}
ROWS = (10, 20, 50, 200)


def student(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> list[float]:
    return difference_of_sums(values, np.zeros(len(values)), weights)["ci95"]


def percentile(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> list[float]:
    return bootstrap_interval(values, weights, rng, resamples=1000)


def bca(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap of SciPy (Efron, 1987)."""
    found = stats.bootstrap(
        (values, weights), lambda v, w, axis=-1: v.sum(axis) / w.sum(axis), paired=True, vectorized=True,
        n_resamples=1000, method="BCa", rng=rng,
    )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def coverage(interval: Callable, draw: Draw, mean: float, lengths: Draw, rows: int, trials: int) -> float:
    """The share of `trials` samples of `rows` rows whose interval holds `mean`."""
    rng, held = np.random.default_rng(rows), 0
    for _ in range(trials):
        tokens = lengths(rng, rows)
        low, high = interval(tokens * draw(rng, rows), tokens, rng)
        held += low <= mean <= high
    return held / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--bootstrap-trials", type=int, default=2_000)
    given = parser.parse_args()
    print("| differences | tokens of a row |", " | ".join(f"{n} rows" for n in ROWS), "|")
    print("|---|---|" + "---|" * len(ROWS))
    for name, (draw, mean) in DIFFERENCES.items():
        for length, lengths in LENGTHS.items():
            shares = [coverage(student, draw, mean, lengths, n, given.trials) for n in ROWS]
            print(f"| {name} | {length} |", " | ".join(f"{share:.3f}" for share in shares), "|", flush=True)
    print("\n| differences | bootstrap |", " | ".join(f"{n} rows" for n in ROWS), "|")
    print("|---|---|" + "---|" * len(ROWS))
    for name, (draw, mean) in DIFFERENCES.items():
        for interval in (percentile, bca):
            shares = [coverage(interval, draw, mean, LENGTHS["all 40"], n, given.bootstrap_trials) for n in ROWS]
            label = "percentile" if interval is percentile else "BCa"
            print(f"| {name} | {label} |", " | ".join(f"{share:.3f}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
