"""The promises of a partitioner (see data/partitioners.py for the contract)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

from shepherd.data.partition import divide
from shepherd.data.partitioners import Partitioner, is_random, partitioners
from shepherd.errors import DataError
from shepherd.testing.promise import global_generator, promise
from shepherd.types import Example, Message, Partition

ROWS, CLIENTS, KEYS, SEEDS = (1, 7, 60), (1, 2, 6, 20), (1, 4), (0, 3)


def check_partitioner(rule: str | Callable[..., Partitioner], **options: Any) -> None:
    """Hold a partitioner, by name or by its factory, with options, to the promises of a division.

    Every row is in exactly one client, no client is empty, and there are as many clients as were asked for (as sources
    of rows where the rule takes 0 clients alone). The same seed gives the same division, without the global generator;
    another seed gives another one, unless it is marked `deterministic`. Rows that are too few are refused with a hint;
    four rows for each client are enough. Its docstring describes it, and its options have defaults.

    Raises AssertionError, with the promise and the sizes, for the first that is broken; UsageError for a name or an
    option that there is not.
    """
    with partitioners.including(rule) as name:
        part = f"partitioner {name!r}"
        promise(len(partitioners.describe(name)) > 20, part, "its docstring does not describe it")
        for option, parameter in partitioners.options(name).items():
            given = option in options or parameter.default is not inspect.Parameter.empty
            promise(given, part, f"the option {option!r} has no default")
        for rows, clients, keys, seed in product(ROWS, CLIENTS, KEYS, SEEDS):
            check_division(name, rows, clients, keys, seed, options)
        _check_seeds(name, options, part)
        _check_no_number(name, options, part)


def check_division(
    name: str, rows: int, clients: int, keys: int, seed: int, options: Mapping[str, Any] | None = None
) -> None:
    """Hold a registered partitioner to its promises for one division of `rows` rows with `keys` categories and sources.

    Raises AssertionError.
    """
    data, part = examples(rows, keys, keys), f"partitioner {name!r}"
    count = 0 if counts_itself(name, options) else clients
    where = f"{rows} rows, {clients} clients, {keys} categories and sources, seed {seed}"
    try:
        partition = _divided(data, name, options, count, seed, part)
    except DataError as error:
        promise(bool(error.hint), part, f"it refuses rows without a hint: {error}", where)
        promise(rows < 4 * clients, part, f"enough rows, and still: {error}", where)
        return
    held = partial(promise, part=part, where=where)
    asked = count or len({example.source for example in data})
    held(len(partition.clients) == asked, words=f"{len(partition.clients)} clients, not {asked}")
    before = global_generator()
    again = _divided(data, name, options, count, seed, part)
    held(global_generator() == before, words="it draws from the global generator of numpy")
    held(partition == again, words="the same seed gives another division the second time")
    listed = sorted(row for rows in partition.clients.values() for row in rows)
    held(listed == sorted(example.id for example in data), words="rows are not in exactly one client")
    held(all(partition.clients.values()), words="a client has no rows")
    held(list(partition.clients) == sorted(partition.clients), words="the clients are not sorted")


def _divided(
    data: list[Example], name: str, options: Mapping[str, Any] | None, clients: int, seed: int, part: str
) -> Partition:
    """The division; AssertionError where `divide` itself finds that the rule is broken."""
    try:
        return divide(data, name, options or {}, clients, seed)
    except DataError as error:
        if clients and error.message.startswith((f"{name} assigned", f"{name} failed")):
            raise AssertionError(f"{part}: {error.message} (seed {seed})") from error
        raise


def _check_seeds(name: str, options: Mapping[str, Any], part: str) -> None:
    count = 0 if counts_itself(name, options) else 6
    first, second = (divide(examples(60), name, options, count, seed).clients for seed in (0, 1))
    where = f"60 rows, {count} clients"
    if is_random(name):
        words = "another seed gives the same division: mark the rule with @deterministic, or draw from rng"
        promise(first != second, part, words, where)
    else:
        promise(first == second, part, "another seed gives another division, and it is marked deterministic", where)


def _check_no_number(name: str, options: Mapping[str, Any], part: str) -> None:
    try:
        made = divide(examples(8), name, options, 0, 0)
    except DataError as error:
        promise(bool(error.hint), part, f"it refuses 0 clients without a hint: {error}", "8 rows")
    else:
        promise(bool(made.clients), part, "0 clients are neither refused nor made", "8 rows")


def counts_itself(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether the rule refuses any number of clients but its own, such as one for each source of the rows."""
    try:
        divide(examples(24), name, options or {}, 5, 0)
    except DataError:
        try:
            divide(examples(24), name, options or {}, 0, 0)
        except DataError:
            return False
        return True
    return False


def examples(rows: int, categories: int = 4, sources: int = 3) -> list[Example]:
    """Rows with skewed categories: row i has the category of i's number of trailing zero bits."""
    return [
        Example(
            f"x:{i}",
            (Message("user", f"question {i}"), Message("assistant", f"answer {i}")),
            category=f"c{min(categories - 1, ((i + 1) & -(i + 1)).bit_length() - 1)}",
            source=f"site {i % sources}",
        )
        for i in range(rows)
    ]
