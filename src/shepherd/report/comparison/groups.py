"""Groups of runs that differ in the seed alone: means and standard errors over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from shepherd.report import findings
from shepherd.report.arms import rivals
from shepherd.report.comparison.ranking import Losses
from shepherd.report.load import RunRecord
from shepherd.report.wording import (
    ABSENT,
    clean,
    listing,
    number,
    plural,
)

Estimate = tuple[float, float | None]
"""A mean over seeds and its standard error; None for one seed."""
Curve = tuple[tuple[float, float], ...]
"""(round, held-out loss) in order."""
ASIDE = frozenset(
    {
        "run.name",
        "run.out",
        "run.seed",
        "run.threads",
        "training.clients_at_once",
        "training.tokens_per_pass",
        "evaluation.keep_local",
    }
)
"""Settings in which runs of one group may differ: where and how fast a run went, not what it computed."""


@dataclass(frozen=True)
class Row:
    """One run. `losses` by arm ("local" is the mean over clients); `gaps`: federated minus another arm.

    rows_digest and tokens: identity of the held-out rows, and the number of their response tokens.
    """

    name: str
    model: str
    method: str
    seed: int
    clients: int | None
    rounds: int
    state: str
    losses: Mapping[str, float | None]
    gaps: Mapping[str, findings.Difference]
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None
    curve: Curve
    settings: Mapping[str, str]
    rows_digest: tuple[str, ...]
    tokens: int | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only: (mean, standard error or None) of the loss of each arm and of each gap.

    curve: the mean federated loss at the rounds that all of them measured. ranked: the federated loss of each finished
    run, by what makes losses comparable.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    losses: Mapping[str, Estimate]
    gaps: Mapping[str, Estimate]
    curve: Curve
    ranked: Losses = field(default_factory=dict)


def row_of(record: RunRecord) -> Row:
    """The row of a run in a comparison."""
    summary = record.summary
    gaps = {arm: findings.difference(record, "federated", arm) for arm in rivals(findings.measured(record))}
    given = (record.metrics.get("curves") or {}).get("federated")
    points = given or [(line["round"], line.get("held_out_loss")) for line in record.rounds]
    curve = [(float(x), y) for x, raw in points if (y := number(raw)) is not None]
    sent = {k: number(summary.get(k)) for k in ("bytes_up", "bytes_down")}
    if not summary:
        sent = {k: sum(number(line.get(k)) or 0 for line in record.rounds) for k in sent}
    return Row(
        name=record.name,
        model=str((summary.get("model") or {}).get("name") or record.setting("model", "base", ABSENT)),
        method=str(record.setting("federation", "method", ABSENT)),
        seed=record.seed,
        clients=summary.get("clients") or len(record.partition.get("clients") or ()) or None,
        rounds=len(record.rounds),
        state=record.state,
        losses={arm.key: arm.loss for arm in findings.arms(record)},
        gaps={arm: gap for arm, gap in gaps.items() if gap},
        bytes_up=sent["bytes_up"],
        bytes_down=sent["bytes_down"],
        seconds=number((summary.get("seconds") or {}).get("total")),
        curve=tuple(curve),
        settings={f"{t}.{k}": _setting(v) for t, values in record.config.items() for k, v in values.items()},
        rows_digest=_rows_digest(record),
        tokens=record.metrics.get("held_out_tokens"),
    )


def _rows_digest(record: RunRecord) -> tuple[str, ...]:
    """Identity of the held-out rows: by their contents, by their ids in the same data, or by the salted digests of the
    sites that have them."""
    if digest := record.identity.get("held_out"):
        return (digest,)
    if findings.at_sites(record):
        sites = record.summary.get("sites") or {}
        own = str(record.setting("data", "held_out_source") or "")
        return ("coordinator", own) if own else ("sites", *sorted(site["digest"] for site in sites.values()))
    return (str(record.partition.get("dataset_digest")), *sorted(record.partition.get("held_out") or ()))


def grouped(rows: Sequence[Row]) -> tuple[tuple[Group, ...], list[str]]:
    """Groups of rows with the same settings but the seed, and warnings about their seeds."""
    by_settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.model, row.state, *sorted((k, v) for k, v in row.settings.items() if k not in ASIDE))
        by_settings.setdefault(key, []).append(row)
    groups, warnings = [], []
    for members in by_settings.values():
        first: dict[int, Row] = {}
        for row in members:
            if row.seed in first:
                warnings.append(
                    f"{row.name} has the settings and the seed of {first[row.seed].name}: the mean excludes it."
                )
            first.setdefault(row.seed, row)
        groups.append(_group(members, first))
    if len({tuple(sorted(group.seeds)) for group in groups}) > 1:
        warnings.append("Not all settings were run with the same seeds: their means are over different seeds.")
    return tuple(groups), warnings


def _group(members: Sequence[Row], by_seed: Mapping[int, Row]) -> Group:
    """The group of these runs, whose means are over one run per seed."""
    counted = list(by_seed.values())
    more = f" and {plural(len(counted) - 1, 'more seed')}" if len(counted) > 1 else ""
    finished = ((row, number(row.losses.get("federated"))) for row in counted if row.state == "finished")
    return Group(
        counted[0].name + more,
        tuple(row.name for row in members),
        tuple(by_seed),
        _over_seeds([row.losses for row in counted]),
        _over_seeds([{k: gap.value for k, gap in row.gaps.items()} for row in counted]),
        _mean_curve([row.curve for row in counted]),
        {(row.seed, row.model, row.rows_digest, row.tokens): loss for row, loss in finished if loss is not None},
    )


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    known = [dict(curve) for curve in curves]
    return tuple((x, fmean(curve[x] for curve in known)) for x in sorted(set.intersection(*map(set, known))))


def _over_seeds(values: Sequence[Mapping[str, float | None]]) -> dict[str, Estimate]:
    """Mean and standard error by key, for keys that every seed has."""
    found: dict[str, Estimate] = {}
    for key in values[0]:
        known = [v for each in values if (v := number(each.get(key))) is not None]
        if len(known) == len(values):
            found[key] = (fmean(known), stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None)
    return found


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return listing([_setting(v) for v in value], 20)
    if isinstance(value, dict):
        return listing([f"{k} = {_setting(v)}" for k, v in value.items()], 20)
    return str(value).lower() if isinstance(value, bool) else clean(str(value))


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one occurs again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
