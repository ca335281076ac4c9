"""The comparisons of a study file -> pairs of (variant, arm), each a − b with its margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shepherd.arms import arm_named, parts_of
from shepherd.errors import UsageError, did_you_mean
from shepherd.experiment.study.file import CompareTable, StudyFile
from shepherd.experiment.study.variants import Variant

PICKS = ("mean", "best")
"""What a comparison takes of an arm with one model per client: their mean, or the best one, chosen on other rows."""


@dataclass(frozen=True)
class Side:
    """An arm of a variant. arm: a name, `NAME:mean`, `NAME:best` or `NAME/CLIENT`."""

    variant: str
    arm: str


@dataclass(frozen=True)
class Pair:
    """One comparison of a table, loss of a − loss of b. row_sd, seed_sd: what is expected of it, for a forecast."""

    a: Side
    b: Side
    margin: float | None = None
    rows: Literal["all", "own"] = "all"
    row_sd: float | None = None
    seed_sd: float | None = None

    @property
    def label(self) -> str:
        """The two sides, with their variant where it differs or the arm is not federated."""
        one = self.a.variant == self.b.variant
        sides = [side.arm if one else _short(side) for side in (self.a, self.b)]
        where = f" ({self.a.variant})" if one else ""
        own = ", own rows" if self.rows == "own" else ""
        return f"{sides[0]} \N{MINUS SIGN} {sides[1]}{where}{own}"


def _short(side: Side) -> str:
    return side.variant if side.arm == "federated" else f"{side.variant}:{side.arm}"


def base_arm(arm: str) -> str:
    """The arm of evaluation.arms that a side takes its losses from."""
    return parts_of(arm)[0]


def pairs_of(file: StudyFile, variants: Sequence[Variant], reference: str, problems: list[str]) -> list[Pair]:
    """The comparisons of a study file, in its order; without any, the usual ones. Mistakes are added to `problems`."""
    if clash := [v.name for v in variants if _is_arm(v.name) or _is_arm(v.family)]:
        problems.append(f"variant {clash[0]!r} has the name of an arm: a comparison could mean either")
        return []
    found: list[Pair] = []
    for number, entry in enumerate(file.compare, 1):
        try:
            found += _pairs(entry, variants)
        except UsageError as error:
            problems.append(f"compare, entry {number}: {error.message}")
    if not file.compare:
        found = list(_usual(variants, reference))
    seen: set[tuple[Side, Side, str]] = set()
    for pair in found:
        if pair.a == pair.b:
            problems.append(f"compare: {pair.a.variant}:{pair.a.arm} is compared with itself")
        elif (pair.a, pair.b, pair.rows) in seen or (pair.b, pair.a, pair.rows) in seen:
            problems.append(f"compare: {pair.label} is named twice")
        seen.add((pair.a, pair.b, pair.rows))
    return found


def _usual(variants: Sequence[Variant], reference: str) -> Iterator[Pair]:
    """Every other variant − the reference; within it, federated − every other arm."""
    first = next((variant for variant in variants if variant.name == reference), None)
    if first is None:
        return
    for arm in first.arms:
        if arm == "federated":
            continue
        for name in [f"{arm}:{pick}" for pick in PICKS] if arm_named(arm).per_client else [arm]:
            yield Pair(Side(reference, "federated"), Side(reference, name))
    for variant in variants:
        if variant is not first:
            yield Pair(Side(variant.name, "federated"), Side(reference, "federated"))


def _pairs(entry: CompareTable, variants: Sequence[Variant]) -> list[Pair]:
    (group_a, arm_a), (group_b, arm_b) = (_side(text, variants) for text in (entry.a, entry.b))
    if group_a is None and group_b is None:
        able = [v for v in variants if all(base_arm(arm) in v.arms for arm in (arm_a, arm_b))]
        if not able:
            missing = next((arm for arm in (arm_a, arm_b) if not any(base_arm(arm) in v.arms for v in variants)), arm_a)
            raise UsageError(f"no variant has the arm {base_arm(missing)!r} among its evaluation.arms")
        matched = [(variant, variant) for variant in able]
    elif group_a is None or group_b is None:
        matched = [(variant, variant) for variant in (group_a or group_b or [])]
    else:
        matched = _matched(group_a, group_b, f"{entry.a!r} and {entry.b!r}")
    for a, b in matched:
        for variant, arm in ((a, arm_a), (b, arm_b)):
            if base_arm(arm) not in variant.arms:
                raise UsageError(
                    f"{variant.name!r} has no arm {base_arm(arm)!r}: its evaluation.arms are {', '.join(variant.arms)}"
                )
    if entry.rows == "own" and not any(pick == "mean" or client for _, pick, client in map(parts_of, (arm_a, arm_b))):
        raise UsageError('rows = "own" compares with models of clients: name local:mean or local/NAME')
    return [
        Pair(Side(a.name, arm_a), Side(b.name, arm_b), entry.margin, entry.rows, entry.row_sd, entry.seed_sd)
        for a, b in matched
    ]


def _matched(group_a: list[Variant], group_b: list[Variant], sides: str) -> list[tuple[Variant, Variant]]:
    """Variants of two families at the same points of the grid; a single variant is matched with each of the other."""
    if len(group_a) == 1 or len(group_b) == 1:
        return [(a, b) for a in group_a for b in group_b]
    by_point = {tuple(b.point.items()): b for b in group_b}
    matched = [(a, by_point[key]) for a in group_a if (key := tuple(a.point.items())) in by_point]
    if not matched:
        raise UsageError(f"{sides} have no point of the grid in common")
    return matched


def _side(text: str, variants: Sequence[Variant]) -> tuple[list[Variant] | None, str]:
    """(variants, arm) of one side; None: every variant. Raises UsageError for one that names nobody."""
    if _is_arm(text):
        return None, _arm(text)
    if group := _group(text, variants):
        return group, "federated"
    for at, character in enumerate(text):
        if character == ":" and (group := _group(text[:at], variants)):
            if not _is_arm(text[at + 1 :]):
                near = did_you_mean(text[at + 1 :], _arm_names(group))
                raise UsageError(f"{text!r}: {text[at + 1 :]!r} is not an arm.{near} {_KNOWN_ARMS}")
            return group, _arm(text[at + 1 :])
    names = list(dict.fromkeys([*(v.name for v in variants), *(v.family for v in variants)]))
    near = did_you_mean(text, [*names, *_arm_names(variants)])
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    raise UsageError(f"{text!r} is neither a variant nor an arm.{near} Variants: {shown}. {_KNOWN_ARMS}")


_KNOWN_ARMS = "Arms: base, federated, centralised, local:mean, local:best, local/NAME, or another of evaluation.arms"


def _group(text: str, variants: Sequence[Variant]) -> list[Variant]:
    exact = [variant for variant in variants if variant.name == text]
    return exact or [variant for variant in variants if variant.family == text]


def _arm_names(variants: Sequence[Variant]) -> list[str]:
    plain = {arm for variant in variants for arm in variant.arms}
    each = {f"{arm}:{pick}" for arm in plain if _is_arm(arm) and arm_named(arm).per_client for pick in PICKS}
    return sorted(plain | each)


def _is_arm(text: str) -> bool:
    name, slash, client = text.partition("/")
    name, colon, pick = name.partition(":") if not slash else (name, "", "")
    if ":" in text and not colon and not slash:
        return False
    try:
        arm = arm_named(name)
    except UsageError:
        return False
    if slash:
        return bool(client) and arm.per_client
    return pick in PICKS and arm.per_client if colon else True


def _arm(text: str) -> str:
    """A per-client arm without a pick means its mean."""
    plain = "/" not in text and ":" not in text
    return f"{text}:mean" if plain and arm_named(text).per_client else text
