"""Updates, weights and values that end a round with the name of the client, module or tensor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import (
    SHAPES,
    WEIGHTS,
    R,
    a_round,
    begin,
)
from method_tables import UNCUT, of
from shepherd.errors import ClientError, NumericalError, UsageError
from shepherd.lowrank import LowRank
from shepherd.server.methods import build_method


@pytest.mark.parametrize("name", UNCUT)
def test_updates_of_another_shape_or_module_set_are_refused_by_client_and_tensor(name):
    done = a_round(of(name), begin(of(name)), 1)
    first = next(iter(done.updates[1].delta))
    without = {n: d for n, d in done.updates[1].delta.items() if n != first}
    for delta in (without, {**without, first: np.zeros((2, 3))}, {**done.updates[1].delta, "k.A": np.zeros((R, 2))}):
        updates = (done.updates[0], replace(done.updates[1], delta=delta))
        with pytest.raises(ClientError, match=f"^b: ({first}|k.A) is "):
            replace(done, updates=updates).after  # noqa: B018


@pytest.mark.parametrize("name", UNCUT)
def test_a_non_finite_value_ends_the_round_with_the_name_of_the_module(name):
    done = a_round(of(name), begin(of(name)), 1)
    delta = {n: d.copy() for n, d in done.updates[1].delta.items()}
    delta[next(n for n in delta if n.startswith("q"))][...] = np.nan
    with pytest.raises((ClientError, NumericalError), match=r"^q: .* not finite"), np.errstate(invalid="ignore"):
        replace(done, updates=(done.updates[0], replace(done.updates[1], delta=delta))).after  # noqa: B018


def first_filled(done, value: float, tensors: str = ""):
    """The same round with this value in the first client's tensors with this prefix."""
    delta = {n: np.full_like(d, value if n.startswith(tensors) else 0) for n, d in done.updates[0].delta.items()}
    return replace(done, updates=(replace(done.updates[0], delta=delta), *done.updates[1:]))


@pytest.mark.parametrize("name", ["fedit", "flexlora", "fedex_lora"])
def test_values_that_overflow_float32_end_the_round_with_the_name_of_the_module(name):
    done = a_round(of(name), begin(of(name), dtype=np.float32), 1, weights={**WEIGHTS, "a": 2.0})
    with pytest.raises((ClientError, NumericalError), match=r"^q: .* not finite"):
        first_filled(done, 3e38, "q").after  # noqa: B018


def test_an_overflowing_sum_of_remainders_ends_the_round_with_the_name_of_the_module():
    dense_one = LowRank.beside_identity(np.full(SHAPES["q"][::-1], 3e38, np.float32))
    done = a_round(of("fedex_lora"), begin(of("fedex_lora"), dtype=np.float32), 1)
    full = replace(done, before=replace(done.before, remainder={"q": dense_one}))
    with pytest.raises(ClientError, match=r"^q: .* of the remainder are not finite; the round is not committed"):
        first_filled(full, 1e19, "q").after  # noqa: B018


def test_an_overflowing_server_state_ends_the_round_with_the_name_of_the_tensor():
    adam = build_method("fedit", None, "fedadam")  # 0.01 · (0.2 · 1e25)² > 3.4e38: v would be infinite, the move 0
    done = a_round(adam, begin(adam, dtype=np.float32), 1)
    with pytest.raises(ClientError, match=r"^server\.q\.A\.v: .* of the server's memory are not finite"):
        first_filled(done, 1e25, "q.A").after  # noqa: B018
    plain = a_round(of("fedit"), begin(of("fedit"), dtype=np.float32), 1)
    controls = {f"{n}.control": np.full(d.shape, 3e38, np.float32) for n, d in plain.updates[0].delta.items()}
    updates = tuple(replace(u, delta={**u.delta, **controls}) for u in plain.updates)
    many = replace(of("fedit"), population=dict.fromkeys(WEIGHTS, 0.5))  # 3 · 3e38 / 2
    again = replace(plain, method=many, updates=updates)
    with pytest.raises(ClientError, match=r"^control\.o\.A: .* of the server's memory are not finite"):
        again.after  # noqa: B018


@pytest.mark.parametrize("bad", [{"a": -0.1, "b": 1.1}, {"a": np.nan, "b": 0.5}, {"a": 0.0, "b": 0.0}])
def test_invalid_weights_are_refused(bad):
    done = a_round(of("fedit"), begin(of("fedit")), 1, weights={"a": 0.5, "b": 0.5})
    with pytest.raises(UsageError, match="weights must be finite"):
        replace(done, weights=bad).after  # noqa: B018
    with pytest.raises(UsageError, match="b sent an update but has no weight"):
        replace(done, weights={"a": 1.0}).after  # noqa: B018
