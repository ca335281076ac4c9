"""LowRank does what the dense matrix does, and never makes one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.errors import NumericalError
from shepherd.lowrank import LowRank, orthonormal_rows, stack

TOLERANCE = {np.float64: 1e-11, np.float32: 2e-5}


def lowrank(rng, n_out, n_in, q, dtype=np.float64) -> LowRank:
    return LowRank(rng.normal(size=(n_out, q)).astype(dtype), rng.normal(size=(q, n_in)).astype(dtype))


@st.composite
def pairs(draw):
    n_out, n_in = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return tuple(lowrank(rng, n_out, n_in, draw(st.integers(0, 14)), dtype) for _ in range(2))


@settings(max_examples=60, deadline=None)
@given(pairs(), st.floats(-3, 3))
def test_sum_multiple_product_and_norm_are_those_of_the_dense_matrices(pair, factor):
    x, y = pair
    tolerance = TOLERANCE[x.L.dtype.type]
    np.testing.assert_allclose((x + factor * y).dense(), x.dense() + factor * y.dense(), atol=100 * tolerance)
    np.testing.assert_allclose(x.dot(y), np.sum(x.dense() * y.dense()), atol=1000 * tolerance)
    np.testing.assert_allclose(x.norm(), np.linalg.norm(x.dense()), atol=100 * tolerance)
    assert (x + y).L.dtype == (2.0 * x).L.dtype == x.L.dtype
    assert (x + y).q == x.q + y.q and (x + y).shape == x.shape


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_the_singular_values_are_those_of_the_dense_matrix(pair):
    x, _ = pair
    U, S, V = x.svd()
    tolerance = 100 * TOLERANCE[x.L.dtype.type]
    np.testing.assert_allclose((U * S) @ V, x.dense(), atol=tolerance)
    np.testing.assert_allclose(S, np.linalg.svd(x.dense(), compute_uv=False)[: len(S)], atol=tolerance)
    np.testing.assert_allclose(x.singular_values(), S, atol=tolerance)
    np.testing.assert_allclose(U.T @ U, np.eye(len(S)), atol=tolerance)
    np.testing.assert_allclose(V @ V.T, np.eye(len(S)), atol=tolerance)
    assert all(column[np.argmax(np.abs(column))] > 0 for column in U.T)


@settings(max_examples=60, deadline=None)
@given(pairs(), st.integers(0, 6))
def test_the_rest_of_a_truncation_has_the_norm_of_the_left_out_singular_values(pair, rank):
    x, _ = pair
    head, rest = x.split(rank)
    S = np.linalg.svd(x.dense(), compute_uv=False)
    tolerance = 100 * TOLERANCE[x.L.dtype.type]
    np.testing.assert_allclose(rest.norm(), np.sqrt(np.sum(S[rank:] ** 2)), atol=tolerance)
    np.testing.assert_allclose((head + rest).dense(), x.dense(), atol=tolerance)
    assert head.q <= rank


def test_svd_makes_no_dense_matrix_of_a_thin_one(monkeypatch):
    x = lowrank(np.random.default_rng(0), 60, 50, 4)
    monkeypatch.setattr(LowRank, "dense", lambda self: pytest.fail("it was densified"))
    assert x.svd().S.shape == x.singular_values().shape == (4,)
    x.split(2), x.truncated(), x.norm()


def test_a_column_sign_does_not_depend_on_the_signs_of_the_factors():
    x = lowrank(np.random.default_rng(1), 9, 8, 3)
    flipped = LowRank(x.L * [1, -1, -1], x.R * np.array([[1], [-1], [-1]]))
    np.testing.assert_allclose(x.svd().U, flipped.svd().U, atol=1e-12)
    np.testing.assert_allclose(x.svd().V, flipped.svd().V, atol=1e-12)


def test_truncation_by_energy_keeps_the_least_rank_that_is_enough():
    # σ = 4, 2, 1: energies 16, 4, 1 of 21. 16/21 = 0.762, 20/21 = 0.952
    x = LowRank(np.diag([4.0, 2.0, 1.0, 0.0]), np.eye(4))
    assert [x.truncated(energy=e).q for e in (0.76, 0.77, 0.952, 0.953, 1.0)] == [1, 2, 2, 3, 3]
    # As a part of something of squared norm 210, ten times its own: 5 % of that may be lost, 10.5 ≥ 4 + 1.
    assert x.truncated(energy=0.95, of=210.0).q == 1
    assert x.truncated(rank=1, energy=0.953).q == 1 and x.truncated(energy=0.0).q == 0


def test_a_sum_that_repeats_itself_is_recompressed_to_its_rank_without_loss():
    x = lowrank(np.random.default_rng(2), 20, 30, 3)
    many = stack([x, 0.5 * x, -2.0 * x, x])
    small = many.truncated()
    assert (many.q, small.q) == (12, 3)
    np.testing.assert_allclose(small.dense(), 0.5 * x.dense(), atol=1e-12)


def test_nothing_is_a_lowrank_too():
    zero = LowRank.zero(3, 5)
    assert zero.q == 0 and zero.norm() == 0 and zero.dense().shape == (3, 5)
    assert zero.svd().S.size == 0 and zero.truncated().q == 0 and zero.split(2)[1].q == 0
    x = lowrank(np.random.default_rng(0), 3, 5, 2)
    np.testing.assert_array_equal((zero + x).dense(), x.dense())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_the_module_that_holds_them(bad):
    x = lowrank(np.random.default_rng(0), 9, 8, 2)
    x.L[3, 1] = bad
    for act in (x.svd, x.singular_values, lambda where: x.truncated(2, where=where), lambda where: x.split(1, where)):
        with pytest.raises(NumericalError, match=r"layers\.3\.q: 1 values are not finite") as caught:
            act("layers.3.q")
        assert caught.value.hint and caught.value.exit_code == 9


def test_factors_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="have no product"):
        LowRank(np.zeros((3, 2)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="do not add"):
        LowRank.zero(3, 5) + LowRank.zero(5, 3)


def test_new_rows_are_orthonormal_to_each_other_and_to_those_there_are():
    rng = np.random.default_rng(3)
    first = orthonormal_rows(rng, 3, np.zeros((0, 7)))
    rows = np.concatenate([first, orthonormal_rows(rng, 4, first)])
    np.testing.assert_allclose(rows @ rows.T, np.eye(7), atol=1e-13)
    with pytest.raises(ValueError, match="no 8 orthonormal rows of 7"):
        orthonormal_rows(rng, 5, first)


def test_what_came_out_of_a_decomposition_is_not_decomposed_again(monkeypatch):
    _, tail = lowrank(np.random.default_rng(0), 60, 50, 6).split(2)
    S = np.linalg.svd(tail.dense(), compute_uv=False)[:4]
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **k: pytest.fail("it was decomposed again"))
    np.testing.assert_allclose(tail.singular_values(), S, rtol=1e-12)
    np.testing.assert_allclose(tail.truncated(2).dense() + tail.split(2)[1].dense(), tail.dense(), atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_a_filled_increment_is_the_same_matrix_and_no_wider_than_it(shape):
    x = lowrank(np.random.default_rng(0), *shape, 4)
    assert x.filled().q == min(shape)
    np.testing.assert_array_equal(x.filled().dense(), x.dense())
    np.testing.assert_array_equal(x.filled().filled().dense(), x.dense())
