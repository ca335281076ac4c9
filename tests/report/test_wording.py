"""Texts and numbers of a page."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shepherd.report import wording

NAN, INF = float("nan"), float("inf")


@given(st.text())
def test_a_cleaned_text_holds_no_control_character_and_can_be_written_as_utf8(text):
    cleaned = wording.clean(text)
    cleaned.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", cleaned)
    assert wording.clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("a\x00b\x07c\x08", "abc"),
        ("two\r\nlines\tand a tab", "two\nlines\tand a tab"),
        ("admin\u202etxt.exe", "admintxt.exe"),
        ("\ud800", "\ufffd"),
        ("żółw 日本 🐑", "żółw 日本 🐑"),
    ],
)
def test_escapes_and_controls_go_and_everything_else_stays(text, left):
    assert wording.clean(text) == left


@pytest.mark.parametrize("write", [
    wording.digits, wording.signed, wording.significant, wording.percent, wording.count, wording.size, wording.duration,
])  # fmt: skip
@pytest.mark.parametrize("value", [None, NAN, INF, -INF, "3", True, [1]])
def test_what_is_no_number_is_written_as_absent(write, value):
    assert write(value) == "n/a"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (wording.digits(2.34567), "2.346"),
        (wording.digits(-0.0004), "0.000"),
        (wording.digits(-0.5), "−0.500"),
        (wording.signed(0.0714), "+0.071"),
        (wording.signed(-0.0714), "−0.071"),
        (wording.signed(0.0001), "0.000"),
        (wording.significant(13.456), "13.5"),
        (wording.significant(1234.5), "1,230"),
        (wording.significant(0.031234), "0.0312"),
        (wording.percent(0.4812), "48.1\xa0%"),
        (wording.count(7372800), "7,372,800"),
        (wording.count(2.5), "2.5"),
        (wording.size(999), "999 B"),
        (wording.size(7372800), "7.37 MB"),
        (wording.size(269_030_016), "269 MB"),
        (wording.duration(0.012), "12 ms"),
        (wording.duration(3.14159), "3.14 s"),
        (wording.duration(59.99), "1 min 00 s"),
        (wording.duration(3599.9), "1 h 00 min"),
        (wording.duration(0), "0 s"),
        (wording.plural(1, "category"), "1 category"),
        (wording.plural(3, "category"), "3 categories"),
        (wording.listing(["a", "b", "c"], 2), "a, b and 1 more"),
        (wording.left_out(100, 40, "client"), " 60 clients of 100 left out."),
        (wording.left_out(40, 40, "client"), ""),
    ],
)
def test_numbers_have_the_digits_that_mean_something(written, text):
    assert written == text


def test_a_clipped_text_says_how_much_is_missing():
    assert "(90 more characters" in wording.clip("x" * 100, 10)
    assert wording.clip("short", 10) == "short"


@given(st.text(max_size=60), st.integers(2, 40))
@example("000\N{DEVANAGARI SIGN VIRAMA}", 2)  # four characters in three columns
def test_a_shortened_label_fits_its_room(text, width):
    assert sum(map(wording.cells, wording.shorten(text, width))) <= width + 1


def test_wide_scripts_count_double_when_a_label_is_shortened():
    assert wording.shorten("日本語日本語", 6) == "日本語…"
