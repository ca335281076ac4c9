"""Arms and differences of a run: pure functions of a RunRecord.

Loss is in nats per response token on held-out rows; lower is better. A difference is a − b: a negative one favours a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from shepherd.arms import Arm
from shepherd.report.arms import every_arm, rivals
from shepherd.report.load import RunRecord
from shepherd.report.wording import listing, number, plural

INTERVAL = "95\N{NO-BREAK SPACE}% interval"
BEST = "local best"
"""The best of the clients that trained alone, in the differences of metrics.json."""


@dataclass(frozen=True)
class Result:
    """One arm on all held-out rows. With one model per client the numbers are means, and perplexity is exp(loss)."""

    arm: Arm
    loss: float | None
    perplexity: float | None
    token_accuracy: float | None
    stderr: float | None = None
    generation: Mapping[str, float] | None = None

    @property
    def key(self) -> str:
        return self.arm.name

    @property
    def title(self) -> str:
        return self.arm.title


@dataclass(frozen=True)
class Difference:
    """Loss of `a` minus loss of `b`, with its 95 % interval, or the reason for its absence.

    rows, and their effective number given unequal lengths, are None where the run did not record them. clients: those
    that the best client stands for; same_rows: it was chosen on the rows of the comparison, which favours it.
    """

    a: str
    b: str
    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    reason: str = ""
    bootstrap: tuple[float, float] | None = None
    rows: int | None = None
    effective_rows: float | None = None
    clients: tuple[str, ...] = ()
    same_rows: bool = False

    @property
    def distinguishable(self) -> bool:
        return self.interval is not None and not _holds_zero(self.interval)

    @property
    def doubted(self) -> bool:
        """Whether interval and bootstrap disagree about including 0."""
        if self.interval is None or self.bootstrap is None:
            return False
        return _holds_zero(self.interval) != _holds_zero(self.bootstrap)

    @property
    def label(self) -> str:
        named = f" ({listing(list(self.clients))})" if self.clients else ""
        return f"{plain_name(self.a)} {chr(0x2212)} {plain_name(self.b)}{named}"


def measured(record: RunRecord) -> Mapping[str, Any]:
    """The arms as measured at the end; of an unfinished run, the federated loss of the last evaluated round."""
    arms = record.metrics.get("arms") or record.summary.get("arms") or {}
    if arms or not record.rounds:
        return arms
    for line in reversed(record.rounds):
        if (loss := number(line.get("held_out_loss"))) is not None:
            parts = {part: line.get(f"held_out_{part}") or {} for part in ("per_category", "per_client")}
            named = {part: {name: {"loss": v} for name, v in values.items()} for part, values in parts.items()}
            return {"federated": {"loss": loss, **named}}
    return {}


def local_arms(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """The arms of clients that trained alone, by name, sorted."""
    return dict(sorted((measured(record).get("local") or {}).items()))


def arms(record: RunRecord) -> list[Result]:
    """The arms of a run, in their order."""
    found, values = [], measured(record)
    for key, arm in every_arm(values).items():
        value = values.get(key)
        if not value or not isinstance(value, Mapping):
            continue
        if each := models_of(arm, value):
            loss = mean_of(v.get("loss") for v in each)
            found.append(Result(arm, loss, _exp(loss), mean_of(v.get("token_accuracy") for v in each)))
            continue
        loss = number(value.get("loss"))
        perplexity = number(value.get("perplexity"))
        found.append(
            Result(
                arm,
                loss,
                _exp(loss) if perplexity is None else perplexity,
                number(value.get("token_accuracy")),
                number(value.get("stderr")),
                value.get("generation"),
            )
        )
    return found


def models_of(arm: Arm, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was measured of each model of an arm that has one per client; empty for an arm of one model.

    An arm that is not registered here has one per client where its entry has no loss and a table for each.
    """
    each = list(value.values())
    by_shape = "loss" not in value and all(isinstance(v, Mapping) and "loss" in v for v in each)
    return each if arm.per_client or by_shape else []


def trained_alone(record: RunRecord) -> str:
    """The number of clients that trained alone: "8 clients", or "3 of 100 clients" where that is not all."""
    alone = len(local_arms(record))
    clients = int(number(record.summary.get("clients")) or len(record.partition.get("clients") or ()))
    return f"{alone:,} of {plural(clients, 'client')}" if alone < clients else plural(alone, "client")


def some_alone(record: RunRecord) -> bool:
    """Whether only some clients trained alone: their mean and best are not those of all clients."""
    return bool(local_arms(record)) and " of " in trained_alone(record)


def best_and_worst_local(record: RunRecord) -> tuple[str, str] | None:
    """The clients whose local models have the lowest and the highest loss on all held-out rows."""
    losses = {c: loss for c, v in local_arms(record).items() if (loss := number(v.get("loss"))) is not None}
    if not losses:
        return None
    order = sorted(losses, key=lambda c: (losses[c], c))
    return order[0], order[-1]


def difference(record: RunRecord, a: str, b: str) -> Difference | None:
    """Loss of a − b; an arm by its name ("local" is the mean over clients), or "local:<client>".

    From the measured differences, negated where they hold b − a; else the difference of the two losses, without an
    interval.
    """
    for given in differences(record):
        if (given.a, given.b) == (a, b):
            return given
        if (given.a, given.b) == (b, a):
            interval, bootstrap = (ends and (-ends[1], -ends[0]) for ends in (given.interval, given.bootstrap))
            return replace(given, a=a, b=b, value=-given.value, interval=interval, bootstrap=bootstrap)
    left, right = _loss(record, a), _loss(record, b)
    return None if left is None or right is None else Difference(a, b, left - right)


def differences(record: RunRecord) -> list[Difference]:
    """The measured differences of evaluation/metrics.json."""
    entries = record.metrics.get("differences") or ()
    found = (_difference(_arm_name(entry["a"]), _arm_name(entry["b"]), entry) for entry in entries)
    return [d for d in found if d]


def own_rows(record: RunRecord) -> dict[str, Difference]:
    """Federated − alone of each client that trained alone, on the held-out rows of its categories.

    Without intervals where the run did not record them.
    """
    given = record.metrics.get("own_rows")
    if given is None:
        federated = (measured(record).get("federated") or {}).get("per_client") or {}
        alone = {client: (arm.get("per_client") or {}).get(client) or {} for client, arm in local_arms(record).items()}
        gaps = {c: gap(number((federated.get(c) or {}).get("loss")), number(alone[c].get("loss"))) for c in alone}
        return {c: Difference("federated", f"local:{c}", value) for c, value in gaps.items() if value is not None}
    found = {client: _difference("federated", f"local:{client}", entry) for client, entry in sorted(given.items())}
    return {client: d for client, d in found.items() if d}


def generation_difference(record: RunRecord, metric: str, a: str, b: str) -> Difference | None:
    """The difference a − b of two arms in a metric of the generated answers."""
    for entry in record.metrics.get("generation_differences") or ():
        if (entry["metric"], entry["a"], entry["b"]) == (metric, a, b):
            return _difference(a, b, entry)
    return None


def against_best(record: RunRecord) -> Difference | None:
    """Federated − the best client alone, where several trained alone.

    Runs from before the choice was cross-fitted have that of the client with the lowest loss on all rows.
    """
    ends = best_and_worst_local(record)
    if not ends or len(local_arms(record)) < 2:
        return None
    if (found := difference(record, "federated", BEST)) is not None:
        return found
    found = difference(record, "federated", f"local:{ends[0]}")
    return found and replace(found, b=BEST, clients=(ends[0],), same_rows=True)


def headline_differences(record: RunRecord) -> list[Difference]:
    """Federated against every other arm and the best client alone, where the run has them."""
    found: list[Difference | None] = []
    for arm in rivals(measured(record)):
        found += [difference(record, "federated", arm), *([against_best(record)] if arm == "local" else [])]
    return [d for d in found if d is not None]


def mean_of(values: Any) -> float | None:
    """The mean of the values that are numbers; None without any."""
    known = [v for value in values if (v := number(value)) is not None]
    return fmean(known) if known else None


def gap(a: float | None, b: float | None) -> float | None:
    """a − b; None where either is missing."""
    return None if a is None or b is None else a - b


def rows_held(record: RunRecord) -> dict[str, dict[str, int]]:
    """Training rows by client and category, from the partition table."""
    table = record.partition.get("table") or {}
    lines = zip(table.get("clients") or (), table.get("counts") or (), strict=False)
    return {c: dict(zip(table.get("categories") or (), line, strict=False)) for c, line in lines}


def _difference(a: str, b: str, entry: Mapping[str, Any]) -> Difference | None:
    """The difference of an entry of metrics.json; None where it holds none."""
    value = number(entry.get("difference"))
    if value is None:
        return None
    interval, bootstrap = (_ends(entry.get(key)) for key in ("ci95", "bootstrap95"))
    rows = number(entry.get("rows"))
    return Difference(
        a, b, value, interval, number(entry.get("p")), str(entry.get("no_interval") or ""), bootstrap,
        None if rows is None else int(rows), number(entry.get("effective_rows")), tuple(entry.get("clients") or ()),
        bool(entry.get("same_rows")),
    )  # fmt: skip


def _ends(values: Any) -> tuple[float, float] | None:
    ends = [end for value in values or () if (end := number(value)) is not None]
    return (min(ends), max(ends)) if len(ends) == len(values or ()) == 2 else None


def _holds_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _loss(record: RunRecord, name: str) -> float | None:
    if name.startswith("local:"):
        return number(local_arms(record).get(name.removeprefix("local:"), {}).get("loss"))
    return next((arm.loss for arm in arms(record) if arm.key == name), None)


def _arm_name(name: str) -> str:
    """An arm by its name: the mean over an arm's clients stands for the arm."""
    return name.removesuffix(" mean")


def plain_name(name: str) -> str:
    """An arm or a client of one in words."""
    if name.startswith("local:"):
        return f"{name.removeprefix('local:')} alone"
    if name == BEST:
        return "best client alone"
    return every_arm([name])[name].label


def _exp(loss: float | None) -> float | None:
    return None if loss is None or loss > 700 else math.exp(loss)


def at_sites(record: RunRecord) -> bool:
    """Whether the rows of the run stay at its sites, and never were with the coordinator."""
    return record.setting("data", "source") == "sites:rows"
