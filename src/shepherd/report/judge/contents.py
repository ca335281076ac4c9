"""The shape of judge.json that a page needs, and a reader's view of it with null for what is absent."""

from __future__ import annotations

from typing import Any

VERSION = 1
"""The latest version of the keys that are understood."""
_NUMBER = (int, float)
_COUNTS = {"wins": int, "losses": int, "ties": int}
_CATEGORY = {"category": str, "questions": int, "difference": _NUMBER, "ci95?": [object], "p?": object, **_COUNTS}
_LENGTHS = {
    "mean_a": _NUMBER, "mean_b": _NUMBER, "a_longer": _NUMBER, "b_longer": _NUMBER, "controlled?": object,
    "controlled_ci95?": [object], "controlled_p?": object, "slope?": object,
}  # fmt: skip
_PAIR: dict[str, Any] = {
    "a": str, "b": str, "file?": str, "judgements": int, "questions": int, "seeds": int, "orders": int,
    "total_a": _NUMBER, "total_b": _NUMBER, "relative?": object, "relative_ci95?": [object], "difference": _NUMBER,
    "ci95?": [object], "p?": object, "holm_p?": object, "smallest_difference?": object, **_COUNTS, "verdict": str,
    "repeats": int, "repeats_sd?": object, "lengths?": _LENGTHS, "categories": [_CATEGORY | {"*": object}],
    "left_out": int, "first_gain?": object, "first_gain_ci95?": [object], "same_verdict?": object,
    "reversed_verdict?": object, "by_order?": {"*": _COUNTS}, "one_order?": int, "lacking?": int,
    "superseded?": int, "*": object,
}  # fmt: skip
SHAPE: dict[str, Any] = {
    "version": int,
    "judge": {
        "asked?": [str], "answered?": [str], "hosts?": [str], "first?": str, "last?": str, "decoding?": [object],
        "prompts?": [{"id": str, "sha256": str}], "ignored?": [str], "calibration?": {"*": object}, "*": object,
    },
    "questions": {
        "count": int, "ids": [object], "categories?": {"*": int}, "source?": object, "licence?": object,
        "sha256?": object, "trained_on?": [object], "reference_answers_shown?": int, "*": object,
    },
    "arms": [{
        "name": str, "mean_characters?": object, "adapter_digest?": object, "base?": str, "base_digest?": object,
        "dtype?": str, "template?": str, "decoding?": object, "cut?": object, "*": object,
    }],
    "budget?": {"*": object},
    "margin?": object,
    "pairs": [_PAIR],
    "orders": [{"a": str, "b": str, "files": [str], "both?": _PAIR, "*": object}],
    "left_out": {"by_arm": {"*": {"*": int}}, "by_question": {"*": {"*": int}}},
    "agreement": [{"with": str, "items": int, "*": object}],
    "probes?": {"*": object},
    "calls?": {"*": object},
    "*": object,
}  # fmt: skip
"""As `report.load` checks it: a key that ends in "?" may be null or absent, "*" is any other."""


def completed(value: Any, shape: Any = SHAPE) -> Any:
    """A value that has `shape`, with None for each absent key that may be null."""
    if isinstance(value, list) and isinstance(shape, list):
        return [completed(item, shape[0]) for item in value]
    if not isinstance(value, dict) or not isinstance(shape, dict):
        return value
    known = {key.rstrip("?"): inner for key, inner in shape.items()}
    missing: dict[str, Any] = {key[:-1]: None for key in shape if key.endswith("?")}
    return missing | {key: completed(item, known.get(key, known.get("*", object))) for key, item in value.items()}
