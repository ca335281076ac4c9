"""Datasets that need no network. A dataset is a function that returns `RawRows`; `builtin:<name>` loads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from shepherd.data.files import read
from shepherd.errors import DataError, did_you_mean
from shepherd.registry import Registry

datasets = Registry("dataset")


@dataclass(frozen=True)
class RawRows:
    """The rows of a source before any format is recognised: (example id, fields) in order, and their licence.

    held_out: the test or validation part of the source, or None. places: the files or lists of the rows, each with its
    number of rows, in order; () for a single one.
    """

    name: str
    rows: Sequence[tuple[str, dict[str, Any]]]
    licence: str = "unknown"
    notes: tuple[str, ...] = ()
    held_out: RawRows | None = None
    places: tuple[tuple[str, int], ...] = ()


@datasets
def instructions() -> RawRows:
    """A few hundred instructions in Dolly's eight categories, written for Shepherd (Apache-2.0)."""
    with resources.as_file(resources.files("shepherd.data") / "builtin" / "instructions.jsonl") as path:
        rows = [(f"instructions:{number}", row) for number, row in read(path).rows]
    return RawRows("builtin:instructions", rows, "Apache-2.0")


@datasets
def chatterbot(languages: tuple[str, ...] = ("english",)) -> RawRows:
    """Conversations from chatterbot-corpus (BSD-3-Clause): topics are categories, languages are sources."""
    try:
        import yaml

        root = resources.files("chatterbot_corpus") / "data"
    except ImportError as error:
        raise DataError(
            f"builtin:chatterbot needs the package {error.name!r}, which is not installed",
            hint="pip install chatterbot-corpus pyyaml",
        ) from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    known = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("_"))
    rows = []
    for language in dict.fromkeys(languages):
        if language not in known:
            near = did_you_mean(language, known)
            raise DataError(f"builtin:chatterbot has no language {language!r}.{near} Languages: {', '.join(known)}")
        topics = (root / language).iterdir()
        for file in sorted((f for f in topics if f.name.endswith(".yml")), key=lambda f: f.name):
            topic = file.name.removesuffix(".yml").lower()
            document = loader(file.read_text(encoding="utf-8")).get_single_data()
            for number, turns in enumerate(document["conversations"], 1):
                rows.append((f"{language}-{topic}:{number}", _conversation(turns, topic, language)))
    return RawRows("builtin:chatterbot", rows, "BSD-3-Clause")


def _conversation(turns: Any, topic: str, language: str) -> dict[str, Any]:
    if isinstance(turns, list):
        turns = [{"role": ("user", "assistant")[i % 2], "content": str(turn)} for i, turn in enumerate(turns)]
    return {"messages": turns, "category": topic, "source": language, "language": language}
