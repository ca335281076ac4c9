"""How near a generated answer is to the reference: exact match, token F1, ROUGE-L. All in [0, 1].

Each metric is a function (prediction, reference) -> float with a name in the registry; the report shows its mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from shepherd.registry import Registry
from shepherd.types import Stat

Metric = Callable[[str, str], float]
metrics = Registry("metric")

_WORD = re.compile(r"\w+", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())


@metrics
def exact_match() -> Metric:
    """1 when prediction and reference have the same words in the same order, else 0."""
    return lambda prediction, reference: float(words(prediction) == words(reference))


@metrics
def token_f1() -> Metric:
    """Harmonic mean of precision and recall over words, as multisets (Rajpurkar et al., 2016)."""

    def f1(prediction: str, reference: str) -> float:
        got, want = words(prediction), words(reference)
        common = sum((Counter(got) & Counter(want)).values())
        return _harmonic(common, len(got), len(want))

    return f1


@metrics
def rouge_l() -> Metric:
    """F-measure of the longest common subsequence of words, no stemming (Lin, 2004, §3.1, with beta = 1)."""

    def rouge(prediction: str, reference: str) -> float:
        got, want = words(prediction), words(reference)
        return _harmonic(_common_subsequence(got, want), len(got), len(want))

    return rouge


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean of every registered metric, and `rows`."""
    means = {}
    for name in metrics:
        metric = metrics.build(name)
        pairs = zip(predictions, references, strict=True)
        means[name] = sum((Stat(metric(p, r), 1.0) for p, r in pairs), Stat()).mean
    return {**means, "rows": len(predictions)}


def _harmonic(common: int, got: int, want: int) -> float:
    if got == want == 0:
        return 1.0
    return 2 * common / (got + want)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
