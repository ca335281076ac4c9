"""Rows kept for evaluation: the same for everyone, drawn before any client gets its share."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from shepherd import rng
from shepherd.types import Example

_SINGLE = "\0 one row"
"""The category of all rows that are alone in theirs."""


def hold_out(
    examples: Sequence[Example], per_category: int, seed: int, key: str = "category", *, pool_single: bool = False
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, held out): `per_category` rows of each category, drawn by seed (FedIT: 10), in the order of the data.
    `key` is "category", or "source" where the clients are the sources. pool_single: categories of one row count as one
    category together, so that a category per row leaves something to evaluate with.

    Never more than half of a category: `short_categories` says where that, or the next rule, left fewer. Rows that ask
    the same (`same_prompt`) stay together, so that no held-out row is answered in the training data.
    """
    asked: dict[str, list[int]] = {}
    rows: dict[str, list[int]] = {}
    kinds = [getattr(example, key) for example in examples]
    sizes = Counter(kinds)
    if pool_single:
        kinds = [_SINGLE if sizes[kind] == 1 else kind for kind in kinds]
    for position, example in enumerate(examples):
        asked.setdefault(same_prompt(example), []).append(position)
        rows.setdefault(kinds[position], []).append(position)
    left = {category: min(per_category, len(held) // 2) for category, held in rows.items()}
    out: set[int] = set()
    for category in sorted(rows):
        for i in rng.stream(seed, "hold out", category).permutation(len(rows[category])):
            position = rows[category][i]
            if position in out or not left[category]:
                continue
            group = asked[same_prompt(examples[position])]
            need: dict[str, int] = {}
            for member in group:
                need[kinds[member]] = need.get(kinds[member], 0) + 1
            if all(count <= left[c] for c, count in need.items()):
                out.update(group)
                for c, count in need.items():
                    left[c] -= count
    train = tuple(e for position, e in enumerate(examples) if position not in out)
    return train, tuple(examples[position] for position in sorted(out))


def short_categories(
    examples: Sequence[Example], held_out: Sequence[Example], per_category: int, key: str = "category"
) -> Mapping[str, tuple[int, int]]:
    """Category -> (rows held out, rows there are), for the categories with fewer than `per_category` held out."""
    counts = {getattr(e, key): [0, 0] for e in examples}
    for e in examples:
        counts[getattr(e, key)][1] += 1
    for e in held_out:
        counts[getattr(e, key)][0] += 1
    return {c: (out, rows) for c, (out, rows) in sorted(counts.items()) if out < per_category}


def same_prompt(example: Example) -> str:
    """What the example asks, as `alike` compares it: equal for rows that must not be parted."""
    asked = [m for m in example.messages if m.role == "text"] or example.messages[:-1]  # plain text asks nothing
    turns = [f"{m.role}:{m.content}{m.extra}" for m in asked]
    return alike("\n".join([*turns, example.context, example.tools]))


def alike(text: str) -> str:
    """The text without regard to case, white space and how its accents are encoded (Unicode's form NFC)."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())
