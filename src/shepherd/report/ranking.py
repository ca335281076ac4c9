"""Which settings reach the lowest federated loss, and whether their lead goes beyond the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from shepherd.report.wording import digits, plural, shorten, signed

# Student's t: two-sided 5 % by degrees of freedom; between two entries the one before is taken, which is cautious.
T95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131,
    20: 2.086, 30: 2.042, 60: 2.000,
}  # fmt: skip

SHOWN = 8


def ranking(settings: Sequence[tuple[str, Mapping[tuple, float]]]) -> list[str]:
    """Sentences that hold the settings with the lowest mean loss against each of the others.

    Settings are (name, {(seed, model, held-out rows): federated loss}): only losses with the same key are compared,
    the rest of a difference being one of seeds or rows.
    """
    known = [(name, losses) for name, losses in settings if losses]
    if len(known) < 2:
        return []
    best, losses = min(known, key=lambda entry: fmean(entry[1].values()))
    sentences = [
        f"Lowest federated loss: {shorten(best, 60, middle=True)}, {digits(fmean(losses.values()))} nats per token."
    ]
    others = [(name, theirs) for name, theirs in known if name != best]
    sentences += [_against(losses, shorten(name, 60, middle=True), theirs) for name, theirs in others[:SHOWN]]
    if len(others) > SHOWN:
        sentences.append(f"The table alone has {plural(len(others) - SHOWN, 'further setting')}.")
    return sentences


def _against(losses: Mapping[tuple, float], name: str, theirs: Mapping[tuple, float]) -> str:
    gaps = [losses[key] - theirs[key] for key in losses if key in theirs]
    if not gaps:
        return f"Not compared with {name}: no seed in common that was measured on the same rows."
    mean = fmean(gaps)
    if len(gaps) == 1:
        return (
            f"Against {name} the difference is {signed(mean)} with the one seed in common; other seeds may turn it, "
            "so this decides nothing."
        )
    degrees = len(gaps) - 1
    half = T95[max(d for d in T95 if d <= degrees)] * stdev(gaps) / math.sqrt(len(gaps))
    word = "better than" if mean + half < 0 else "worse than" if mean - half > 0 else "not distinguishable from"
    return (
        f"It is {word} {name}: {signed(mean)}, 95\N{NO-BREAK SPACE}% interval {signed(mean - half)} to "
        f"{signed(mean + half)} (paired over {plural(len(gaps), 'seed')}, Student's t)."
    )
