"""The table of a study: each fixed comparison with a two-way interval, tests, Holm's adjustment and a verdict.

A difference is Σ (a − b) / Σ tokens of held-out losses, in nats per token: below 0, a is better. Its interval counts
the variation of rows and of seeds where all seeds share the rows; where each seed has other rows it is Student's t over
seeds; with one seed it counts rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shepherd.arms import parts_of
from shepherd.errors import DataError
from shepherd.evaluation.judge.statistics import Comparison, Estimate, of_units, table, two_way
from shepherd.evaluation.selection import FEWEST
from shepherd.experiment.study.losses import Record, Rows, clients_of, losses_of, own_losses, own_rows_of, rows_of
from shepherd.experiment.study.sides import Pair, base_arm

Records = Mapping[str, Mapping[int, Record]]
"""{variant: {seed: RUN.json}}"""


@dataclass(frozen=True)
class Measured:
    """The differences of one comparison. per_seed: the difference under each seed.

    values: float64[seeds, units] whose mean is the difference, linearised; None where each seed has rows of its own.
    each: float64[units], the mean over seeds of each unit's own difference, in nats per token of the mean row, whose
    signs and ranks are tested; of each seed where these have rows of their own. unit: "row" (held out) or "client".
    partly: clients with a model in some seeds only, which are left out.
    """

    seeds: tuple[int, ...]
    per_seed: np.ndarray
    values: np.ndarray | None
    units: int
    rows: int
    unit: str
    each: np.ndarray
    partly: tuple[str, ...] = ()


def compare_all(pairs: Sequence[Pair], records: Records) -> list[dict[str, Any]]:
    """The entries of study.json for all comparisons, in order; those without a run on both sides have a `reason`."""
    measured: list[Measured | str] = []
    for pair in pairs:
        try:
            measured.append(measure(pair, records))
        except DataError as error:
            measured.append(error.message)
    known = [(pair, m) for pair, m in zip(pairs, measured, strict=True) if isinstance(m, Measured)]
    judged = iter(table([_comparison(pair, m) for pair, m in known]))
    return [
        _entry(pair, m, next(judged)) if isinstance(m, Measured) else {**_names(pair), "reason": m}
        for pair, m in zip(pairs, measured, strict=True)
    ]


def measure(pair: Pair, records: Records) -> Measured:
    """The differences of a comparison in the seeds that both sides have finished. Raises DataError without any."""
    sides = [records.get(side.variant, {}) for side in (pair.a, pair.b)]
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    if not seeds:
        raise DataError("no seed is finished on both sides")
    rows = [_shared_rows(sides[0][seed], sides[1][seed]) for seed in seeds]
    fixed = _all_same(seeds, rows)
    client = next(filter(None, (parts_of(side.arm)[2] for side in (pair.a, pair.b))), "")
    if pair.rows == "own" and not client:
        return _measure_own(pair, sides, seeds, rows, fixed)
    own = pair.rows == "own"
    at = [
        own_rows_of(sides[0][seed], client) if own else np.arange(len(r.ids))
        for seed, r in zip(seeds, rows, strict=True)
    ]
    between = [
        (losses_of(sides[0][seed], pair.a.arm) - losses_of(sides[1][seed], pair.b.arm))[where]
        for seed, where in zip(seeds, at, strict=True)
    ]
    tokens = [r.tokens[where] for r, where in zip(rows, at, strict=True)]
    if not all(np.isfinite(values).all() for values in between):
        raise DataError("a loss is not finite")
    per_seed = np.array([values.sum() / weights.sum() for values, weights in zip(between, tokens, strict=True)])
    linear, each = None, per_seed
    if fixed:
        mean = per_seed.mean()
        linear = mean + (np.array(between) - mean * tokens[0]) / tokens[0].mean()
        each = np.mean(between, axis=0) / tokens[0].mean()
    return Measured(tuple(seeds), per_seed, linear, len(tokens[0]), len(tokens[0]), "row", each)


def _measure_own(
    pair: Pair, sides: Sequence[Mapping[int, Record]], seeds: list[int], rows: Sequence[Rows], fixed: bool
) -> Measured:
    """Differences per client on its own rows, each client with the same weight."""
    if not rows[0].own:
        raise DataError("the runs do not record which rows are whose own")
    arms = [(i, side.arm) for i, side in enumerate((pair.a, pair.b)) if parts_of(side.arm)[1] == "mean"]
    clients, some = set(rows[0].own), set[str]()
    for seed, r in zip(seeds, rows, strict=True):
        models = [set(clients_of(sides[i][seed], base_arm(arm))) for i, arm in arms]
        there = {client for client, at in r.own.items() if len(at)}.intersection(*models)
        clients, some = clients & there, some | there
    if not clients:
        raise DataError("no client has rows of its own and a model in every seed")
    names = sorted(clients)
    differences, number = [], 0
    for seed, r in zip(seeds, rows, strict=True):
        a, b = (own_losses(side[seed], s.arm, names) for side, s in zip(sides, (pair.a, pair.b), strict=True))
        differences.append([(a[c] - b[c]).sum() / r.tokens[r.own[c]].sum() for c in names])
        number = len(np.unique(np.concatenate([r.own[c] for c in names])))
    values = np.array(differences)
    if not np.isfinite(values).all():
        raise DataError("a loss is not finite")
    per_seed, each = values.mean(axis=1), values.mean(axis=0)
    partly = tuple(sorted(some - clients))
    return Measured(tuple(seeds), per_seed, values if fixed else None, len(names), number, "client",
                    each if fixed else per_seed, partly)  # fmt: skip


def _shared_rows(a: Record, b: Record) -> Rows:
    one, other = rows_of(a), rows_of(b)
    if not one.same(other):
        raise DataError(f"{a['run']} and {b['run']} were not measured on the same tokens of the same held-out rows")
    return one


def _all_same(seeds: Sequence[int], rows: Sequence[Rows]) -> bool:
    """Whether all seeds share their rows. DataError where only some do: neither interval holds then."""
    alike = [[seed for seed, other in zip(seeds, rows, strict=True) if one.same(other)] for one in rows]
    if len(alike[0]) == len(seeds):
        return True
    if shared := next((found for found in alike if len(found) > 1), None):
        listed = " and ".join(map(str, shared[:2]))
        raise DataError(f"seeds {listed} have the same held-out rows, and other seeds have others")
    return False


def _estimate(measured: Measured) -> Estimate:
    if measured.values is not None:
        return two_way(measured.values)
    mean, spread = over_seeds(measured.per_seed.tolist())
    return Estimate(mean, spread, len(measured.per_seed) - 1.0) if spread else Estimate(mean, None, None)


def _comparison(pair: Pair, measured: Measured) -> Comparison:
    """The statistics of a − b, so that `table` adjusts them and words the verdict on a."""
    found = _estimate(measured)
    one = of_units(found, measured.each, margin=pair.margin, seeds=len(measured.seeds), totals=(0.0, found.value))
    return replace(one, questions=measured.units)


def _names(pair: Pair) -> dict[str, Any]:
    return {"label": pair.label, "a": asdict(pair.a), "b": asdict(pair.b), "margin": pair.margin, "rows": pair.rows}


def _entry(pair: Pair, measured: Measured, found: Comparison) -> dict[str, Any]:
    interval = found.difference.interval()
    two = measured.values is not None
    return {
        **_names(pair),
        "reason": "",
        "seeds": list(measured.seeds),
        "per_seed": measured.per_seed.tolist(),
        "unit": measured.unit,
        "units": measured.units,
        "held_out_rows": measured.rows,
        "interval": ("two-way" if len(measured.seeds) > 1 else "rows") if two else "seeds",
        "difference": found.difference.value,
        "stderr": found.difference.stderr,
        "degrees": found.difference.degrees,
        "ci95": list(interval) if interval else None,
        "p": found.p,
        "holm_p": found.holm_p,
        "sign_p": found.sign_p,
        "wilcoxon_p": found.wilcoxon_p,
        "permutation_p": found.permutation_p,
        "lower": found.losses,
        "higher": found.wins,
        "ties": found.ties,
        "equal_p": found.equal_p,
        "smallest_difference": found.smallest,
        "verdict": found.verdict,
        "notes": _notes(pair, measured),
    }


def _notes(pair: Pair, measured: Measured) -> list[str]:
    found = []
    if len(measured.seeds) == 1:
        found.append("one seed: the verdict holds for this training, other seeds may turn it")
    elif measured.values is None:
        found.append("each seed has other test rows: the interval is over seeds alone")
    if measured.partly:
        found.append(f"left out, with a model in some seeds only: {', '.join(measured.partly)}")
    if any(parts_of(side.arm)[1] == "best" for side in (pair.a, pair.b)):
        found.append(
            f"the best client is chosen on the {measured.rows} rows that it is compared on, which favours it"
            if measured.rows < FEWEST
            else "the best client is chosen on one half of the rows and compared on the other"
        )
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error over seeds (s / √n); None for one seed."""
    array = np.array(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
