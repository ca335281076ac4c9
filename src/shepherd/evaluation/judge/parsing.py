"""Strict readings of a judge's text: one machine-readable line, or nothing.

    own_scores("… both are correct.\\nSCORES: 8 7.5")      # (8.0, 7.5)
    own_verdict("… B is more precise.\\nVERDICT: B")       # "b"
    first_line_scores("9 8.5\\nAssistant 1 gave …")        # (9.0, 8.5)

Only the one line that the prompt asks for is read. A search for numbers anywhere in a text finds those of the answers
too: in GPT-4's reviews of Vicuna's question 70, a system of equations, the solution (10, 4) looks like two scores.
"""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["a", "b", "tie"]
LOWEST, HIGHEST = 1, 10
"""The scale of a rating in our protocol."""

_NUMBER = r"([0-9]{1,2}(?:\.[0-9]+)?)"
_SCORES = re.compile(rf"{_NUMBER}(?: *, *| +){_NUMBER}")
_OWN_VERDICTS: dict[str, Verdict] = {"VERDICT: A": "a", "VERDICT: B": "b", "VERDICT: TIE": "tie"}
POINTS: dict[Verdict, tuple[float, float]] = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}
_CLASSES: dict[str, Verdict] = {"1": "a", "2": "b", "3": "tie"}
_OUTPUTS: dict[str, Verdict] = {"Output (a)": "a", "Output (b)": "b"}


def own_scores(text: str) -> tuple[float, float] | None:
    """The two scores of a last line `SCORES: 8 7.5`, each from 1 to 10; None for anything else."""
    line = _last_line(text)
    return _scores(line.removeprefix("SCORES:").strip(), LOWEST) if line.startswith("SCORES:") else None


def own_verdict(text: str) -> Verdict | None:
    """The verdict of a last line `VERDICT: A`, `VERDICT: B` or `VERDICT: TIE`; None for anything else."""
    return _OWN_VERDICTS.get(_last_line(text))


def own_points(text: str) -> tuple[float, float] | None:
    """The points of a last line `VERDICT: …`: 1 for a win, ½ for a tie, 0 for a loss; None for anything else."""
    verdict = own_verdict(text)
    return None if verdict is None else POINTS[verdict]


def first_line_scores(text: str) -> tuple[float, float] | None:
    """Two scores alone on the first line, the form of FastChat's general prompt; None for anything else.

    That prompt asks for 1 to 10, and GPT-4 gave some answers 0: FastChat and QLoRA recorded and summed it.
    """
    return _scores(text.partition("\n")[0].strip(), 0)


def last_line_class(text: str) -> Verdict | None:
    """The digit 1, 2 or 3 (equivalent) alone on the last line, the form of QLoRA's three-class prompt, or None."""
    return _CLASSES.get(_last_line(text))


def preferred_output(text: str) -> Verdict | None:
    """`Output (a)` or `Output (b)` as the whole text, the form of LLMBar's vanilla prompt, or None."""
    return _OUTPUTS.get(text.strip())


def _scores(line: str, lowest: int) -> tuple[float, float] | None:
    found = _SCORES.fullmatch(line)
    if not found:
        return None
    first, second = float(found[1]), float(found[2])
    return (first, second) if all(lowest <= score <= HIGHEST for score in (first, second)) else None


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()
