"""Write all goldens again: `python tests/golden/rewrite.py`, or with words that are in the names of those to write.

It changes nothing where nothing changed. A commit that changes what a run computes, or what a person reads, holds the
goldens alone and has its line in CHANGELOG.md; `git diff` of them is read like code. The run of `old_run` is not
written again: later versions have to read it as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import runs
from golden.recipes import RECIPES
from golden.record import fingerprint


def main(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    wanted = {name for name in RECIPES if not words or any(word in name for word in words)}
    kept = {runs.path_of(name).name for name in RECIPES} | {runs.FINGERPRINT.name}
    runs.GOLDENS.mkdir(exist_ok=True)
    for path in runs.GOLDENS.iterdir():
        if path.name not in kept:
            path.unlink()
            print(f"{path.name}: removed")
    if len(wanted) == len(RECIPES):
        _write(runs.FINGERPRINT, json.dumps(fingerprint(), indent=1) + "\n")
    for name in RECIPES:
        if name in wanted:
            with tempfile.TemporaryDirectory() as work:
                _write(runs.path_of(name), runs.to_json(name, runs.now(name, Path(work).resolve())))


def _write(path: Path, text: str) -> None:
    same = path.exists() and path.read_text(encoding="utf-8") == text
    if not same:
        path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {'as it was' if same else 'written'}")


if __name__ == "__main__":
    main(sys.argv[1:])
