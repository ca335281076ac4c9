"""The goldens of the recipes: recipes/NAME.json holds one line for each file of the run directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import event_schema
from golden.recipes import RECIPES, carry_out
from golden.record import EVENTS, entry_of, fingerprint, masked, told
from shepherd.cli import output

GOLDENS = Path(__file__).parent / "recipes"
FINGERPRINT = GOLDENS / "fingerprint.json"


def path_of(name: str) -> Path:
    return GOLDENS / (re.sub(r"[^a-z0-9_]+", "-", name) + ".json")


def files_of(name: str, work: Path) -> dict[str, bytes]:
    """Run a recipe in the folder `work` and return what it leaves, masked, and the events that it told."""
    run, events = carry_out(name, work)
    wrong = [problem for event in events for problem in event_schema.problems(json.loads(output.to_json(event)))]
    assert not wrong, f"events have other types than shepherd.experiment.events states: {wrong[:5]}"
    return masked(run, work) | {EVENTS: told(events)}


def now(name: str, work: Path) -> dict[str, Any]:
    """Run a recipe in the folder `work` and return its entries {file: entry}."""
    products = RECIPES[name].products
    return {file: entry_of(file, data, products) for file, data in files_of(name, work).items()}


def to_json(name: str, entries: dict[str, Any]) -> str:
    """The text of a golden: its recipe, then one line for each file."""
    lines = ",\n".join(f"  {json.dumps(file)}: {json.dumps(entry)}" for file, entry in entries.items())
    recipe = RECIPES[name]._asdict() | {"settings": list(RECIPES[name].settings)}
    return f'{{\n "recipe": {json.dumps({"name": name, **recipe})},\n "files": {{\n{lines}\n }}\n}}\n'


def written(name: str, work: Path) -> str:
    """The text of a golden as the recipe makes it now."""
    return to_json(name, now(name, work))


def same_machine() -> bool:
    """Whether the goldens were written with this processor and these libraries, so that bytes can be compared."""
    return json.loads(FINGERPRINT.read_text(encoding="utf-8")) == fingerprint()


def kept(name: str) -> dict[str, Any]:
    return json.loads(path_of(name).read_text(encoding="utf-8"))
