"""How near a generated answer is to the reference: exact match, token F1, ROUGE-L. All in [0, 1], higher is nearer.

What a word is, and how that differs from SQuAD's normalisation and from rouge-score, is in docs/evaluation.md.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from shepherd.evaluation.metrics import Answer, Metric, metrics

__all__ = ["exact_match", "metrics", "rouge_l", "token_f1", "words"]

# First words of the Unicode names of letters that are written without spaces between words. Names never change.
_UNSPACED = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HENTAIGANA", "HALFWIDTH KATAKANA", "BOPOMOFO",
    "YI ", "NUSHU", "TANGUT", "KHITAN", "THAI", "LAO", "KHMER", "MYANMAR", "TAI ", "NEW TAI", "AHOM", "BALINESE",
    "JAVANESE",
)  # fmt: skip
_WORD = re.compile("w[wm]*|[cm]m*")


def words(text: str) -> list[str]:
    """Case-folded words in Unicode's form NFC, with the marks that belong to their letters (the vowels of "कि", "का").

    A word is a run of letters, digits, underscores and combining marks. Letters of scripts without spaces between
    words (Chinese, Japanese, Thai, Lao, Khmer, Burmese …) and symbols (mathematical, currencies, emoji) are words one
    by one, each with its marks. Punctuation and white space separate; invisible characters are as if not there.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    seen = _seen(folded)
    return [seen[slice(*found.span())] for found in _WORD.finditer("".join(map(_kind, seen)))]


@metrics
def exact_match() -> Metric:
    """1 when prediction and reference have the same words in the same order, else 0."""

    def match(answer: Answer) -> float:
        got, want = words(answer.text), words(answer.reference)
        return float(got == want) if got or want else _without_words(answer)

    return Metric(match, higher_is_better=True, label="Exact match")


@metrics
def token_f1() -> Metric:
    """Harmonic mean of precision and recall over words, as multisets (Rajpurkar et al., 2016)."""

    def f1(answer: Answer) -> float:
        got, want = words(answer.text), words(answer.reference)
        if not got and not want:
            return _without_words(answer)
        return 2 * sum((Counter(got) & Counter(want)).values()) / (len(got) + len(want))

    return Metric(f1, higher_is_better=True, label="Token F1")


@metrics
def rouge_l(beta: float = 1.0) -> Metric:
    """F-measure of the longest common subsequence of words, no stemming (Lin, 2004, §3.1).

    beta: the weight of recall (eq. 4); beta = 1 weighs it like precision, a large one leaves recall alone.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be more than 0, got {beta:g}")
    recall = 1 - 1 / (1 + beta * beta)

    def rouge(answer: Answer) -> float:
        got, want = words(answer.text), words(answer.reference)
        if not got and not want:
            return _without_words(answer)
        # (1 + β²) LCS / (n + β² m), as LCS over a length between n and m: exactly 1 for equal texts, never above.
        return _common_subsequence(got, want) / (len(got) + recall * (len(want) - len(got)))

    return Metric(rouge, higher_is_better=True, label="ROUGE-L" if beta == 1 else f"ROUGE-L (beta {beta:g})")


@cache
def _kind(character: str) -> str:
    """w(ord), c (a separate word), m(ark on what is before it), i(nvisible) or a space for what separates words."""
    category = unicodedata.category(character)
    if category == "Nd" or character == "_":
        return "w"
    if category[0] in "LN":
        return "c" if unicodedata.name(character, "").startswith(_UNSPACED) else "w"
    if category[0] == "M":
        return "i" if unicodedata.name(character, "").startswith("VARIATION SELECTOR") else "m"
    if category == "Cf":
        return " " if character == "\N{ZERO WIDTH SPACE}" else "i"
    # Of characters that this Python does not know (Cn) or nobody can (Co, Cs), each counts: none may vanish.
    return "c" if category in ("Sm", "Sc", "So", "Cn", "Co", "Cs") or character == "^" else " "


def _without_words(answer: Answer) -> float:
    """1 for two texts without a word that are the same but for white space and what nobody sees: "?!" is not "…"."""
    got, want = (_seen(unicodedata.normalize("NFC", text)).replace("\N{ZERO WIDTH SPACE}", " ").split()
                 for text in (answer.text, answer.reference))  # fmt: skip
    return float(got == want)


def _seen(text: str) -> str:
    """The text without its invisible characters."""
    return "".join(character for character in text if _kind(character) != "i")


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
