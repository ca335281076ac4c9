"""A judge measured on pairs with a known right answer: how often it is right, and how often the order decides.

    pair, labels = read_labelled(Path("Natural.json"))        # LLMBar's format: input, output_1, output_2, label
    calibration(judgements, labels)                           # accuracy, flips, fit

Source: LLMBar (Zeng et al., 2024, arXiv 2310.07641). A judge below 75 % or above 25 % flips gives no verdicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.evaluation.judge.calls.plan import Item, Pair, Shown
from shepherd.evaluation.judge.calls.quoting import encodable
from shepherd.evaluation.judge.formats import Judgement
from shepherd.evaluation.judge.orders import winner

LEAST_ACCURACY, MOST_FLIPS = 0.75, 0.25
Z95 = 1.959963984540054

Labels = Mapping[str | int, int]
"""Question to the number of the right answer, 1 or 2."""


def read_labelled(file: Path) -> tuple[Pair, Labels]:
    """Pairs of answers with their labels, a JSON list or JSON lines. DataError: with the entry at fault."""
    try:
        content = file.read_text(encoding="utf-8-sig")
        listed = content.lstrip()[:1] == "["
        rows = json.loads(content) if listed else [json.loads(line) for line in content.split("\n") if line.strip()]
    except FileNotFoundError:
        raise DataError(f"file not found: {file}", hint=_HINT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}", hint=_HINT) from None
    items: list[Item] = []
    labels: dict[str | int, int] = {}
    for number, row in enumerate(rows, 1):
        texts = [row.get(name) if isinstance(row, dict) else None for name in ("input", "output_1", "output_2")]
        if not all(isinstance(text, str) for text in texts) or row.get("label") not in (1, 2):
            raise DataError(
                f"{file}, entry {number}: no input, output_1 and output_2 with a label of 1 or 2", hint=_HINT
            )
        question, one, other = (encodable(str(text)) for text in texts)
        items.append(Item(number, (question,), Shown((one,)), Shown((other,))))
        labels[number] = int(row["label"])
    if not items:
        raise DataError(f"{file} holds no pairs", hint=_HINT)
    return Pair("output_1", "output_2", tuple(items)), labels


_HINT = "a file in the format of LLMBar: a list of {input, output_1, output_2, label}, label 1 or 2"


def calibration(judgements: Iterable[Judgement], labels: Labels) -> dict[str, Any]:
    """Figures of a judge with 95 % intervals (Wilson, over pairs).

    accuracy: share of judgements, one per order, for the right answer; a tie and an unread text are not right. flips:
    share of pairs where each order has another winner. unread: judgements without points. fit: both within the limits.
    """
    by_pair: dict[str | int, list[Judgement]] = {question: [] for question in labels}
    for judgement in judgements:
        by_pair[judgement.question].append(judgement)
    judged = {question: found for question, found in by_pair.items() if found}
    shares, flips, same, unread = [], 0, 0, 0
    for question, found in judged.items():
        winners = [winner(judgement.points) for judgement in found]
        right = "a" if labels[question] == 1 else "b"
        shares.append(sum(one == right for one in winners) / len(winners))
        flips += {"a", "b"} <= set(winners)
        same += len(winners) > 1 and len(set(winners)) == 1 and winners[0] is not None
        unread += sum(judgement.points is None for judgement in found)
    pairs = len(judged)
    accuracy, turned = (math.fsum(shares) / pairs, flips / pairs) if pairs else (0.0, 0.0)
    return {
        "pairs": pairs,
        "accuracy": accuracy,
        "accuracy_ci95": wilson(accuracy, pairs),
        "flips": turned,
        "flips_ci95": wilson(turned, pairs),
        "same": same / pairs if pairs else 0.0,
        "unread": unread,
        "fit": pairs > 0 and accuracy >= LEAST_ACCURACY and turned <= MOST_FLIPS,
    }


def wilson(share: float, count: int) -> tuple[float, float] | None:
    """The 95 % interval of a share of `count` (Wilson, 1927); None without any."""
    if not count:
        return None
    centre, z2 = share + Z95**2 / (2 * count), Z95**2
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, (centre - half) / (1 + z2 / count)), min(1.0, (centre + half) / (1 + z2 / count))
