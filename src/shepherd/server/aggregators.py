"""Aggregation rules over stacked deltas, in place of the weighted mean. A new one is a function of three lines.

    @aggregators
    def median():
        \"\"\"Coordinate-wise median (Yin et al., 2018, 1803.01498).\"\"\"
        return lambda stacked, weights: np.median(stacked, axis=0)

The contract of a rule: stacked float64[clients, *shape] holds the deltas local − global of one factor (A or B of one
module), sorted by client; weights float64[clients] sum to one. It returns the aggregated delta [*shape]. The rule is
called for each factor that the clients sent, and the server optimizer steps on what it returns. It must not depend on
the order of the clients.

    >>> stacked = np.array([[1.0, 2.0], [2.0, 1.0], [90.0, -90.0]])     # three clients, one of them wild
    >>> weights = np.array([0.5, 0.25, 0.25])
    >>> aggregators.build("mean")(stacked, weights)
    array([ 23.5 , -21.25])
    >>> aggregators.build("trimmed_mean", {"share": 0.34})(stacked, weights)
    array([2., 1.])
    >>> build_aggregator(lambda stacked, weights: stacked[0, :1]).aggregate(stacked, weights, "q_proj.A")
    Traceback (most recent call last):
    shepherd.errors.UsageError: aggregator '<lambda>' returned [1] for q_proj.A, expected [2]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shepherd.errors import UsageError
from shepherd.registry import Registry
from shepherd.server.optimizer import ServerStep
from shepherd.server.pieces.merge import Merge, Merged, Term, padded
from shepherd.server.uploads import Local, Uploads

aggregators = Registry("aggregator")

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(stacked float64[clients, *shape], weights float64[clients]) -> float64[*shape]."""


@dataclass(frozen=True)
class Aggregator:
    """A rule with its name."""

    name: str
    rule: Rule

    def aggregate(self, stacked: np.ndarray, weights: np.ndarray, where: str) -> np.ndarray:
        """The aggregated delta. Raises UsageError, with the rule and the tensor `where`, for what breaks the contract.

        Values that are not finite pass: the method names them, as it does those of a mean.
        """
        shape = stacked.shape[1:]
        try:
            result = np.asarray(self.rule(stacked, weights.copy()), np.float64)
        except Exception as error:  # a user's rule can raise anything
            raise UsageError(f"aggregator {self.name!r} failed on {where}: {type(error).__name__}: {error}") from error
        if result.shape != shape:
            raise UsageError(
                f"aggregator {self.name!r} returned {list(result.shape)} for {where}, expected {list(shape)}",
                hint="a rule takes [clients, *shape] and returns [*shape], such as np.median(stacked, axis=0)",
            )
        return result


@aggregators
def mean() -> Rule:
    """The weighted mean, Σ w_k Δ_k: FedIT's own, as a rule."""
    return lambda stacked, weights: np.einsum("k,k...->...", weights, stacked)


@aggregators
def trimmed_mean(share: float = 0.2) -> Rule:
    """The mean of each coordinate without its largest and smallest values (Yin et al., 2018, 1803.01498, Definition 2).

    share: of the clients, rounded down, left out at either end; less than 0.5, and of three clients or more at least
    one unless it is 0, where the paper's rounding would trim nothing. Weights are ignored, as in the paper, where every
    client holds as many rows: a client of many rows could otherwise outvote the trimming.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"share must be at least 0 and less than 0.5, got {share:g}")

    def rule(stacked: np.ndarray, _weights: np.ndarray) -> np.ndarray:
        cut = int(share * len(stacked) + 1e-9)
        if share and len(stacked) > 2:
            cut = max(1, cut)
        return np.sort(stacked, axis=0)[cut : len(stacked) - cut].mean(axis=0)

    return rule


def build_aggregator(spec: str | Mapping[str, Any] | Rule | Aggregator) -> Aggregator:
    """The aggregator of a name, of a table {name, options…}, or of a rule itself. Raises UsageError."""
    if isinstance(spec, Aggregator):
        return spec
    if callable(spec):
        return Aggregator(getattr(spec, "__name__", "rule"), spec)
    if isinstance(spec, Mapping) and not isinstance(spec.get("name"), str):
        raise UsageError(f'an aggregator is a name or a table such as {{name = "trimmed_mean"}}, got {dict(spec)!r}')
    options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
    name = spec if isinstance(spec, str) else spec["name"]
    rule = aggregators.build(name, options)
    if not callable(rule):
        raise UsageError(
            f"aggregator {name!r} made {type(rule).__name__}, expected a rule of (stacked, weights)",
            hint="return a function: def median(): return lambda stacked, weights: np.median(stacked, axis=0)",
        )
    return Aggregator(name, rule)


def aggregated(aggregator: Aggregator) -> Merge:
    """The merge that aggregates each factor on its own by a rule. It needs every client's delta, not their sum."""

    def of(uploads: Uploads, module: str, shares: np.ndarray, server: ServerStep) -> Merged:
        start, locals_ = uploads.start(module), uploads.locals(module)
        total = shares[:, 0].sum()  # the server's learning rate, where the optimizer puts it into the coefficients
        weights = shares[:, 0] / total
        filled = [padded(local, uploads.r, start.scale) for local in locals_]

        def after(part: str, before: np.ndarray, factors: Iterable[np.ndarray]) -> np.ndarray:
            if part not in locals_[0].sent:
                return before
            where = f"{module}.{part}"
            delta = aggregator.aggregate(np.stack([factor - before for factor in factors]), weights, where)
            return before + server.step(where, total * delta)

        A, B = after("A", start.A, (A for A, _ in filled)), after("B", start.B, (B for _, B in filled))
        return Merged(start.scale, (Term(np.ones(uploads.r), Local(A, B, start.scale, start.moved)),))

    return Merge(of, space="factors", linear=False, averages=False, name=aggregator.name)
