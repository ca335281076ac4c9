"""The shape of audit.json, as `shepherd privacy audit` writes it; texts of planted codes are not in it."""

from __future__ import annotations

_SCORE = {"auc": object, "ci95": [object], "tpr": object, "tpr_ci95": [object], "within_categories?": {"*": object}}

SHAPE = {
    "seed": int,
    "notes": [str],
    "left_out": {"*": str},
    "privacy?": {"*": object},
    "exposure?": {"candidates": int, "most": object, "chance": object, "by_copies": [{"copies": int, "*": object}]},
    "membership?": {
        "inside": int,
        "outside": int,
        "compared": {"rows": str, "categories_apart": object},
        "scores": {"*": str},
        "difference": _SCORE,
        "loss": _SCORE,
        "base": _SCORE,
        "clients": {"@": {"inside": int, "outside": int, **_SCORE}},
        "*": object,
    },
    "tokens?": {"round": int, "client": str, "*": object},
    "release?": {"releases": int, "alarm": bool, "*": object},
    "*": object,
}
"""In the words of `report.load`: "@" is a client's id, "?" marks what may be null, "*" any other key."""
