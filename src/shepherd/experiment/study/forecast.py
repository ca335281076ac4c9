"""What a study costs and what it can see, before anything starts."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.arms import parts_of
from shepherd.errors import DataError, ResourceError, UsageError, did_you_mean
from shepherd.evaluation.judge.power import planned, smallest_difference
from shepherd.experiment.study.comparisons import Measured, Records, measure
from shepherd.experiment.study.design import Planned, Study
from shepherd.experiment.study.file import JudgeTable
from shepherd.experiment.study.sides import Pair, Side, base_arm

EXPECTED = {"base": (0.10, 0.007), "centralised": (0.048, 0.0)}
OTHERWISE = (0.022, 0.006)
"""(sd over rows, sd over seeds beyond that), nats per token: federated minus base, centralised, and the mean of clients
alone, which stands for all other comparisons. SmolLM2-135M on Dolly-15k, three seeds each (docs/studies)."""
TOKENS_IN, TOKENS_OUT = 800, 142
"""Tokens of a judge's prompt and of its answer, the means over recorded judgements."""


@dataclass(frozen=True)
class VariantCost:
    """The estimate of one run of a variant, and how many of its runs are left."""

    name: str
    runs: int
    left: int
    seconds: float
    disk_bytes: int
    held_out_rows: int
    clients: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visible:
    """The smallest true difference that a comparison would find with 80 % power, in nats per token, before Holm.

    units: held-out rows or clients; the rows of a single client are taken as its share of all.

    source: where the standard deviations come from: the study file, finished runs, or earlier studies.
    """

    label: str
    units: int
    unit: str
    seeds: int
    row_sd: float
    seed_sd: float
    source: str
    smallest: float | None
    margin: float | None


@dataclass(frozen=True)
class Forecast:
    """Costs and sensitivity of a study. judge_cost is None without prices."""

    variants: tuple[VariantCost, ...]
    visible: tuple[Visible, ...]
    judge_calls: int
    judge_cost: float | None

    @property
    def seconds(self) -> float:
        """Of all runs."""
        return sum(v.runs * v.seconds for v in self.variants)

    @property
    def seconds_left(self) -> float:
        return sum(v.left * v.seconds for v in self.variants)

    @property
    def disk_bytes(self) -> int:
        return sum(v.runs * v.disk_bytes for v in self.variants)


def forecast(
    study: Study, runs: Sequence[Planned], finished: Records, estimate: Callable[[Planned], Mapping[str, Any]]
) -> Forecast:
    """Costs of `runs`, and what the study can see. estimate: the `Estimate` of a run, as a mapping."""
    costs: dict[str, VariantCost] = {}
    for run in runs:
        name = run.variant.name
        if name in costs:
            continue
        mine = [other for other in runs if other.variant == run.variant]
        found = estimate(run)
        left = [other for other in mine if other.seed not in finished.get(name, {})]
        costs[name] = VariantCost(
            name, len(mine), len(left), found["seconds"], found["disk_bytes"], found["held_out_rows"],
            found["clients"], tuple(found["warnings"]),
        )  # fmt: skip
    visible = [v for pair in study.pairs if (v := _visible(study, pair, costs, finished)) is not None]
    calls, cost = judging(study, runs)
    return Forecast(tuple(costs.values()), tuple(visible), calls, cost)


def within_budget(study: Study, found: Forecast) -> None:
    """Raise ResourceError where a forecast is above the limits of the study file."""
    budget = study.file.budget
    for what, given, limit in (
        ("hours", found.seconds / 3600, budget.hours),
        ("disk_gb", found.disk_bytes / 1e9, budget.disk_gb),
        ("judge_calls", found.judge_calls, budget.judge_calls),
        ("judge_cost", found.judge_cost, budget.judge_cost),
    ):
        if limit is None:
            continue
        if given is None:
            raise UsageError("budget.judge_cost needs prices", hint="name a file of prices in judge.prices")
        if given > limit:
            raise ResourceError(
                f"the study takes about {given:,.4g} {what.replace('_', ' ')}, more than budget.{what} = {limit:,g}",
                hint="fewer seeds, variants or rounds, or a larger budget",
            )


# Sensitivity


def _visible(study: Study, pair: Pair, costs: Mapping[str, VariantCost], finished: Records) -> Visible | None:
    cost = costs.get(pair.a.variant) or costs.get(pair.b.variant)
    if cost is None:
        return None
    seeds = [s for s in study.variant(pair.a.variant).seeds if s in study.variant(pair.b.variant).seeds]
    own = pair.rows == "own"
    one = any("/" in side.arm for side in (pair.a, pair.b))
    each = cost.held_out_rows // cost.clients
    units = cost.held_out_rows if not own else each if one else _trained_alone(study, pair, cost.clients)
    row_sd, seed_sd, source = _spread(pair, finished)
    fixed = study.file.test_rows == "fixed"
    return Visible(
        pair.label, units, "client" if own and not one else "row", len(seeds), row_sd, seed_sd, source,
        smallest_visible(units, len(seeds), row_sd, seed_sd, fixed), pair.margin,
    )  # fmt: skip


def _trained_alone(study: Study, pair: Pair, clients: int) -> int:
    """The number of clients that train alone in both variants, of `clients` in all."""
    given = [study.variant(side.variant).config.evaluation.local_clients for side in (pair.a, pair.b)]
    counts = [clients if some == "all" else some if isinstance(some, int) else len(some) for some in given]
    return min(clients, *counts)


def smallest_visible(units: int, seeds: int, row_sd: float, seed_sd: float, fixed: bool) -> float | None:
    """The smallest difference found at 5 % with 80 % power; None where no interval would exist.

    fixed: all seeds share the rows (two-way interval); otherwise the interval is Student's t over seeds.
    """
    if not seeds or units < 2:
        return None
    if fixed or seeds == 1:
        return smallest_difference(*planned(units, seeds, row_sd, seed_sd=seed_sd))
    return smallest_difference(math.sqrt((row_sd**2 / units + seed_sd**2) / seeds), seeds - 1.0)


def _spread(pair: Pair, finished: Records) -> tuple[float, float, str]:
    """(sd over units, sd over seeds beyond that, their source)."""
    default = EXPECTED.get(base_arm(_other(pair).arm), OTHERWISE)
    row_sd, seed_sd, source = *default, "earlier studies"
    try:
        measured = measure(pair, finished)
    except DataError:
        measured = None
    if measured is not None and measured.values is not None and measured.units > 1:
        row_sd, seeds_sd = _measured_spread(measured)
        seed_sd, source = (seeds_sd, "finished runs") if seeds_sd is not None else (seed_sd, "finished runs, one seed")
    if pair.row_sd is not None:
        row_sd, source = pair.row_sd, "study file"
    if pair.seed_sd is not None:
        seed_sd, source = pair.seed_sd, "study file"
    return row_sd, seed_sd, source


def _measured_spread(measured: Measured) -> tuple[float, float | None]:
    """Sd over units within a seed; sd of the mean over seeds less what that explains."""
    assert measured.values is not None
    within = float((measured.values.var(axis=1, ddof=1)).mean())
    if len(measured.seeds) < 2:
        return math.sqrt(within), None
    beyond = float(measured.per_seed.var(ddof=1)) - within * 0.3 / measured.units
    return math.sqrt(within), math.sqrt(max(0.0, beyond))


def _other(pair: Pair) -> Side:
    """The side that the spread depends on: the one that is not federated."""
    return pair.a if pair.b.arm == "federated" else pair.b


# The judge


def judging(study: Study, runs: Sequence[Planned]) -> tuple[int, float | None]:
    """Calls of the judge, and their cost where prices are given. A mean over clients is no model to be judged."""
    judge = study.file.judge
    if judge is None:
        return 0, None
    picked = {(run.variant.name, run.seed) for run in runs}
    pairs = [p for p in study.pairs if "mean" not in (parts_of(p.a.arm)[1], parts_of(p.b.arm)[1])]
    judged = sum(
        all((side.variant, seed) in picked for side in (pair.a, pair.b)) for pair in pairs for seed in study.file.seeds
    )
    orders = 2 if judge.orders == "both" else 1
    calls = judged * judge.number * orders * judge.repeats
    return calls, _cost(judge, calls, study.path.parent)


def _cost(judge: JudgeTable, calls: int, folder: Path) -> float | None:
    if not judge.prices:
        return None
    file = folder / judge.prices
    try:
        prices = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"judge.prices: {file} is not there", hint="give a TOML file beside the study file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"judge.prices: {file} cannot be read: {error}") from None
    tables = prices.get("models", prices)  # as shepherd judge --prices has them, or at the top
    price = tables.get(judge.model) if isinstance(tables, dict) else None
    if not isinstance(price, dict):
        near = did_you_mean(judge.model, tables if isinstance(tables, dict) else ())
        raise UsageError(f"judge.prices: {file} has no table of {judge.model!r}.{near}")
    try:
        per_call = TOKENS_IN * float(price["input"]) + TOKENS_OUT * float(price["output"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"judge.prices: [{judge.model}] in {file} needs input and output, per million tokens"
        ) from None
    return calls * per_call / 1e6


# Clients that comparisons name


def check_named_clients(study: Study, runs: Iterable[Planned], folder: Path) -> None:
    """Raise UsageError where a comparison names a client that its variant does not train alone. Reads the data."""
    from shepherd.experiment.checks import look_first
    from shepherd.experiment.division import divide_rows
    from shepherd.experiment.named_clients import local_names

    wanted = {(s.variant, client) for p in study.pairs for s in (p.a, p.b) if (client := parts_of(s.arm)[2])}
    done: set[str] = set()
    for run in runs:
        name = run.variant.name
        mine = sorted(client for variant, client in wanted if variant == name)
        if not mine or name in done:
            continue
        done.add(name)
        config = run.config(folder)
        sources = look_first(config, lambda _line: None, out=folder).sources
        if sources is None:
            continue  # sets of the hub are read by the run
        apart = sources.held_out.examples if sources.held_out is not None else None
        _, _, partition = divide_rows(config, sources.dataset.examples, apart)
        alone = local_names(config, tuple(partition.clients), partition.labels)
        known = {*alone, *(partition.labels.get(client, client) for client in alone)}
        for client in mine:
            if client not in known:
                raise UsageError(
                    f"a comparison names local/{client}, and {client!r} trains alone in no run of {name!r}."
                    f"{did_you_mean(client, known)}",
                    hint=f"clients that train alone: {', '.join(sorted(known)[:12])}",
                )


def estimate_of(planned: Planned, folder: Path, note: Callable[[str], None] | None = None) -> Mapping[str, Any]:
    """The estimate of a run, as a mapping. Loads PyTorch."""
    from shepherd.experiment.checks import look_first
    from shepherd.experiment.estimate import plan_checked

    checked = look_first(planned.config(folder), note or (lambda _line: None), out=folder)
    found = plan_checked(checked)
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
