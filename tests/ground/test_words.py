"""The words of help, README, docs and code: archaic turns stay out, links lead somewhere."""

from __future__ import annotations

import ast
import io
import re
import tokenize
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

ROOMS = ("clients", "evaluation", "federation", "model", "server", "updates")
IN_CODE = (
    *TURNS, "learner", "whoever", "hear", "tells", "says so", "say so", "is no", "are no", "beside it", "beside them",
    "stands beside", "travels", "travelled", "what was learned", "that was learned", "is learned", "were asked",
    "be asked", "by itself", "whatever the", "whatever it",
)  # fmt: skip
"""Turns that docstrings, comments and test names of the rooms ROOMS have no more."""


def archaic(text: str, turns_: tuple[str, ...] = TURNS) -> list[str]:
    """`line: turn` for every archaic turn of a text."""
    turns = "|".join(turn.replace(" ", r"\s+") for turn in turns_)
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


def prose(source: str) -> str:
    """Docstrings, comments and names of tests of a module, the names with spaces."""
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    nodes = list(ast.walk(ast.parse(source)))
    texts = [n.value.value for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    tests = [n.name.replace("_", " ") for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    return "\n".join([*comments, *filter(lambda text: isinstance(text, str), texts), *tests])


def test_prose_is_docstrings_comments_and_names_of_tests():
    source = 'x = "told"  # whom\n"""hears"""\n\n\ndef test_is_no_client():\n    """begun"""\n'
    assert archaic(prose(source), IN_CODE) == ["1: whom", "2: hears", "3: begun", "4: is no"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_prose_of_a_room_has_no_archaic_turns(room):
    files = [*(ROOT / "src/shepherd" / room).rglob("*.py"), *(ROOT / "tests" / room).rglob("*.py")]
    found = {path.name: archaic(prose(path.read_text(encoding="utf-8")), IN_CODE) for path in files}
    assert {name: turns for name, turns in found.items() if turns} == {}
