"""`shepherd judge`: what recorded judgements say about pairs of systems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.errors import UsageError


@click.command()
@click.option("--replay", "first", required=True, multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="Files of recorded judgements; their format is recognised.")  # fmt: skip
@click.argument("more", nargs=-1, metavar="[FILE…]", type=click.Path(path_type=Path))
@click.option("--margin", type=click.FloatRange(min=0, min_open=True), metavar="POINTS",
              help="Mean difference below which two systems count as equal; name it before you look.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def judge(first: tuple[Path, ...], more: tuple[Path, ...], margin: float | None, as_json: bool) -> None:
    """Compare systems by recorded judgements of their answers.

    Reads the ratings and verdicts that a judge gave earlier, one pair of systems per FILE: FastChat's reviews, QLoRA's
    ratings, AlpacaEval's annotations, LLMBar's results. Prints totals, the relative score b / a, the mean difference
    b - a with a 95 % interval, and a verdict on b. It calls no judge: answers of your runs cannot be judged
    yet."""
    if margin is not None and not math.isfinite(margin):
        raise UsageError(f"--margin {margin} is not a number of points", hint="for example --margin 0.25")
    from shepherd.evaluation.judge import pairs, replay

    found = pairs.summarise([one for file in (*first, *more) for one in replay.read_pairs(file)], margin)
    if as_json:
        output.print_json(found)
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    from shepherd.report.wording import digits, from_to, signed, significant

    pairs = found["pairs"]
    for number, pair in enumerate(pairs, 1):
        click.echo(f"{number}  {output.clean(str(pair['file']))} ({pair['format']})")
        click.echo(f"   a {output.clean(pair['a'])}, b {output.clean(pair['b'])}")
    click.echo()
    output.print_table(
        ("", "questions", "total a", "total b", "b / a", "95 %", "b - a", "95 %", "Holm p", "b won/lost/tied",
         "verdict on b"),
        [
            (number, pair["questions"], _total(pair["total_a"]), _total(pair["total_b"]), digits(pair["relative"]),
             _between(pair["relative_ci95"]), signed(pair["difference"]), from_to(pair["ci95"]),
             significant(pair["holm_p"]), f"{pair['wins']}/{pair['losses']}/{pair['ties']}", pair["verdict"])
            for number, pair in enumerate(pairs, 1)
        ],
        right=range(9),
    )  # fmt: skip
    click.echo()
    for line in _notes(found):
        click.echo(output.clean(line))


def _total(points: float) -> str:
    return f"{points:,.10g}"


def _between(interval: tuple[float, float] | None) -> str:
    from shepherd.report.wording import digits

    return f"{digits(interval[0])} to {digits(interval[1])}" if interval else "n/a"


def _notes(found: Mapping[str, Any]) -> Sequence[str]:
    from shepherd.report.wording import digits, from_to, percent, signed

    lines = []
    for number, pair in enumerate(found["pairs"], 1):
        parts = []
        if pair["left_out"]:
            parts.append(f"{pair['left_out']} of {pair['judgements']} judgements without a score are left out")
        if pair["unparsed"]:
            parts.append(
                f"{pair['unparsed']} of {pair['texts']} texts are unparsed; a recorded score counts all the same"
            )
        if pair["disagreements"]:
            parts.append(f"{pair['disagreements']} recorded scores differ from their texts")
        if pair["smallest_difference"] is None:
            parts.append("no interval: a single question" if pair["questions"] == 1 else
                         "no interval: the difference is the same on every question")  # fmt: skip
        else:
            parts.append(f"smallest difference seen with 80 % power: {digits(pair['smallest_difference'])} points")
        if "win_rate" in pair:
            parts.append(f"b wins {percent(pair['win_rate'] / 100)}")
        if pair.get("first_gain") is not None:
            parts.append(f"the answer shown first gains {signed(pair['first_gain'])} points "
                         f"(95 %: {from_to(pair['first_gain_ci95'])})")  # fmt: skip
        if right := pair.get("right"):
            parts.append(f"right in both orders: {right['both']} of {right['pairs']}")
        lines.append(f"{number}: {'; '.join(parts)}.")
    for both in found["orders"]:
        lines.append(f"{both['files'][0]} and {both['files'][1]} show one pair in both orders: b / a is "
                     f"{digits(both['relative_b_second'])} with b second, {digits(both['relative_b_first'])} with b "
                     f"first ({signed(both['shift'])}).")  # fmt: skip
    both_ways = {file for both in found["orders"] for file in both["files"]}
    if alone := [n for n, p in enumerate(found["pairs"], 1) if p["orders"] == 1 and p["file"] not in both_ways]:
        lines.append(f"One order only: {', '.join(map(str, alone))}. A judge favours the answer that it is shown "
                     "first; give the recording of the other order too.")  # fmt: skip
    if any(pair["seeds"] == 1 for pair in found["pairs"]):
        lines.append("The verdicts hold for this training; other seeds may turn them.")
    return lines
