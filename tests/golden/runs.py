"""The goldens of the recipes: recipes/NAME.json holds one line for each file of the run directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from golden.recipes import RECIPES, carry_out
from golden.record import EVENTS, entry_of, masked, told

GOLDENS = Path(__file__).parent / "recipes"
FINGERPRINT = GOLDENS / "fingerprint.json"


def path_of(name: str) -> Path:
    return GOLDENS / (re.sub(r"[^a-z0-9_]+", "-", name) + ".json")


def now(name: str, work: Path) -> dict[str, Any]:
    """Run a recipe in the folder `work` and return its entries {file: entry}."""
    run, events = carry_out(name, work)
    files = masked(run, work) | {EVENTS: told(events)}
    return {file: entry_of(file, data, RECIPES[name].products) for file, data in files.items()}


def to_json(name: str, entries: dict[str, Any]) -> str:
    """The text of a golden: its recipe, then one line for each file."""
    lines = ",\n".join(f"  {json.dumps(file)}: {json.dumps(entry)}" for file, entry in entries.items())
    recipe = RECIPES[name]._asdict() | {"settings": list(RECIPES[name].settings)}
    return f'{{\n "recipe": {json.dumps({"name": name, **recipe})},\n "files": {{\n{lines}\n }}\n}}\n'


def kept(name: str) -> dict[str, Any]:
    return json.loads(path_of(name).read_text(encoding="utf-8"))
