"""Write all goldens again: `python tests/golden/rewrite.py`, or with parts of the names of those to write.

It changes nothing where nothing changed. A commit that changes what a run computes, or what a person reads, holds the
goldens alone and has its line in CHANGELOG.md; `git diff` of them is read like code. The run of `old_run` is not
written again: later versions have to read it as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import runs, texts
from golden.recipes import RECIPES
from golden.record import fingerprint


def main(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    makers: dict[Path, Callable[[Path], str]] = {
        **{runs.path_of(name): partial(runs.written, name) for name in RECIPES},
        **{texts.GOLDENS / name: make for name, make in texts.TEXTS.items()},
    }
    for folder in (runs.GOLDENS, texts.GOLDENS):
        folder.mkdir(exist_ok=True)
        for path in set(folder.iterdir()) - makers.keys() - {runs.FINGERPRINT}:
            path.unlink()
            print(f"{path.name}: removed")
    if not words:
        _write(runs.FINGERPRINT, json.dumps(fingerprint(), indent=1) + "\n")
    elif json.loads(runs.FINGERPRINT.read_text(encoding="utf-8")) != fingerprint():
        sys.exit("the others were written on another machine or with other libraries: write all of them")
    for path, make in makers.items():
        if not words or any(word in path.name for word in words):
            with tempfile.TemporaryDirectory() as work:
                _write(path, make(Path(work).resolve()))


def _write(path: Path, text: str) -> None:
    same = path.exists() and path.read_text(encoding="utf-8") == text
    if not same:
        path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {'as it was' if same else 'written'}")


if __name__ == "__main__":
    main(sys.argv[1:])
