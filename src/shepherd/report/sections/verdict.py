"""Verdict of a run: sentences about federated against the other arms, the most important first.

"Better" and "worse" need a 95 % interval that excludes 0; counts of clients on their own rows do not.
"""

from __future__ import annotations

from shepherd.arms import Arm
from shepherd.report.arms import rivals
from shepherd.report.findings import (
    INTERVAL,
    Difference,
    against_best,
    arms,
    best_and_worst_local,
    difference,
    generation_difference,
    local_arms,
    measured,
    own_rows,
    some_alone,
    trained_alone,
)
from shepherd.report.load import RunRecord
from shepherd.report.metrics import DEFAULT, main_metric
from shepherd.report.wording import digits, listing, number, percent, plural, shorten, signed

NAMED = 3
"""Most clients that the headline names; the section Per client has all."""


def verdict(record: RunRecord) -> list[str]:
    """Sentences supported by the numbers, the most important first."""
    losses = {arm.key: arm.loss for arm in arms(record)}
    if record.state == "unfinished":
        done, planned = len(record.rounds), record.setting("federation", "rounds", "?")
        after = ", but the steps after the last round are missing" if done == planned else ""
        text = f"This run is unfinished: {done} of {planned} rounds are committed{after}."
        if losses.get("federated") is not None:
            text += f" The last measured held-out loss of the federated model is {digits(losses['federated'])}."
        return [text, "shepherd resume continues a stopped run."]
    if losses.get("federated") is None:
        missing = "no held-out loss of the federated model" if "federated" in losses else "no federated arm"
        return [f"This run has {missing}, so it does not show what federation gains."]
    sentences = []
    ends, alone = best_and_worst_local(record), len(local_arms(record))
    if ends:
        some = f"{trained_alone(record)} that trained alone" if some_alone(record) else ""
        who = f"the {some or 'client that trained alone'}"
        if alone > 1:
            who = f"the mean of the {some or 'clients that trained alone'}"
        sentences.append(_compare(difference(record, "federated", "local"), who))
        sentences += _own_rows(record)
        if alone > 1:
            which = f"the best of the {some}" if some else "the best client alone"
            sentences.append(_against_best(against_best(record), which))
    else:
        sentences.append("No client was trained alone in this run, so it does not show whether federation pays.")
    others = rivals(measured(record))
    base = others.pop("base")
    for arm in (*(arm for name, arm in others.items() if name != "local"), base):
        if found := difference(record, "federated", arm.name):
            sentences.append(_compare(found, arm.rival) + _kept(record, arm))
    return sentences + _answers(record)


def _compare(d: Difference | None, other: str) -> str:
    if d is None:
        return f"Federated was not compared with {other}."
    if d.interval is None:
        without = f"no interval can be given, as {d.reason}" if d.reason else "no interval was computed"
        if d.value == 0:
            return f"Federated and {other} have the same held-out loss; {without}."
        word = "lower" if d.value < 0 else "higher"
        return (
            f"Federated has a {word} held-out loss than {other}, by {digits(abs(d.value))} nats per token; {without}, "
            "so this may be chance."
        )
    low, high = d.interval
    if not d.distinguishable:
        return (
            f"The difference between federated and {other} is too small to tell: {signed(d.value)} nats per token, "
            f"and the {INTERVAL} {signed(low)} to {signed(high)} includes 0."
        )
    word = "better" if d.value < 0 else "worse"
    return (
        f"Federated is {word} than {other}: {signed(d.value)} nats per token ({INTERVAL} {signed(low)} to "
        f"{signed(high)})."
    )


def _against_best(d: Difference | None, which: str) -> str:
    if d is None:
        return _compare(d, which)
    names = " or ".join(shorten(client, 60, middle=True) for client in d.clients)
    how = "chosen on the same rows, which favours it" if d.same_rows else "chosen on the other half of the rows"
    return _compare(d, f"{which} ({names}, {how})")


def _own_rows(record: RunRecord) -> list[str]:
    """Counts of clients that do better and worse than alone on their own held-out rows; empty without measurements.

    Own rows are those of a client's categories, or of its sources where the partition is by source.
    """
    own = own_rows(record)
    if not own:
        return []
    better, worse = [c for c, d in own.items() if d.value < 0], [c for c, d in own.items() if d.value > 0]
    equal = len(own) - len(better) - len(worse)
    named = f" ({listing([shorten(c, 32, middle=True) for c in worse])})" if 0 < len(worse) <= NAMED else ""
    who = plural(len(own), "client")
    if some_alone(record):
        who = f"the clients that trained alone ({trained_alone(record)})"
    text = (
        f"On their own held-out rows {len(better) or 'none'} of {who} "
        f"{_do(len(better))} better with the federated model than alone, and "
        f"{len(worse) or 'none'} {_do(len(worse))} worse{named}"
        + (f"; {equal} {_do(equal)} equally well" if equal else "")
    )
    clear = [d for d in own.values() if d.distinguishable]
    if not any(d.interval for d in own.values()):
        return [f"{text}; no intervals were computed for single clients."]
    if not clear:
        return [f"{text}; for every single client the difference is too small to tell."]
    sure = f"{sum(d.value < 0 for d in clear)} better and {sum(d.value > 0 for d in clear)} worse"
    rest = len(own) - len(clear)
    return [
        f"{text}. The {INTERVAL} excludes 0 for {sure}"
        + (f"; for the other {rest} the difference is too small to tell." if rest else ".")
    ]


def _do(count: int) -> str:
    return "do" if count > 1 else "does"


def _answers(record: RunRecord) -> list[str]:
    """A caveat where the generated answers score worse than those of the base by the main metric; else empty."""
    found, metric = {arm.key: arm.generation or {} for arm in arms(record)}, main_metric(record)
    ours, theirs = (number(found.get(key, {}).get(metric.key)) for key in ("federated", "base"))
    if ours is None or theirs is None or not metric.worse(ours, theirs):
        return []
    rows = number(found["federated"].get("rows"))
    how = "are further from the references" if metric.key in DEFAULT else "score worse"
    text = (
        f"The generated answers of federated {how} than those of base: {metric.label} "
        f"{metric.shown(ours)} against {metric.shown(theirs)}" + (f" over {plural(int(rows), 'row')}" if rows else "")
    )
    d = generation_difference(record, metric.key, "federated", "base")
    if d is None or d.interval is None:
        return [f"{text}, without an interval."]
    ends = f"{INTERVAL} of the difference {metric.between(*d.interval)}"
    return [f"{text} ({ends}{'' if d.distinguishable else ', which includes 0: too few answers to tell'})."]


def _kept(record: RunRecord, arm: Arm) -> str:
    """The share of an arm's gain over base; empty unless federated and this arm are distinguishable from base."""
    base = difference(record, "federated", "base")
    pooled = difference(record, arm.name, "base")
    if (
        not arm.gain
        or not base
        or not base.distinguishable
        or base.value >= 0
        or not pooled
        or not pooled.distinguishable
        or pooled.value >= 0
    ):
        return ""
    return f" It reaches {percent(base.value / pooled.value, 0)} of the gain of {arm.gain} over the base model."
