"""How a pair of answers is judged: a prompt and the reading of its last line.

    fedit       both answers are rated from 1 to 10; ratings are summed over questions (after FedIT and Vicuna, 2023)
    pairwise    one verdict: A, B or a tie

FedIT (Zhang et al., 2023, arXiv 2305.05644) published neither its prompt nor its 20 questions: both are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shepherd.evaluation.judge import parsing
from shepherd.evaluation.judge.calls.prompts import FEDIT, PAIRWISE, Prompt
from shepherd.evaluation.judge.calls.record import Call
from shepherd.rng import stream

Points = tuple[float, float]


@dataclass(frozen=True)
class Protocol:
    """read: the points of the answer shown first and of the second, None for a text without its line."""

    name: str
    prompt: Prompt
    read: Callable[[str], Points | None]


PROTOCOLS: Mapping[str, Protocol] = {
    "fedit": Protocol("fedit", FEDIT, parsing.own_scores),
    "pairwise": Protocol("pairwise", PAIRWISE, parsing.own_points),
}


def reading_of(call: Call) -> Points | None:
    """The points of the answer shown first and of the second; None for a text that nobody can read.

    A text that ended at the limit of tokens within its last line is not read: `SCORES: 8 1` may be the start of 8 10.
    """
    within = call.finish == "length" and not call.text[-1:].isspace()
    return None if call.outcome != "answered" or within else PROTOCOLS[call.protocol].read(call.text)


FEDIT20_SEED = 20
FEDIT20 = (3, 4, 6, 11, 15, 20, 24, 26, 29, 31, 33, 35, 37, 39, 49, 57, 64, 69, 76, 77)
"""20 of the 80 Vicuna questions (question_id from 1 to 80), drawn with `FEDIT20_SEED`. Not those of the paper."""


def drawn(seed: int = FEDIT20_SEED, of: int = 80, count: int = 20) -> tuple[int, ...]:
    """Ids of a list of questions, in order: the first `count` of a permutation in the stream ("judge", "questions")."""
    return tuple(sorted(int(place) + 1 for place in stream(seed, "judge", "questions").permutation(of)[:count]))
