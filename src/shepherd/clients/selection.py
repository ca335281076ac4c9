"""Client selection: rules that draw a cohort, with weights for an unbiased mean where one exists.

`[selection]` names the rule; docs/selection.md compares them. A rule is a pure function of the `Pool`, the size and the
random stream: the same state and seed draw the same cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from shepherd.clients.availability import OTHERS, read_trace
from shepherd.clients.pool import Draw, Pool, Selection, selections
from shepherd.errors import UsageError, did_you_mean
from shepherd.types import ClientId

CLIP = 95
"""The percentile at which Oort clips utilities (2010.06081)."""


@selections
def uniform(denominator: Literal["cohort", "all"] = "cohort") -> Selection:
    """Every client equally likely, without replacement (McMahan et al., 2017, algorithm 1).

    denominator: "cohort": weights by federation.weights sum to one over the cohort, as in FedAvg; unbiased for equal
    weights, else a ratio estimator with bias O(1 / size). "all": p_k · N / size for the client's share p_k among all N,
    always unbiased, with a sum of one in expectation only (Li et al., 2020, 1907.02189, scheme II).
    """

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        chosen = _pick(pool, size, rng)
        if denominator == "cohort":
            return Draw(chosen)
        return Draw(chosen, {c: pool.shares[c] * len(pool.clients) / size for c in chosen}, size, fixed=True)

    if denominator == "cohort":
        return Selection(draw)
    return Selection(draw, goes_with=("examples", "uniform"), weighs=True, fixed=True, refills=False)


@selections
def size_weighted() -> Selection:
    """Each draw takes client k with p_k = n_k / Σn, with replacement; drawn m times of n, it weighs m / n.

    A client trains once, regardless of its number of draws. Unbiased for the mean by examples (Li et al., 2020,
    1907.02189, scheme I): the size is in the probability, so it is not in the weight.
    """

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        times = np.bincount(rng.choice(len(pool.clients), size, p=_by_size(pool)), minlength=len(pool.clients))
        weights = {c: int(m) / size for c, m in zip(pool.clients, times, strict=True) if m}
        return Draw(tuple(weights), weights, size)

    return Selection(draw, goes_with=("examples",), weighs=True)


@selections
def poisson(q: float = 0.0) -> Selection:
    """Each client independently with probability q, as assumed in the accounting of differential privacy.

    q: 0 is the cohort's share of the clients. The denominator is fixed (McMahan et al., 2018, 1710.06963): p_k / q for
    the client's share p_k, which is 1 / (qN) with federation.weights = "uniform". The weight of a client without an
    update goes to the previous model. A round with an empty draw is skipped.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q is a probability, got {q:g}")

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        chance = q or size / len(pool.clients)
        chosen = tuple(c for c, u in zip(pool.clients, rng.random(len(pool.clients)), strict=True) if u < chance)
        return Draw(chosen, {c: pool.shares[c] / chance for c in chosen}, len(chosen), fixed=True)

    return Selection(
        draw,
        goes_with=("examples", "uniform"),
        weighs=True,
        fixed=True,
        sizes_itself=q > 0,
        refills=False,
        may_be_empty=True,
        cohort=lambda clients, size: max(1, round(q * clients)) if q else size,
    )


@selections
def everyone() -> Selection:
    """All clients in every round."""
    return Selection(
        lambda pool, size, rng: Draw(pool.clients),
        random=False,
        sizes_itself=True,
        refills=False,
        cohort=lambda clients, size: clients,
    )


@selections
def power_of_choice(candidates: int = 0) -> Selection:
    """Of d candidates drawn by size, those with the highest loss (rpow-d of Cho et al., 2020, 2010.01243).

    candidates: d; 0 is twice the cohort. d = cohort draws by size alone, d = all takes the highest losses of all. The
    loss is that of the client's last update; clients never sampled come first, sampled ones without an update last.
    Weights are equal, because the size is in the probability. Biased by design, for faster initial progress.
    """
    if candidates < 0:
        raise ValueError(f"candidates is 0 or the number of candidates, got {candidates}")

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        d = min(len(pool.clients), max(size, candidates or 2 * size))
        drawn = [pool.clients[i] for i in rng.choice(len(pool.clients), d, replace=False, p=_by_size(pool))]

        def loss(client: ClientId) -> float:
            return pool.losses.get(client, -np.inf) if client in pool.rounds else np.inf

        # A stable sort: ties are in the random order of the draw.
        chosen = tuple(sorted(sorted(drawn, key=loss, reverse=True)[:size]))
        return Draw(chosen, dict.fromkeys(chosen, 1 / size), size)

    def check(clients: tuple[ClientId, ...], size: int) -> None:
        if candidates and candidates < size:
            raise UsageError(
                f"selection.candidates = {candidates} is less than the {size} clients of a cohort",
                hint=f"set selection.candidates to at least {size}, or sample fewer clients in a round",
            )

    return Selection(draw, goes_with=("examples",), weighs=True, learns=True, check=check)


@selections
def oort(
    exploration: float = 0.9,
    decay: float = 0.98,
    least: float = 0.2,
    penalty: float = 2.0,
    cutoff: float = 0.95,
    seconds: float = 0.0,
) -> Selection:
    """Clients of high utility per unit of time, and a share of clients not sampled before (Oort, Lai et al., 2021).

    Utility: |S_k| · loss, clipped at the 95th percentile of known clients and divided by it, + √(0.1 ln R / L_k) for
    this round R and the client's last round L_k; scaled by (T / t_k)^penalty for clients slower than T = `seconds`
    (0: the median of known clients). A share ε = max(least, exploration · decay^(R − 1)) of the cohort is explored:
    clients never sampled before. The others are drawn in proportion to utility from those with at least `cutoff` of the
    lowest utility in the top. As in 2010.06081, algorithm 1, but with the mean loss of the last update in place of the
    root mean square, exploration drawn uniformly instead of by speed, and the percentile rounded down to a client, so
    that a client with an inflated loss has at most the utility of the second. Biased by design.
    """
    for name, value in (("exploration", exploration), ("decay", decay), ("least", least), ("cutoff", cutoff)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} lies between 0 and 1, got {value:g}")
    if penalty < 0 or seconds < 0:
        raise ValueError("penalty and seconds are at least 0")

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        known = [c for c in pool.clients if c in pool.rounds]
        unknown = [c for c in pool.clients if c not in pool.rounds]
        share = max(least, exploration * decay ** (pool.round - 1))
        explored = min(len(unknown), max(round(share * size), size - len(known)))
        chosen = [unknown[i] for i in rng.choice(len(unknown), explored, replace=False)] if explored else []
        if rest := size - explored:
            utility = _utility(pool, known, penalty, seconds)
            weakest = np.sort(utility)[-rest]
            good = np.flatnonzero(utility >= cutoff * weakest)
            chances = utility[good] + 1e-12  # if all are zero, uniform
            chosen += [known[i] for i in rng.choice(good, rest, replace=False, p=chances / chances.sum())]
        return Draw(tuple(sorted(chosen)))

    return Selection(draw, learns=True)


@selections
def availability(trace: str, then: str = "uniform", **options: Any) -> Selection:
    """Only clients that are available in this round by a trace; `then` draws among them, with the other options.

    trace: a JSON file {"client": [[first round, last round], …]} or a CSV file client,from,to; rounds count from 1, a
    missing last round (null, or empty) means no end, "*" all other clients. A round without available clients is
    skipped.
    """
    if then == "availability":
        raise ValueError('then names what draws among the available, such as "uniform"')
    on = read_trace(trace)
    inner = build_selection(then, options)

    def draw(pool: Pool, size: int, rng: np.random.Generator) -> Draw:
        available = pool.only(frozenset(c for c in pool.clients if on(c, pool.round)))
        return inner.draw(available, min(size, len(available.clients)), rng) if available.clients else Draw(())

    def check(clients: tuple[ClientId, ...], size: int) -> None:
        unknown = [c for c in on.clients if c not in clients and c != OTHERS]
        if unknown:
            raise UsageError(
                f"{trace} names {unknown[0]!r}, which is not a client.{did_you_mean(unknown[0], clients)}",
                hint=f"clients: {', '.join(clients[:10])}{', …' if len(clients) > 10 else ''}",
            )
        absent = [c for c in clients if c not in on.clients]
        if absent and OTHERS not in on.clients:
            raise UsageError(
                f"{trace} has no entry for {absent[0]!r}{f' and {len(absent) - 1} more' if absent[1:] else ''}",
                hint=f'add their rounds, or those of all others: "{OTHERS}": [[1, null]]',
            )
        inner.check(clients, size)

    return replace(inner, draw=draw, check=check, may_be_empty=True)


def build_selection(name: str, options: Mapping[str, Any] | None = None) -> Selection:
    """The selection of this name with its options. Raises UsageError with a similar name or option."""
    selection = selections.build(name, options)
    if not isinstance(selection, Selection):
        raise UsageError(f"selection {name!r} gives {selection!r}, not a Selection")
    return replace(selection, name=name)


def cohort_size(clients: int, per_round: int, fraction: float) -> int:
    """The cohort size: `per_round`, or the fraction of `clients` rounded up if that is 0; at least one, at most all."""
    return min(clients, per_round) if per_round else max(1, int(np.ceil(round(fraction * clients, 9))))


def _pick(pool: Pool, size: int, rng: np.random.Generator) -> tuple[ClientId, ...]:
    return tuple(sorted(pool.clients[i] for i in rng.choice(len(pool.clients), size, replace=False)))


def _by_size(pool: Pool) -> np.ndarray:
    """n_k / Σn for the clients of the pool, float64[N]."""
    sizes = np.array([pool.sizes[c] for c in pool.clients], np.float64)
    return sizes / sizes.sum()


def _utility(pool: Pool, clients: list[ClientId], penalty: float, preferred: float) -> np.ndarray:
    """The utility of clients sampled before, float64[len(clients)]; see `oort`."""
    preferred = preferred or float(np.median([*pool.seconds.values()] or [0.0]))
    # Reported by clients: they may be negative, or so large that the product is infinite.
    losses = np.clip([pool.losses.get(c, 0.0) for c in clients], 0.0, 1e100)
    statistical = np.array([pool.sizes[c] for c in clients]) * losses
    statistical = np.minimum(statistical, np.percentile(statistical, CLIP, method="lower"))
    last = np.array([pool.rounds[c] for c in clients])
    utility = statistical / (statistical.max() or 1.0) + np.sqrt(0.1 * np.log(pool.round) / last)
    durations = np.array([pool.seconds.get(c, 0.0) for c in clients])
    slow = durations > preferred
    utility[slow] *= (preferred / durations[slow]) ** penalty
    return utility


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f'"{name}"' for name in names)
