"""The licence and the origin of a model, from the front matter of its README."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def licence_of(folder: Path) -> str:
    """The licence in the model card's front matter; "see LICENSE" where only that file exists, else "unknown"."""
    facts = _front_matter(folder)
    named = facts.get("license_name") or facts.get("license")
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    if named:
        return str(named)
    files = sorted(path.name for path in folder.glob("LICEN[SC]E*"))
    return f"see {files[0]}" if files else "unknown"


def base_of(folder: Path) -> str:
    """The model that this one was derived from, according to its model card, or an empty string."""
    named = _front_matter(folder).get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    return named if isinstance(named, str) else ""


def _front_matter(folder: Path) -> dict[str, Any]:
    import yaml

    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        facts = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return {}
    return facts if isinstance(facts, dict) else {}
