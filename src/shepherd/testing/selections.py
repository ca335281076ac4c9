"""The promises of a client selection (see clients/pool.py for the noun)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shepherd.clients.pool import Draw, Pool, Selection, selections
from shepherd.clients.selection import build_selection
from shepherd.rng import stream
from shepherd.testing.promise import attempt, global_generator, promise

CLIENTS = tuple(f"c{k:02}" for k in range(20))
SIZES = {client: k + 1 for k, client in enumerate(CLIENTS)}
SIZES_OF_COHORTS = (1, 7, 20)
ROUNDS = 20


def check_selection(rule: str | Callable[..., Selection] | Selection, **options: Any) -> None:
    """Hold a selection, by name or by its factory, with options, to the promises of client selection.

    A draw has clients of the pool alone, sorted and once each, and none only where `may_be_empty`. It has weights where
    the rule `weighs`, of sum one unless they are `fixed`, and as many draws as the cohort's size where it `refills`.
    The same pool and stream give the same draw, without the global generator; another stream gives another draw if it
    is `random`, another history of losses and rounds if it `learns`, and neither otherwise. A pool of one client
    without history is drawn from.

    Raises AssertionError, with the promise and the sizes, for the first that is broken; UsageError for a name or an
    option that there is not.
    """
    if isinstance(rule, Selection):
        _check(replace(rule, name=rule.name or "selection"))
        return
    with selections.including(rule) as name:
        _check(build_selection(name, options))


def _check(selection: Selection) -> None:
    part = f"selection {selection.name!r}"
    seen = _pool(1.0)
    for size in SIZES_OF_COHORTS:
        where = f"{size} of {len(CLIENTS)} clients"
        for number in range(ROUNDS):
            _check_draw(selection, _drawn(selection, seen, size, stream(0, "select", number)), size, where)
    only = Pool(1, ("a",), {"a": 3}, {"a": 1.0})
    _check_draw(selection, _drawn(selection, only, 1, stream(0, "select", 1)), 1, "a pool of one client, no history")
    where = f"5 of {len(CLIENTS)} clients"
    before = global_generator()
    first = _drawn(selection, seen, 5, stream(0, "select", 3))
    promise(global_generator() == before, part, "it draws from the global generator of numpy", where)
    again = _drawn(selection, seen, 5, stream(0, "select", 3))
    promise(first == again, part, "the same pool and stream give another draw the second time", where)
    cohorts = {_drawn(selection, seen, 5, stream(s, "select", n)).clients for s in range(4) for n in range(4)}
    if selection.random:
        promise(len(cohorts) >= 14, part, f"16 streams give {len(cohorts)} cohorts, and it says random", where)
    else:
        promise(len(cohorts) == 1, part, f"16 streams give {len(cohorts)} cohorts, and it does not say random", where)
    moved = [_drawn(selection, _pool(-1.0), 5, stream(0, "select", n)) for n in range(ROUNDS)]
    usual = [_drawn(selection, seen, 5, stream(0, "select", n)) for n in range(ROUNDS)]
    if selection.learns:
        promise(moved != usual, part, "losses and rounds of the clients change no draw, and it says learns", where)
    else:
        promise(moved == usual, part, "losses and rounds of the clients change a draw; does it learn?", where)


def _check_draw(selection: Selection, draw: Draw, size: int, where: str) -> None:
    held = partial(_held, f"selection {selection.name!r}", where)
    known = CLIENTS if size > 1 or not where.startswith("a pool") else ("a",)
    held(set(draw.clients) <= set(known), "the cohort has a client that is not in the pool")
    held(len(draw.clients) == len(set(draw.clients)), "the cohort has a client twice")
    held(list(draw.clients) == sorted(draw.clients), "the cohort is not sorted")
    held(bool(draw.clients) or selection.may_be_empty, "the cohort is empty, and may_be_empty is not set")
    held((draw.weights is not None) == selection.weighs, "weighs does not say whether the draw has weights")
    held(draw.fixed == selection.fixed, "fixed is not that of the draw")
    if draw.weights is not None:
        held(tuple(draw.weights) == draw.clients, "the weights are not those of the cohort, in its order")
        total = sum(draw.weights.values())
        held(all(weight > 0 for weight in draw.weights.values()), "a weight is not above 0")
        held(draw.fixed or abs(total - 1) < 1e-9, f"the weights sum to {total:g}, not to 1")
    if selection.refills:
        times = sum(map(draw.times, draw.clients))
        held(times == size, f"{times} draws for a cohort of {size}")


def _held(part: str, where: str, holds: bool, words: str) -> None:
    promise(holds, part, words, where)


def _drawn(selection: Selection, pool: Pool, size: int, rng: np.random.Generator) -> Draw:
    where = f"{size} of {len(pool.clients)} clients"
    draw = attempt(lambda: selection.draw(pool, size, rng), f"selection {selection.name!r}", where)
    promise(
        isinstance(draw, Draw), f"selection {selection.name!r}", f"a draw is a Draw, not {type(draw).__name__}", where
    )
    return draw


def _pool(slope: float) -> Pool:
    """Twenty clients, twelve of them with a history; losses rise by client, or fall with a slope of -1."""
    seen = CLIENTS[:12]
    losses = {client: 3.0 + slope * 0.1 * k for k, client in enumerate(seen)}
    shares = {client: size / sum(SIZES.values()) for client, size in SIZES.items()}
    rounds = dict.fromkeys(seen, 3 if slope > 0 else 2)
    return Pool(5, CLIENTS, SIZES, shares, rounds, losses, {client: 1.0 + k for k, client in enumerate(seen)})
