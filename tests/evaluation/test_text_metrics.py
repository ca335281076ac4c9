"""Text metrics: words of every script, and hand-computed scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shepherd.evaluation.metrics import Answer
from shepherd.evaluation.text import metrics, words


def scorer(name: str):
    """(prediction, reference) -> score of the registered metric."""
    metric = metrics.build(name)
    return lambda prediction, reference: metric.score(Answer(prediction, reference))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Ça va? Don't  STOP—now_1", ["ça", "va", "don", "t", "stop", "now_1"]),
        ("कि", ["कि"]),  # one letter and its vowel sign
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("தமிழ் ভালো", ["தமிழ்", "ভালো"]),
        ("e\u0301te\u0301 \u00e9t\u00e9", ["été", "été"]),  # decomposed and composed
        ("STRASSE straße ΟΔΟΣ", ["strasse", "strasse", "οδοσ"]),
        ("한국어 단어", ["한국어", "단어"]),  # Korean has spaces
        ("你好。", ["你", "好"]),
        ("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("GPT模型3号", ["gpt", "模", "型", "3", "号"]),
        ("ที่นี่ ๒๕๖๗", ["ที่", "นี่", "๒๕๖๗"]),  # marks stay with their letter, digits together
        ("ລາວ", ["ລ", "າ", "ວ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("x < 5, y > 5", ["x", "<", "5", "y", ">", "5"]),
        ("x^2 −5", ["x", "^", "2", "−", "5"]),
        ("👍🏽 ❤\ufe0f", ["👍", "❤"]),  # without the colour of the skin and the wish for colour
        ("می\u200cخواهم co\u00adop a\u200bb", ["میخواهم", "coop", "a", "b"]),
        ("\U000323b0\ue000\ufffd", ["\U000323b0", "\ue000", "\ufffd"]),  # unknown to Unicode 14, private, broken
        ("`code`, **bold**!", ["code", "bold"]),
        ("…?!", []),
    ],
)
def test_words_of_every_script(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("name", list(metrics))
@pytest.mark.parametrize(
    "one, other", [("कि", "का"), ("你好", "你们"), ("👍", "👎"), ("<", ">"), ("?!", "…"), ("", "?")]
)
def test_different_answers_without_words_are_not_equal(name, one, other):
    metric = scorer(name)
    assert metric(one, other) < 1 and metric(one, one) == metric(other, other) == 1


@pytest.mark.parametrize("name", list(metrics))
def test_scores_do_not_depend_on_unicode_form_and_case(name):
    metric = scorer(name)
    assert metric("U\u0308BER Stra\u00dfe", "\u00fcber STRASSE") == 1
    assert metric("\u03b1\u0345\u0301", "\u1fb4") == 1  # folding makes a letter of the iota below
    assert metric("? !", " ?\n! ") == 1 and metric("", "") == 1
    assert metric("\u00ad", "") == metric("\u200b?", "?\ufe0f") == 1  # invisible characters, even without words


def test_texts_without_spaces_are_scored_by_their_characters():
    # 我 喜 欢 猫 and 我 喜 欢 狗: 3 of 4 the same, in order
    assert scorer("token_f1")("我喜欢猫", "我喜欢狗。") == scorer("rouge_l")("我喜欢猫", "我喜欢狗。") == 0.75


@pytest.mark.parametrize(
    "name, prediction, reference, expected",
    [
        ("exact_match", "The cat.", "the CAT", 1.0),
        ("exact_match", "the cat sat", "the cat", 0.0),
        ("exact_match", "cat the", "the cat", 0.0),
        ("token_f1", "the cat sat", "the cat", 0.8),  # common 2, 2 · 2 / (3 + 2)
        ("token_f1", "cat the", "the cat", 1.0),  # order does not matter
        ("token_f1", "the the the", "the cat", 0.4),  # "the" counts once: 2 · 1 / (3 + 2)
        ("token_f1", "the the cat", "the the dog", 2 / 3),  # and twice where both have it twice: 2 · 2 / (3 + 3)
        ("token_f1", "dog", "the cat", 0.0),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),  # Lin (2004): LCS 3 of 4
        ("rouge_l", "the gunman kill police", "police killed the gunman", 0.5),  # the same words, LCS 2
        ("rouge_l", "gunman the killed police", "police killed the gunman", 0.25),
        ("rouge_l", "a b c d e", "a x b y c", 0.6),  # a b c: 2 · 3 / 10
        ("rouge_l", "a b", "a b c d", 2 / 3),  # 2 · 2 / 6
        ("rouge_l", "", "a b", 0.0),
        ("token_f1", "a", "", 0.0),
    ],
)
def test_a_hand_worked_score(name, prediction, reference, expected):
    assert scorer(name)(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize("name", list(metrics))
def test_every_metric_is_one_for_equal_texts_symmetric_and_between_zero_and_one(name):
    metric = scorer(name)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcd"), rng.integers(0, 7))) for _ in range(40)]
    for a, b in itertools.pairwise(texts):
        assert metric(a, a) == 1.0
        assert metric(a, b) == metric(b, a)
        assert 0.0 <= metric(a, b) <= 1.0
    assert metrics.describe(name)


def test_the_longest_common_subsequence_matches_brute_force():
    rouge = scorer("rouge_l")
    rng = np.random.default_rng(5)
    for _ in range(60):
        a, b = (list(rng.choice(list("abc"), rng.integers(1, 7))) for _ in "ab")
        common = {s for n in range(1, 7) for s in itertools.combinations(a, n)} & {
            s for n in range(1, 7) for s in itertools.combinations(b, n)
        }
        longest = max(map(len, common), default=0)
        assert rouge(" ".join(a), " ".join(b)) == pytest.approx(2 * longest / (len(a) + len(b)))
