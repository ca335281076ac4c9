"""README.md, then docs/recipes.md, as a newcomer follows them: every block of sh and of Python, in one empty folder.

The built-in model is a tiny one here, and the commands run in this process, so that it takes seconds. Nothing is left
out but the commands that `EXCEPT` names.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from console import Shell
from tiny import tiny_builtin, tiny_model

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/recipes.md")
EXCEPT = ("make ", "pip install ")
"""They install into the environment that they run in; `make test` would run this very test."""
TYPED = "How long do I boil an egg?\n"
"""What `shepherd chat` reads."""


class Block(NamedTuple):
    """A fenced block: its language, the page and the line that it begins on, and its text."""

    language: str
    page: str
    line: int
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(found[1], page, text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a block of sh, each with its line: a line, or all lines of one with a here-document."""
    lines = enumerate(block.text.splitlines(), block.line)
    for number, line in lines:
        if word := re.search(r"<<'(\w+)'$", line):
            for _, more in lines:
                line += f"\n{more}"
                if more == word[1]:
                    break
        if line and not line.startswith("#"):
            yield number, line


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    """The command line in an empty folder, with a tiny model where the built-in one is once it was pulled."""
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))
    tiny_builtin(tiny_model("llama", tmp_path, num_hidden_layers=1), tmp_path / "cache")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Shell(capsys, monkeypatch)


@pytest.mark.timeout(900)  # six runs and more, on whatever machine
def test_every_block_of_the_first_pages_works_as_it_stands_after_the_ones_before(shell, monkeypatch):
    done = []
    for block in (block for page in PAGES for block in blocks(page)):
        assert block.language in ("sh", "python"), f"{block.page}:{block.line}: a block that nobody tries"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), {"__name__": "readme"})
            done.append("python")
            continue
        for line, command in commands(block):
            if command.startswith(EXCEPT):
                continue
            words = shlex.split(command, comments=True)
            if words[0] == "shepherd":
                monkeypatch.setattr("sys.stdin", io.StringIO(TYPED))
                outcome = shell(*words[1:])
                assert outcome.status == 0, f"{block.page}:{line}: {command}\n{outcome.err}"
                assert outcome.out, f"{block.page}:{line}: {command} prints nothing"
            else:
                subprocess.run(["sh", "-ec", command], check=True, timeout=20)
            done.append(words[0])
    assert done.count("shepherd") > 15 and done.count("python") == 2 and done.count("cat") == 1
    assert {path.name for path in Path("runs").iterdir()} >= {"demo", "demo-2", "own-data", "by-user", "wider"}
