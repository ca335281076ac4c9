"""Partitioners: rules that assign every row to one client. One function and one decorator add a rule and its tests.

    @partitioners
    def by_length(): ...        # returns partition(examples, clients, rng) -> {client's name: (example id, …)}

Every row belongs to exactly one client and no client is empty: `partition.divide` checks both and derives safe ids from
the names. `@deterministic` marks a rule that ignores `rng`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from shepherd.errors import DataError
from shepherd.registry import Registry
from shepherd.types import ClientId, Example

partitioners = Registry("partitioner")

Key = Literal["category", "source"]
"""In a recipe also the name of a column, which then is the source of each row (`experiment.division`)."""
Partitioner = Callable[[Sequence[Example], int, np.random.Generator], dict[str, tuple[str, ...]]]
Factory = TypeVar("Factory", bound=Callable[..., Partitioner])


def deterministic(factory: Factory) -> Factory:
    """Mark a partitioner's factory as independent of the seed: all seeds give the same partition."""
    vars(factory)["random"] = False
    return factory


def is_random(name: str) -> bool:
    """Whether the partitioner draws from its random stream, for some data and options at least."""
    return getattr(partitioners.get(name), "random", True)


@partitioners
def iid() -> Partitioner:
    """Random assignment, sizes equal to within one row."""

    def partition(examples, clients, rng):
        return _numbered(examples, np.array_split(rng.permutation(len(examples)), _positive(clients, "iid")))

    return partition


@partitioners
def shards(per_client: int = 2, key: Key = "category") -> Partitioner:
    """Sort by key, cut into clients × per_client shards, assign per_client to each (McMahan et al., 2017; FedIT)."""
    _at_least_one(per_client=per_client)
    _known_key(key)

    def partition(examples, clients, rng):
        count = _positive(clients, "shards") * per_client
        if count > len(examples):
            raise DataError(
                f"shards: {clients} clients × {per_client} shards are more than the {len(examples)} rows",
                hint=f"at most {len(examples) // per_client} clients, or fewer shards per client",
            )
        values = _values(examples, key)
        # Shuffled before the stable sort, so that a shard is a random part of its category.
        order = sorted(rng.permutation(len(examples)), key=lambda i: values[i])
        cut = np.array_split(np.array(order), count)
        assigned = rng.permutation(count).reshape(clients, per_client)
        return _numbered(examples, [np.concatenate([cut[s] for s in mine]) for mine in assigned])

    return partition


@partitioners
def dirichlet(alpha: float = 0.5, min_size: int = 1, balanced: bool = False, key: Key = "category") -> Partitioner:
    """Label skew by Dirichlet(alpha): alpha → 0 gives a client one category, alpha → ∞ all alike (Hsu et al., 2019).

    Each category is divided in proportions drawn from Dirichlet(alpha); clients below `min_size` then receive rows, one
    by one, from the largest. `balanced`: equal sizes instead; each client draws a mix of categories and continues with
    the remaining ones when one is exhausted. Both end after at most one step per row, for any alpha.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a number above 0, got {alpha}")
    alpha = min(max(alpha, 1e-100), 1e100)  # beyond these, its sums and products are not finite
    _at_least_one(min_size=min_size)
    _known_key(key)

    def partition(examples, clients, rng):
        if _positive(clients, "dirichlet") * min_size > len(examples):
            raise DataError(
                f"dirichlet: {clients} clients with at least {min_size} rows need {clients * min_size}, "
                f"there are {len(examples)}",
                hint=f"at most {len(examples) // min_size} clients, or a smaller min_size",
            )
        groups = [rng.permutation(rows).tolist() for rows in _groups(examples, key).values()]
        held = _mixes(groups, clients, alpha, rng) if balanced else _shares(groups, clients, alpha, rng)
        _fill(held, min_size)
        return _numbered(examples, held)

    return partition


@partitioners
def by_key(key: Key = "category") -> Partitioner:
    """One client per category, source or value of the column that `key` names, with that name.

    With fewer clients than keys, keys are merged, "a + b": each key, from the largest, goes to the client with the
    fewest rows. With more, the key with most rows per client is split at random, "a (1 of 2)", until there are enough.
    """
    _known_key(key)

    def partition(examples, clients, rng):
        groups = _groups(examples, key)
        if key == "source" and "" in groups:
            without = len(groups[""])
            raise DataError(
                f"by_key: {without} of {len(examples)} rows have no source",
                hint="name the column: --columns source=<your column>, or give a folder with one file per client",
            )
        clients = clients or len(groups)
        if clients < len(groups):
            return _named(examples, _merged(groups, clients))
        return _named(examples, _split(groups, clients, rng))

    return partition


@partitioners
@deterministic
def files() -> Partitioner:
    """One client per file of a folder, or per source if rows name theirs.

    Files named train and test are clients too; for other partitioners they are parts of the data (`containers`).
    """
    each = by_key("source")

    def partition(examples, clients, rng):
        found = len({e.source for e in examples if e.source})
        if clients and found and clients != found:
            raise DataError(
                f"files: {found} files are {found} clients, not {clients}",
                hint="set partition.clients = 0, or use by_key with key = 'source' to merge or split them",
            )
        return each(examples, 0, rng)

    return partition


@partitioners
def power_law(exponent: float = 1.0) -> Partitioner:
    """Quantity skew: client i holds rows in proportion to (i + 1)^−exponent, at least one; 0 gives equal sizes."""
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent must be a number from 0 upwards, got {exponent}")
    return _by_size("power_law", lambda clients: np.arange(1, clients + 1, dtype=float) ** -exponent)


@partitioners
def linear() -> Partitioner:
    """Quantity skew: client i holds rows in proportion to i + 1, at least one."""
    return _by_size("linear", lambda clients: np.arange(1, clients + 1, dtype=float))


def _by_size(name: str, weights: Callable[[int], np.ndarray]) -> Partitioner:
    def partition(examples, clients, rng):
        sizes = _apportion(len(examples), weights(_positive(clients, name)))
        return _numbered(examples, np.split(rng.permutation(len(examples)), np.cumsum(sizes)[:-1]))

    return partition


def _apportion(rows: int, weights: np.ndarray) -> np.ndarray:
    """int64[clients] that sum to `rows`, each at least 1, near rows · weights / Σ weights (largest remainders)."""
    ideal = rows * weights / weights.sum()
    sizes = np.maximum(1, np.floor(ideal)).astype(np.int64)
    while sizes.sum() > rows:  # only the floor of one row can lift the sum
        sizes[np.argmax(sizes)] -= 1
    for client in np.argsort(sizes - ideal, kind="stable")[: rows - sizes.sum()]:
        sizes[client] += 1
    return sizes


def _shares(groups: list[list[int]], clients: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    held: list[list[int]] = [[] for _ in range(clients)]
    for rows in groups:
        counts = rng.multinomial(len(rows), rng.dirichlet(np.full(clients, alpha)))
        for client, part in enumerate(np.split(np.array(rows), np.cumsum(counts)[:-1])):
            held[client] += part.tolist()
    return held


def _mixes(groups: list[list[int]], clients: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    sizes = _apportion(sum(map(len, groups)), np.ones(clients))
    left = [list(rows) for rows in groups]
    prior = np.array([len(rows) for rows in groups], float)
    held: list[list[int]] = []
    for size in sizes:
        mix = rng.dirichlet(alpha * (prior / prior.mean()))
        mine: list[int] = []
        for _ in range(size):
            there = np.array([len(rows) for rows in left], float)
            chance = mix * (there > 0)
            chance = chance if chance.sum() > 1e-12 else there
            mine.append(left[rng.choice(len(left), p=chance / chance.sum())].pop())
        held.append(mine)
    return held


def _fill(held: list[list[int]], min_size: int) -> None:
    for rows in held:
        while len(rows) < min_size:
            rows.append(max(held, key=len).pop())


def _merged(groups: Mapping[str, list[int]], clients: int) -> list[tuple[str, list[int]]]:
    names: list[list[str]] = [[] for _ in range(clients)]
    held: list[list[int]] = [[] for _ in range(clients)]
    for value in sorted(groups, key=lambda v: (-len(groups[v]), v)):
        smallest = min(range(clients), key=lambda c: (len(held[c]), c))
        names[smallest].append(value)
        held[smallest] += groups[value]
    return [(n[0] if len(n) == 1 else _unused(groups, _joined(n)), h) for n, h in zip(names, held, strict=True)]


def _unused(keys: Collection[str], name: str) -> str:
    """The name of a part or of merged keys, with a prime if a key of the data has this name."""
    while name in keys:
        name += "\N{PRIME}"
    return name


def _joined(names: Sequence[str], most: int = 4) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " + ".join(shown)


def _split(groups: Mapping[str, list[int]], clients: int, rng: np.random.Generator) -> list[tuple[str, list[int]]]:
    parts = dict.fromkeys(sorted(groups), 1)
    for _ in range(clients - len(groups)):
        parts[max(parts, key=lambda v: (len(groups[v]) / parts[v], v))] += 1
    out = []
    for value, count in parts.items():
        if count == 1:
            out.append((value, groups[value]))
            continue
        parts_of_key = np.array_split(rng.permutation(groups[value]), count)
        named = [(f"{value} ({number} of {count})", part.tolist()) for number, part in enumerate(parts_of_key, 1)]
        out += [(_unused(groups, name), part) for name, part in named]
    return out


def _groups(examples: Sequence[Example], key: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for position, value in enumerate(_values(examples, key)):
        groups.setdefault(value, []).append(position)
    return dict(sorted(groups.items()))


def _values(examples: Sequence[Example], key: str) -> list[str]:
    return [getattr(e, key) for e in examples]


def _numbered(examples: Sequence[Example], held: Sequence[Sequence[int]]) -> dict[ClientId, tuple[str, ...]]:
    width = max(3, len(str(len(held) - 1)))
    return {f"client-{c:0{width}d}": _ids(examples, rows) for c, rows in enumerate(held)}


def _named(examples: Sequence[Example], held: Sequence[tuple[str, list[int]]]) -> dict[str, tuple[str, ...]]:
    return {name: _ids(examples, rows) for name, rows in held}


def _ids(examples: Sequence[Example], rows: Sequence[int]) -> tuple[str, ...]:
    """Ids in the order of the dataset. Training shuffles the rows of each client itself."""
    return tuple(examples[i].id for i in sorted(int(row) for row in rows))


def _positive(clients: int, name: str) -> int:
    if clients < 1:
        raise DataError(
            f"{name} needs a number of clients", hint="set partition.clients, e.g. --set partition.clients=8"
        )
    return clients


def _at_least_one(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _known_key(key: str) -> None:
    if key not in ("category", "source"):
        raise ValueError(f"key must be 'category' or 'source', got {key!r}")
