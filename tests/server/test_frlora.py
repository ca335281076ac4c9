"""FRLoRA: principal directions, rounding of the base, and export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import (
    ALPHA,
    SEED,
    SHAPES,
    R,
    a_round,
    assert_near,
    begin,
    bfloat16,
    dense,
    fresh,
)
from method_tables import of
from shepherd.errors import UsageError
from shepherd.lowrank import LowRank
from shepherd.server.merged_adapter import merged_adapter


def test_frlora_without_base_weights_is_an_error_with_the_reason():
    with pytest.raises(UsageError, match="needs the base weights, and those of o are not there"):
        of("frlora").start(begin(of("fedit")).adapter, SEED)


def test_frlora_starts_from_principal_directions_with_a_zero_increment():
    from federations import base_weights

    model = begin(of("frlora"))
    for module, weight in base_weights().items():
        assert np.linalg.norm(dense(model, module)) < 1e-12
        A, B = model.adapter.factors[module]
        top = LowRank(weight, np.eye(weight.shape[1])).truncated(R).dense()
        assert_near(ALPHA / R * B @ A, top, 1e-12)


def in_bfloat16(rest: LowRank) -> np.ndarray:
    """An increment on a bfloat16 base: each factor rounded."""
    L, R = (bfloat16(factor.astype(np.float32)).astype(np.float64) for factor in (rest.L, rest.R))
    return L @ R


@pytest.mark.parametrize("merge", ["factor", "product"])
def test_rounding_to_bfloat16_loses_two_thousandths_of_the_trained_increment_of_frlora(merge):
    # As sB̄Ā − sB₀A₀ the rest lost 23 % here: a change of 2 % of the factors is a few roundings of 2⁻⁹ of them.
    method = of("frlora").changed({"merge": merge})
    start = begin(method, dtype=np.float32)
    done = a_round(method, start, 1, size=0.02)
    for module in SHAPES:
        learned = dense(done.after, module) - dense(start, module)
        rest = done.after.remainder[module].parts()[1]
        assert_near(in_bfloat16(rest), learned, 0.004)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_the_subtracted_directions_of_frlora_stay_separate_from_the_trained_increment(dtype, tolerance):
    shapes = {"o": (10, 10), "q": (14, 8)}
    model = begin(of("frlora"), shapes=shapes, dtype=dtype)
    taken = {module: rest.dense() for module, rest in model.remainder.items()}
    expected = dict.fromkeys(shapes, 0.0)
    for number in range(1, 6):  # 2 · 4 columns a round: more than the matrix has after the first
        done = a_round(of("frlora"), model, number, size=0.02)
        expected = {m: expected[m] + dense(done.after, m) - dense(model, m) for m in shapes}
        model = done.after
    for module, size in shapes.items():
        apart, learned = model.remainder[module].parts()
        assert apart.q == R and learned.q == min(size)
        np.testing.assert_array_equal(apart.dense(), taken[module])
        assert_near(learned.dense(), expected[module], tolerance)


def test_an_exported_frlora_adapter_holds_just_the_trained_increment_and_can_be_rounded():
    start = begin(of("frlora"), dtype=np.float32)
    done = a_round(of("frlora"), start, 1, size=0.02)
    whole = merged_adapter(done.after)
    for module, (A, B) in whole.factors.items():
        learned = dense(done.after, module)
        assert_near(whole.scale * B.astype(np.float64) @ A, learned, 1e-5)
        rounded = whole.scale * bfloat16(B).astype(np.float64) @ bfloat16(A)
        assert_near(rounded, learned, 0.006)


def test_an_untrained_frlora_adapter_is_exported_as_zero():
    # s = 2: what the remainder takes away cancels to the last bit, and nothing is left of the sum. What was exported
    # then were the principal factors, 0.98.
    whole = merged_adapter(begin(of("frlora"), shapes={"o": (2, 2)}, r=1, dtype=np.float32, alpha=2.0))
    assert whole.scale == 2 and not (whole.factors["o"].B @ whole.factors["o"].A).any()


def test_frlora_with_more_slots_than_a_module_has_directions_is_refused_at_the_start():
    with pytest.raises(UsageError, match=r"q: base weights \[6, 64\] have no 8 principal directions") as refused:
        begin(of("frlora"), shapes={"o": (40, 40), "q": (64, 6)}, r=8)
    assert refused.value.hint == "set lora.r to at most 6"


def test_slots_of_frlora_beyond_the_rank_of_the_base_weights_have_gradients():
    # Base weights of rank 2: the two other slots would have A = B = 0, and gradients of zero for ever.
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 8))
    model = of("frlora").start(fresh({"m": (8, 9)}), SEED, {"m": weight})
    A, B = model.adapter.factors["m"]
    assert (np.linalg.norm(A, axis=1) > 0.5).all() and not B[:, 2:].any() and B[:, :2].any()
    assert np.linalg.norm(dense(model, "m")) < 1e-12 and model.adapter.scale * B @ A == pytest.approx(weight)


def test_the_energy_share_of_frlora_refers_to_the_trained_increment():
    # Of the whole increment, base directions included, 1 % would be all that a round learned.
    method = of("frlora").changed({"remainder": {"name": "keep", "energy": 0.99}})
    start = begin(method)
    done = a_round(method, start, 1, size=0.02)
    exact = replace(done, method=of("frlora")).after
    for module in SHAPES:
        assert_near(dense(done.after, module), dense(exact, module), 0.1)
