"""A model folder's README -> the licence it names."""

from __future__ import annotations

from pathlib import Path


def licence_of(folder: Path) -> str:
    """The licence in the model card's front matter; "see LICENSE" when there is only the file, else "unknown"."""
    import yaml

    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    facts = None
    if text.startswith("---\n"):
        try:
            facts = yaml.safe_load(text[4:].split("\n---", 1)[0])
        except yaml.YAMLError:
            facts = None
    named = (facts.get("license_name") or facts.get("license")) if isinstance(facts, dict) else None
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    if named:
        return str(named)
    files = sorted(path.name for path in folder.glob("LICEN[SC]E*"))
    return f"see {files[0]}" if files else "unknown"
