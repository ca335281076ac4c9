"""The words of help, README and docs: archaic turns stay out, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "RELEASING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "tests/golden/text").iterdir()),
]
TURNS = (
    "asked no more", "is asked", "are asked", "was asked", "not asked", "who is asked", "of its own", "of their own",
    "of your own", "of our own", "of a client's own", "so many", "whom", "begun", "lies beside", "lie beside", "told",
    "hears", "dealt", "at home", "brought", "held against",
)  # fmt: skip
"""Turns that have a plainer word: sampled, client, separate, this many, started, next to, reported, assigned, local."""


def archaic(text: str) -> list[str]:
    """`line: turn` for every archaic turn of a text."""
    turns = "|".join(turn.replace(" ", r"\s+") for turn in TURNS)
    found = re.finditer(rf"\b({turns})\b", text, re.IGNORECASE)
    return [f"{text.count(chr(10), 0, turn.start()) + 1}: {' '.join(turn[0].split())}" for turn in found]


def test_archaic_turns_are_found():
    assert archaic("Whom it forgot\nlies beside\nit, of its\nown") == ["1: Whom", "2: lies beside", "3: of its own"]
    assert archaic("a toldo, homes at Homer's") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_no_archaic_turns(page):
    assert archaic(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
