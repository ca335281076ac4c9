"""`shepherd judge`: what recorded judgements say about pairs of systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shepherd.cli import judged


@click.command()
@click.option("--replay", "first", required=True, multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="Files of recorded judgements; their format is recognised.")  # fmt: skip
@click.argument("more", nargs=-1, metavar="[FILE…]", type=click.Path(path_type=Path))
@judged.options
def judge(first: tuple[Path, ...], more: tuple[Path, ...], **given: Any) -> None:
    """Compare systems by recorded judgements of their answers.

    Reads the ratings and verdicts that a judge gave earlier, one pair of systems per FILE: FastChat's reviews, QLoRA's
    ratings, AlpacaEval's annotations, LLMBar's results. Prints totals, the relative score b / a, the mean difference
    b - a with a 95 % interval, and a verdict on b. It calls no judge: answers of your runs cannot be judged
    yet."""
    from shepherd.evaluation.judge import replay

    judged.show([one for file in (*first, *more) for one in replay.read_pairs(file)], given)
