"""The promises of a federated method (see server/method.py for the noun), against dense float64 matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shepherd.errors import UsageError
from shepherd.server.method import FEDAVG, Method
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.testing.arrays import arrays, inputs, same_bits
from shepherd.testing.promise import attempt, promise
from shepherd.testing.rounds import (
    BLOCKS,
    SEED,
    WEIGHTS,
    R,
    a_round,
    after_rounds,
    begin,
    dense,
    law,
    local,
)

MIXED = {"a": 2, "b": 4, "c": 2}
TOLERANCES: Mapping[Any, float] = {np.float64: 1e-11, np.float32: 3e-6}
INEXACT = 1e-3
"""The relative error from which on a method is inexact."""


def check_method(rule: str | Callable[..., Method] | Method, **options: Any) -> None:
    """Hold a method, by name or by its factory, with options, to the promises of aggregation on the server.

    Its models are finite and keep the dtype; the order of arrival changes no bit, and no argument is modified. A lone
    client's model, and one on which all clients agree, becomes the global model. If it is `exact`, the increment moves
    by the weighted mean of the clients' changes, Σ c_k (E_k − E); otherwise it does not; a method that keeps a share of
    the energy loses no more than the rest. If it is `linear`, updates of the same weighted sum give the same model (the
    sum law). Clients have their own ranks where it says `mixed_ranks`, and are refused elsewhere. Methods with a
    personal part (`pieces.personal`) are held to the first sentence, the sum law and the last.

    The server optimizer is FedAvg. Raises AssertionError, with the promise and the sizes, for the first that is broken;
    UsageError for a name or an option that there is not.
    """
    if isinstance(rule, Method):
        _check(replace(rule, optimizer=FEDAVG))
        return
    with methods.including(rule) as name:
        _check(build_method(name, options))


def _check(method: Method) -> None:
    part, pieces = f"method {method.name!r}", method.pieces
    for dtype in TOLERANCES:
        attempt(partial(_check_rounds, method, dtype, part), part, f"3 rounds, {np.dtype(dtype).name}")
    _check_order(method, part)
    _check_ranks(method, part)
    if method.linear:
        _check_sum(method, part)
    if pieces.personal:
        return
    done = a_round(method, after_rounds(method, 2, shapes=BLOCKS), 3)
    if pieces.remainder.energy < 1:
        for module in BLOCKS:
            exact, rest = law(done, module), done.before.remainder[module].dense()
            lost, most = np.linalg.norm(dense(done.after, module) - exact), 1 - pieces.remainder.energy
            within = lost <= 1.0001 * np.sqrt(most) * np.linalg.norm(exact - rest)
            promise(bool(within), part, f"more than {most:g} of the energy is lost", _sizes(module))
        return
    alone = a_round(method, done.before, 3, {"a": 1.0})
    agreed = replace(done, updates=tuple(replace(done.updates[0], client=client) for client in WEIGHTS))
    for found, words in ((alone, "a lone client's model does"), (agreed, "the model on which all clients agree does")):
        for module in BLOCKS:
            expected = local(found.before, found.views["a"], found.updates[0], module)
            near = _error(dense(found.after, module), expected) <= TOLERANCES[np.float64]
            promise(
                near, part, f"{words} not become the global model", f"{len(found.updates)} clients, {_sizes(module)}"
            )
    if not method.exact and method.aggregator is None:
        for ranks in (None, MIXED) if method.mixed_ranks else (None,):
            done = a_round(method, after_rounds(method, 2, shapes=BLOCKS, ranks=ranks), 3, ranks=ranks)
            error = min(_error(dense(done.after, module), law(done, module)) for module in BLOCKS)
            words = "it is not declared exact, and moves by the weighted mean of the clients' changes"
            promise(error >= INEXACT, part, words, f"relative error {error:.2g}, ranks {ranks or R}")


def _check_rounds(method: Method, dtype: Any, part: str) -> None:
    """Three rounds of equal ranks, and of mixed ones: finite, of one dtype, exact where that is declared."""
    for ranks in (None, MIXED) if method.mixed_ranks else (None,):
        # Owners of a slot share its weight, so with mixed ranks the law has other coefficients.
        held = method.changed({"weigh": "given"}) if ranks and method.exact and method.pieces.weigh.by_slot else method
        model = begin(held, BLOCKS, dtype=dtype)
        for number in (1, 2, 3):
            done = a_round(held, model, number, ranks=ranks)
            model = done.after
            where = f"round {number}, {np.dtype(dtype).name}, ranks {ranks or R}"
            kinds = {array.dtype for name, array in arrays(model).items() if not name.startswith("memory")}
            promise(kinds == {np.dtype(dtype)}, part, "the next model has another dtype", where)
            finite = all(np.isfinite(array).all() for array in arrays(model).values())
            promise(finite, part, "the next model is not finite", where)
            for module in BLOCKS if method.exact and not method.pieces.personal else ():
                error = _error(dense(model, module), law(done, module))
                words = f"declared exact, and {error:.2g} off the weighted mean of the clients' changes"
                promise(error <= TOLERANCES[dtype], part, words, f"{where}, {_sizes(module)}")


def _check_order(method: Method, part: str) -> None:
    done = a_round(method, after_rounds(method, 2, shapes=BLOCKS), 3)  # float64: float32 would hide another order
    before = {name: array.copy() for name, array in inputs(done).items()}
    straight = arrays(done.after)
    now = inputs(done)
    kept = all(np.array_equal(now[name], before[name]) for name in before)
    promise(kept, part, "combining modifies the model or the updates that it is given", "3 clients")
    promise(
        same_bits(straight, arrays(done.after)),
        part,
        "the same updates give another model the second time",
        "3 clients",
    )
    for order in ((2, 1, 0), (1, 2, 0)):
        mixed = arrays(replace(done, updates=tuple(done.updates[i] for i in order)).after)
        promise(same_bits(straight, mixed), part, "the order of arrival changes bits of the next model", "3 clients")


def _check_sum(method: Method, part: str) -> None:
    """Two clients that exchange a part of their updates, by their weights, leave the next model as it is."""
    done = a_round(method, after_rounds(method, 2, shapes=BLOCKS), 3)
    one, other, *more = done.updates
    share = {name: 0.2 * (array - other.delta[name]) for name, array in more[0].delta.items()}
    moved = tuple(
        replace(u, delta={name: array + sign * share[name] / WEIGHTS[u.client] for name, array in u.delta.items()})
        for u, sign in ((one, 1.0), (other, -1.0))
    )
    after = replace(done, updates=(*moved, *more)).after
    for module in BLOCKS:
        error = _error(dense(after, module), dense(done.after, module))
        words = f"declared linear, and {error:.2g} off with other updates of the same weighted sum"
        promise(error <= 1e-10, part, words, f"3 clients, {_sizes(module)}")


def _check_ranks(method: Method, part: str) -> None:
    if method.mixed_ranks:
        model = after_rounds(method, 2, shapes=BLOCKS)
        view = method.view(model, "a", 2, 3, SEED)
        if view.choice is not None:
            own = view.adapter.r == R and view.choice.budget == 2 * len(BLOCKS)
        elif view.slots is None:
            own = view.adapter.r == 2 and all(len(A) == B.shape[1] == 2 for A, B in view.adapter.factors.values())
        else:
            own = view.adapter.r == R and all(moves.sum() == 2 for moves in view.slots.values())
        promise(own, part, "the model of a client does not have the client's rank", f"rank 2 of {R}")
        for module in BLOCKS if view.adapter.r == R else ():
            near = _error(local(model, view, None, module), dense(model, module)) <= 1e-12
            promise(near, part, "a client of lower rank does not start from the global model", _sizes(module))
        for rank in (0, R + 1):
            refused = _refuses(partial(method.view, model, "a", rank, 3, SEED))
            promise(refused, part, f"a client of rank {rank} is not refused", f"ranks from 1 to {R}")
        return
    where = f"ranks 2 and {R}"
    refused = _refuses(lambda: check_ranks(method, {"a": 2, "b": R}, R))
    promise(refused, part, "mixed ranks are not refused, and mixed_ranks is not declared", where)
    refused = _refuses(lambda: method.view(begin(method, BLOCKS), "a", 2, 1, SEED))
    promise(refused, part, "a client of lower rank is given a model, and mixed_ranks is not declared", where)


def _refuses(work: Callable[[], Any]) -> bool:
    try:
        work()
    except UsageError:
        return True
    return False


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def _sizes(module: str) -> str:
    n_in, n_out = BLOCKS[module]
    return f"a module of {n_in} × {n_out}, rank {R}"
