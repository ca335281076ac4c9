"""What a design can see, before anything is paid for: power and the smallest difference.

    smallest_difference(*planned(questions=80, seeds=3, sd=1.54, seed_sd=0.3))    # points per question

From the noncentral t distribution. Scores of real judges are skewed and end at 10, so that small designs see less: with
20 questions the smallest difference is about 7 to 10 % larger than the one computed here.
"""

from __future__ import annotations

import math

POWER = 0.8
LEVEL = 0.05


def planned(
    questions: int, seeds: int, sd: float, *, seed_sd: float = 0.0, question_share: float = 0.7
) -> tuple[float, float]:
    """Standard error and Satterthwaite's degrees of freedom of a design.

    sd: of the difference on one question under one seed; question_share: part of that variance that stays when the
    seed changes (0.7 between retrained models under GPT-4). seed_sd: of the mean difference between seeds.
    """
    if questions < 2 or seeds < 1:
        raise ValueError("a design has at least two questions and one seed")
    of_questions = sd**2 * (question_share + (1 - question_share) / seeds) / questions
    of_seeds = seed_sd**2 / seeds
    if seeds == 1:  # the interval of one seed does not contain what other seeds would add
        return math.sqrt(of_questions), questions - 1.0
    variance = of_questions + of_seeds
    degrees = variance**2 / (of_questions**2 / (questions - 1) + of_seeds**2 / (seeds - 1))
    return math.sqrt(variance), degrees


def power(difference: float, stderr: float, degrees: float) -> float:
    """The probability that a true difference is found at 5 %, two-sided, with the right sign."""
    from scipy.special import nctdtr, stdtrit

    return float(1 - nctdtr(degrees, abs(difference) / stderr, stdtrit(degrees, 1 - LEVEL / 2)))


def smallest_difference(stderr: float, degrees: float, wanted: float = POWER) -> float:
    """The true difference that is found at 5 %, two-sided, with this power."""
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(degrees, 1 - wanted, stdtrit(degrees, 1 - LEVEL / 2))) * stderr
