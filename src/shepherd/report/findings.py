"""What the numbers of a run say: arms, differences and the sentences of the headline. Pure functions of a RunRecord.

Loss is in nats per response token on held-out rows; lower is better. A difference is a − b. "Better" and "worse"
are said only when the 95 % interval leaves out 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from shepherd.report.load import RunRecord
from shepherd.report.wording import digits, number, percent, plural, shorten, signed

ARMS = ("base", "local", "federated", "centralised")
INTERVAL = "95\N{NO-BREAK SPACE}% interval"
ARM_NAMES = {
    "base": "Base model",
    "local": "Each client alone",
    "federated": "Federated",
    "centralised": "Centralised",
}


@dataclass(frozen=True)
class Arm:
    """One arm on all held-out rows. For "local" the numbers are means over clients; perplexity is exp(loss)."""

    key: str
    loss: float | None
    perplexity: float | None
    token_accuracy: float | None
    stderr: float | None = None
    generation: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        return ARM_NAMES[self.key]


@dataclass(frozen=True)
class Difference:
    """Loss of `a` minus loss of `b`, with its 95 % interval where one was computed."""

    a: str
    b: str
    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def distinguishable(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def label(self) -> str:
        return f"{_plain(self.a)} {chr(0x2212)} {_plain(self.b)}"


def measured(record: RunRecord) -> Mapping[str, Any]:
    """The arms as measured at the end; of a run that has not ended, the federated loss of the last evaluated round."""
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
    """The clients that trained alone, by name, sorted."""
    return dict(sorted((measured(record).get("local") or {}).items()))


def arms(record: RunRecord) -> list[Arm]:
    """The arms that this run has, in the order base, local, federated, centralised."""
    found = []
    for key in ARMS:
        value = measured(record).get(key)
        if not value:
            continue
        if key == "local":
            each = list(value.values())
            loss = mean_of(v.get("loss") for v in each)
            found.append(Arm(key, loss, _exp(loss), mean_of(v.get("token_accuracy") for v in each)))
            continue
        loss = number(value.get("loss"))
        perplexity = number(value.get("perplexity"))
        found.append(
            Arm(
                key,
                loss,
                _exp(loss) if perplexity is None else perplexity,
                number(value.get("token_accuracy")),
                number(value.get("stderr")),
                value.get("generation"),
            )
        )
    return found


def trained_alone(record: RunRecord) -> str:
    """How many clients trained alone: "8 clients", or "3 of 100 clients" where that is not all of them."""
    alone = len(local_arms(record))
    clients = int(number(record.summary.get("clients")) or len(record.partition.get("clients") or ()))
    return f"{alone:,} of {plural(clients, 'client')}" if alone < clients else plural(alone, "client")


def some_alone(record: RunRecord) -> bool:
    """Whether some clients trained alone, and not all: their mean and their best are not those of all clients."""
    return bool(local_arms(record)) and " of " in trained_alone(record)


def best_and_worst_local(record: RunRecord) -> tuple[str, str] | None:
    """The clients that alone reach the lowest and the highest loss on all held-out rows."""
    losses = {c: loss for c, v in local_arms(record).items() if (loss := number(v.get("loss"))) is not None}
    if not losses:
        return None
    order = sorted(losses, key=lambda c: (losses[c], c))
    return order[0], order[-1]


def difference(record: RunRecord, a: str, b: str) -> Difference | None:
    """Loss of a − b; arms are "base", "federated", "centralised", "local" (mean over clients) and "local:<client>".

    Taken from the measured differences, with the sign turned when they hold b − a. Without an entry it is the
    difference of the two losses, without an interval.
    """
    for given in differences(record):
        if (given.a, given.b) == (a, b):
            return given
        if (given.a, given.b) == (b, a):
            turned = given.interval and (-given.interval[1], -given.interval[0])
            return Difference(a, b, -given.value, turned, given.p)
    left, right = _loss(record, a), _loss(record, b)
    return None if left is None or right is None else Difference(a, b, left - right)


def differences(record: RunRecord) -> list[Difference]:
    """The differences that the run measured, as they stand in evaluation/metrics.json."""
    found = []
    for entry in record.metrics.get("differences") or ():
        value = number(entry.get("difference"))
        if value is None:
            continue
        ends = [number(end) for end in entry.get("ci95") or ()]
        interval = (min(ends), max(ends)) if len(ends) == 2 and None not in ends else None
        found.append(Difference(_arm_name(entry["a"]), _arm_name(entry["b"]), value, interval, number(entry.get("p"))))
    return found


def headline_differences(record: RunRecord) -> list[Difference]:
    """Federated against base, mean client alone, best client alone and centralised, as far as the run has them."""
    ends = best_and_worst_local(record)
    others = ["base", "local", *([f"local:{ends[0]}"] if ends and len(local_arms(record)) > 1 else []), "centralised"]
    return [d for other in others if (d := difference(record, "federated", other)) is not None]


def verdict(record: RunRecord) -> list[str]:
    """Sentences that the numbers allow, the most important first."""
    losses = {arm.key: arm.loss for arm in arms(record)}
    if record.state == "unfinished":
        done, planned = len(record.rounds), record.setting("federation", "rounds", "?")
        after = ", but not all that follows them" if done == planned else ""
        text = f"This run has not ended: {done} of {planned} rounds are committed{after}."
        if losses.get("federated") is not None:
            text += f" The federated model's held-out loss was {digits(losses['federated'])} when last measured."
        return [text, "shepherd resume goes on with a run that was stopped."]
    if losses.get("federated") is None:
        return ["The federated arm was not part of this run, so nothing is said about what federation brings."]
    sentences = []
    ends, alone = best_and_worst_local(record), len(local_arms(record))
    if ends:
        some = f"{trained_alone(record)} that trained alone" if some_alone(record) else ""
        who = f"the {some or 'client that trained alone'}"
        if alone > 1:
            who = f"the mean of the {some or 'clients that trained alone'}"
        sentences.append(_compare(difference(record, "federated", "local"), who))
        if alone > 1:
            which = f"the best of the {some}" if some else "the best client alone"
            best = difference(record, "federated", f"local:{ends[0]}")
            sentences.append(_compare(best, f"{which} ({shorten(ends[0], 60, middle=True)})"))
    else:
        sentences.append("No client was trained alone in this run, so it does not show whether federating pays.")
    centralised = difference(record, "federated", "centralised")
    if centralised:
        sentences.append(_compare(centralised, "pooling all data (centralised)") + _kept(record))
    base = difference(record, "federated", "base")
    if base:
        sentences.append(_compare(base, "the untuned base model"))
    return sentences


def mean_of(values: Any) -> float | None:
    """The mean of the values that are numbers, or None when none is."""
    known = [v for value in values if (v := number(value)) is not None]
    return fmean(known) if known else None


def gap(a: float | None, b: float | None) -> float | None:
    """a − b, or None when one of them is missing."""
    return None if a is None or b is None else a - b


def rows_held(record: RunRecord) -> dict[str, dict[str, int]]:
    """Training rows by client and category, as the partition table says."""
    table = record.partition.get("table") or {}
    lines = zip(table.get("clients") or (), table.get("counts") or (), strict=False)
    return {c: dict(zip(table.get("categories") or (), line, strict=False)) for c, line in lines}


def _compare(d: Difference | None, other: str) -> str:
    if d is None:
        return f"Federated was not compared with {other}."
    if d.interval is None:
        word = "lower" if d.value < 0 else "higher"
        return (
            f"Federated has a {word} held-out loss than {other}, by {digits(abs(d.value))} nats per token; no interval "
            "was computed, so this may be chance."
        )
    low, high = d.interval
    if not d.distinguishable:
        return (
            f"Federated is not distinguishable from {other}: the difference of {signed(d.value)} nats per token has "
            f"the {INTERVAL} {signed(low)} to {signed(high)}, which includes 0."
        )
    word = "better" if d.value < 0 else "worse"
    near, far = sorted((abs(low), abs(high)))
    sized = f"{digits(abs(d.value))} nats per token ({INTERVAL} {digits(near)} to {digits(far)})"
    return f"Federated is {word} than {other}, by {sized}."


def _kept(record: RunRecord) -> str:
    """How much of the gain of pooling is kept; said only when federated is distinguishable from base."""
    base = difference(record, "federated", "base")
    pooled = difference(record, "centralised", "base")
    if (
        not base
        or not base.distinguishable
        or base.value >= 0
        or not pooled
        or not pooled.distinguishable
        or pooled.value >= 0
    ):
        return ""
    return f" It reaches {percent(base.value / pooled.value, 0)} of the gain that pooling brings over the base model."


def _loss(record: RunRecord, name: str) -> float | None:
    if name.startswith("local:"):
        return number(local_arms(record).get(name.removeprefix("local:"), {}).get("loss"))
    return next((arm.loss for arm in arms(record) if arm.key == name), None)


def _arm_name(name: str) -> str:
    return "local" if name in ("local", "local mean", "local_mean", "mean local") else name


def _plain(name: str) -> str:
    return "mean alone" if name == "local" else f"{name.removeprefix('local:')} alone" if ":" in name else name


def _exp(loss: float | None) -> float | None:
    return None if loss is None or loss > 700 else math.exp(loss)
