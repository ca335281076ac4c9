"""What a person reads stays as it was: help, lists, settings, plans, errors with their exit status, talk and report."""

from __future__ import annotations

import difflib

import pytest

from golden import runs
from golden.mistakes import MISTAKES
from golden.record import without_numbers
from golden.texts import GOLDENS, OF_NUMBERS, TEXTS


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_as_it_was(name, tmp_path):
    kept, now = (GOLDENS / name).read_text(encoding="utf-8"), TEXTS[name](tmp_path)
    if name in OF_NUMBERS and not runs.same_machine():
        kept, now = without_numbers(name, kept), without_numbers(name, now)
    diff = list(difflib.unified_diff(kept.splitlines(), now.splitlines(), "kept", "now", lineterm="", n=1))
    assert kept == now, "\n".join([*diff[:60], "where it is meant: python tests/golden/rewrite.py, and read the diff"])


def test_each_text_has_its_golden_and_no_other_lies_there():
    assert {path.name for path in GOLDENS.iterdir()} == set(TEXTS)


def test_forty_and_more_mistakes_are_kept_with_their_exit_status():
    kept = (GOLDENS / "errors.txt").read_text(encoding="utf-8")
    assert len(MISTAKES) == len(set(MISTAKES)) >= 40
    answers = kept.split("$ shepherd ")[1:]
    failed = [answer for answer in answers if "\n[exit status " in answer and "\n[stderr] error: " in answer]
    assert len(answers) == len(MISTAKES) and len(failed) == len(MISTAKES) - 1, "all fail but that without a command"
    assert {status for status in "2345678" if f"[exit status {status}]" in kept} >= set("23456")
