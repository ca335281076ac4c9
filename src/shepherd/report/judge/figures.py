"""Tables of judged pairs: differences, totals, orders, lengths, categories. Verdicts and wins are those of b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.report.page import Limits, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    count,
    digits,
    from_to,
    left_out,
    number,
    percent,
    shorten,
    signed,
    significant,
)

Judged = Mapping[str, Any]
"""The contents of judge.json (docs/judge.md)."""
CATEGORIES = "Difference per category"
NAME = 30
"""Most columns of an arm's name in the label of a pair."""


def label(pair: Judged) -> str:
    """A pair as the difference that its figures are: `b − a`."""
    return f"{shorten(str(pair['b']), NAME, middle=True)} − {shorten(str(pair['a']), NAME, middle=True)}"


def labels(pairs: Sequence[Judged]) -> list[str]:
    """The labels of pairs, numbered where two are the same: several judges, or several files of one pair."""
    names = [label(pair) for pair in pairs]
    return [f"{n}: {name}" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]


def short_labels(pairs: Sequence[Judged]) -> tuple[list[str], str]:
    """The names in which pairs differ where they have one arm in common, and a sentence that names it; else labels."""
    for side, other, words in (("b", "a", "{} minus each of these arms."), ("a", "b", "Each of these arms minus {}.")):
        common, names = {str(pair[side]) for pair in pairs}, [str(pair[other]) for pair in pairs]
        if len(common) == 1 and len(set(names)) == len(names):
            return names, words.format(shorten(common.pop(), 60, middle=True))
    return labels(pairs), ""


def differences(judged: Judged, limits: Limits) -> Table:
    """The mean difference of each pair with its interval, p, verdict, and what the design can see."""
    pairs = judged["pairs"]
    rows = [
        [
            name,
            count(pair["questions"]),
            count(pair["seeds"]),
            signed(pair["difference"]),
            from_to(pair["ci95"]),
            significant(pair["p"], 2),
            significant(pair["holm_p"], 2),
            digits(pair["smallest_difference"]),
            pair["verdict"],
        ]
        for name, pair in zip(labels(pairs), pairs, strict=True)
    ]
    margin = number(judged.get("margin"))
    note = (
        "Difference: mean over questions, in the judge's points. Interval and p: Student's t over "
        + ("questions and seeds" if any(pair["seeds"] > 1 for pair in pairs) else "questions")
        + "; Holm p: adjusted for all pairs of this table. Smallest: the true difference that this design finds with "
        "80 % power. Not distinguishable does not mean equal"
        + ("." if margin is None else f"; the margin of equality is {significant(margin)} points.")
    )
    columns = ("Pair", "Questions", "Seeds", "Difference", "95 % interval", "p", "Holm p", "Smallest", "First of pair")
    return Table(
        "Difference in points per question",
        columns,
        rows[: limits.rows],
        texts=(0, 8),
        note=note + left_out(len(rows), limits.rows, "pair"),
    )


def totals(judged: Judged, limits: Limits) -> Table:
    """Totals, relative scores, and questions won, lost and tied, in both orders where there are two."""
    pairs = judged["pairs"]
    rows = []
    for name, pair in zip(labels(pairs), pairs, strict=True):
        by_order = pair.get("by_order") or {}
        rows.append(
            [
                name,
                total(pair["total_b"]),
                total(pair["total_a"]),
                digits(pair["relative"]),
                between(pair["relative_ci95"]),
                _won(pair),
                *(_won(by_order[order]) if order in by_order else ABSENT for order in ("b_first", "a_first")),
            ]
        )
    columns = (
        "Pair", "Total", "Total of the other", "Relative score", "95 % interval", "Won/lost/tied", "Shown first",
        "Shown second",
    )  # fmt: skip
    table = Table(
        "Totals, and questions won",
        columns,
        rows[: limits.rows],
        note="Relative score: a ratio of sums. Won, lost and tied: questions, of the first of a pair; where it was "
        "shown first and second, also in each order alone." + left_out(len(rows), limits.rows, "pair"),
    )
    return without_empty(table)


def orders(judged: Judged, limits: Limits) -> Table | None:
    """What the answer shown first gains, and the verdicts that turn; None where no pair was shown in both orders.

    Two recordings of one pair, one in each order, have a row with the difference of both and its verdict."""
    pairs = judged["pairs"]
    known = [(name, pair) for name, pair in zip(labels(pairs), pairs, strict=True) if pair["orders"] == 2]
    joint = [(f"{label(both)}, both files", both["both"]) for both in judged["orders"] if both["both"]]
    rows = []
    for name, pair in (*known, *joint):
        if pair["first_gain"] is not None:
            shares = (percent(pair["same_verdict"]), percent(pair["reversed_verdict"]))
            rows.append([name, signed(pair["first_gain"]), from_to(pair["first_gain_ci95"]), *shares])
            if joint:
                whole = (name, pair) in joint
                figures = (signed(pair["difference"]), from_to(pair["ci95"]), significant(pair["holm_p"], 2))
                rows[-1] += [*figures, pair["verdict"]] if whole else [ABSENT] * 4
    if not rows:
        return None
    more = ("Difference of both", "95 % interval", "Holm p", "First of pair") if joint else ()
    return Table(
        "Effect of order",
        ("Pair", "First gains", "95 % interval", "Same verdict", "Winner turns", *more),
        rows[: limits.rows],
        texts=(0, 8) if joint else (0,),
        note="First gains: points that an answer has more when it is shown first. Winner turns: questions that one "
        "answer wins in one order and the other in the other." + left_out(len(rows), limits.rows, "pair"),
    )


def lengths(judged: Judged, limits: Limits) -> Table | None:
    """Mean lengths, and the difference at equal lengths; None where no length is recorded."""
    pairs = judged["pairs"]
    rows = [
        [
            name,
            count(round(found["mean_b"])),
            count(round(found["mean_a"])),
            percent(found["b_longer"], 0),
            signed(pair["difference"]),
            signed(found["controlled"]),
            from_to(found["controlled_ci95"]),
            significant(found["controlled_p"], 2),
        ]
        for name, pair in zip(labels(pairs), pairs, strict=True)
        if (found := pair["lengths"])
    ]
    if not rows:
        return None
    return Table(
        "Lengths of answers",
        ("Pair", "Characters", "Of the other", "Longer", "Difference", "At equal lengths", "95 % interval", "p"),
        rows[: limits.rows],
        note="At equal lengths: by a regression on the tanh of the standardised difference in length (Dubois et al., "
        "2024), linear in points. Where one is longer on nearly all questions, that is an extrapolation."
        + left_out(len(rows), limits.rows, "pair"),
    )


def categories(judged: Judged, limits: Limits) -> Table | None:
    """The difference in each category, without adjustment; None where no category is recorded."""
    pairs = judged["pairs"]
    rows = [
        [
            name,
            str(found["category"]) or ABSENT,
            count(found["questions"]),
            signed(found["difference"]),
            from_to(found["ci95"]),
            significant(found["p"], 2),
            _won(found),
        ]
        for name, pair in zip(labels(pairs), pairs, strict=True)
        for found in pair["categories"]
    ]
    if not rows:
        return None
    return Table(
        CATEGORIES,
        ("Pair", "Category", "Questions", "Difference", "95 % interval", "p", "Won/lost/tied"),
        rows[: limits.rows],
        texts=(0, 1),
        note="p is not adjusted: of many categories some look different by chance."
        + left_out(len(rows), limits.rows, "row"),
    )


def total(points: float) -> str:
    """A sum of points with all its digits."""
    return f"{points:,.10g}"


def between(interval: Sequence[float] | None) -> str:
    """An interval of ratios."""
    return f"{digits(interval[0])} to {digits(interval[1])}" if interval else ABSENT


def _won(found: Judged) -> str:
    return f"{found['wins']}/{found['losses']}/{found['ties']}"
