"""Held-out rows: the same for all arms, drawn before the partition."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from shepherd import rng
from shepherd.types import Example

_SINGLE = "\0 one row"
"""The joint category of rows whose category has no other row."""


def hold_out(
    examples: Sequence[Example], per_category: int, seed: int, key: str = "category", *, pool_single: bool = False
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(training rows, held-out rows), both in the order of the data: `per_category` of each category, drawn by seed
    (FedIT: 10). key: "category", or "source" if the clients are the sources. pool_single: categories of a single row
    form one category, so that data with a category per row can be evaluated.

    At most half of a category is held out, and rows with the same prompt (`prompt_key`) are never separated, so that no
    held-out row is answered in the training data. `short_categories` lists where these rules left fewer rows.
    """
    same_prompt: dict[str, list[int]] = {}
    rows: dict[str, list[int]] = {}
    kinds = [getattr(example, key) for example in examples]
    sizes = Counter(kinds)
    if pool_single:
        kinds = [_SINGLE if sizes[kind] == 1 else kind for kind in kinds]
    for position, example in enumerate(examples):
        same_prompt.setdefault(prompt_key(example), []).append(position)
        rows.setdefault(kinds[position], []).append(position)
    left = {category: min(per_category, len(held) // 2) for category, held in rows.items()}
    out: set[int] = set()
    for category in sorted(rows):
        for i in rng.stream(seed, "hold out", category).permutation(len(rows[category])):
            position = rows[category][i]
            if position in out or not left[category]:
                continue
            group = same_prompt[prompt_key(examples[position])]
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
    """Category -> (held-out rows, all rows), for categories with fewer than `per_category` held-out rows."""
    counts = {getattr(e, key): [0, 0] for e in examples}
    for e in examples:
        counts[getattr(e, key)][1] += 1
    for e in held_out:
        counts[getattr(e, key)][0] += 1
    return {c: (out, rows) for c, (out, rows) in sorted(counts.items()) if out < per_category}


def prompt_key(example: Example) -> str:
    """The prompt of an example, normalised: equal for rows that must not be separated."""
    prompt = [m for m in example.messages if m.role == "text"] or example.messages[:-1]  # plain text has no prompt
    turns = [f"{m.role}:{m.content}{m.extra}" for m in prompt]
    return normalised("\n".join([*turns, example.context, example.tools]))


def normalised(text: str) -> str:
    """The text in NFC, case-folded, with single spaces as white space."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())
