"""Merges, residuals and refactorisations against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federations import (
    SEED,
    assert_far,
    assert_near,
)
from shepherd.errors import NumericalError
from shepherd.lowrank import LowRank
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method
from shepherd.server.pieces.merge import Merged, Term
from shepherd.server.pieces.remainder import accumulate
from shepherd.server.pieces.split import SplitContext, splits
from shepherd.server.uploads import Local
from shepherd.types import Adapter, ClientUpdate, Factors, GlobalModel

SPLITS = {name: {} for name in splits}


@st.composite
def merged_modules(draw):
    """A merge of 1 to 4 clients of ranks 1 to r, with random shares by slot, scales and shapes."""
    n_out, n_in = draw(st.integers(4, 24)), draw(st.integers(4, 24))
    r = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    ranks = [draw(st.integers(1, r)) for _ in range(draw(st.integers(1, 4)))]
    shares = rng.dirichlet(np.ones(len(ranks)), size=r).T if draw(st.booleans()) else None
    if shares is None:
        shares = np.repeat(rng.dirichlet(np.ones(len(ranks)))[:, None], r, axis=1)
    terms = []
    for share, rank in zip(shares, ranks, strict=True):
        A, B = rng.normal(size=(rank, n_in)), rng.normal(size=(n_out, rank))
        terms.append(Term(share, Local(A, B, float(rng.uniform(0.5, 4)), np.ones(rank, bool))))
    memory = {"seed": np.array(3, np.uint64), "m.A0": rng.normal(size=(r, n_in)), "m.B0": rng.normal(size=(n_out, r))}
    return Merged(float(rng.uniform(0.5, 4)), tuple(terms)), SplitContext("m", 1, memory)


def dense_total(merged: Merged) -> np.ndarray:
    return sum(
        share * term.local.scale * np.outer(term.local.B[:, j], term.local.A[j])
        for term in merged.terms
        for j, share in enumerate(term.share[: len(term.local.A)])
    )


@settings(max_examples=40, deadline=None)
@given(merged_modules())
def test_a_stack_of_products_is_the_dense_weighted_sum_with_each_clients_own_scale(case):
    merged, _ = case
    np.testing.assert_allclose(merged.total.dense(), dense_total(merged), atol=1e-12)


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=25, deadline=None)
@given(case=merged_modules())
def test_the_adapter_and_the_rest_of_every_split_are_the_merged_increment(name, case):
    merged, context = case
    A, B, rest = splits.build(name).of(merged, context)
    n_out, n_in = merged.total.shape
    assert A.shape == (merged.r, n_in) and B.shape == (n_out, merged.r)
    np.testing.assert_allclose(merged.scale * B @ A + rest.dense(), dense_total(merged), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(merged_modules())
def test_the_residual_is_the_covariance_of_the_padded_factors(case):
    merged, _ = case
    A, B = merged.mean
    np.testing.assert_allclose(merged.residual.dense(), dense_total(merged) - merged.scale * B @ A, atol=1e-10)


def equal_ranks(count, r=3, n_out=30, n_in=40, spread=1.0, seed=0) -> Merged:
    rng = np.random.default_rng(seed)
    A0, B0 = rng.normal(size=(r, n_in)), rng.normal(size=(n_out, r))
    clients = [
        Local(A0 + spread * rng.normal(size=A0.shape), B0 + spread * rng.normal(size=B0.shape), 2.0, np.ones(r, bool))
        for _ in range(count)
    ]
    return Merged(2.0, tuple(Term(np.full(r, 1 / count), client) for client in clients))


def test_the_residual_of_k_clients_has_rank_k_minus_one_times_r():
    for count in (1, 2, 4):
        assert np.linalg.matrix_rank(equal_ranks(count).residual.dense()) == (count - 1) * 3


def test_the_residual_of_nearly_identical_clients_is_accurate():
    # Spread 2⁻²⁶: |residual| / |total| is about 1e-16, so a subtraction leaves nothing but rounding. The clients are
    # A₀ ± 2⁻²⁶ on a grid of 2⁻¹⁰, exact in float64; the covariance of ±U and ±V is 2⁻⁵² V U.
    rng = np.random.default_rng(0)
    A0, B0, U, V = (np.round(rng.normal(size=size) * 1024) / 1024 for size in ((3, 40), (30, 3)) * 2)
    clients = [Local(A0 + sign * 2.0**-26 * U, B0 + sign * 2.0**-26 * V, 2.0, np.ones(3, bool)) for sign in (1, -1)]
    merged = Merged(2.0, tuple(Term(np.full(3, 0.5), client) for client in clients))
    expected = 2.0 * 2.0**-52 * V @ U
    assert_near(merged.residual.dense(), expected, 1e-7)
    A, B = merged.mean
    assert_far(merged.total.dense() - 2.0 * B @ A, expected, 0.1)


def test_the_deviation_of_nearly_identical_clients_is_accurate_in_dense_form():
    # The same clients as updates: in 6 × 8 their columns are as many as the rows.
    rng = np.random.default_rng(0)
    A0, B0, U, V = (np.round(rng.normal(size=size) * 1024) / 1024 for size in ((3, 8), (6, 3)) * 2)
    model = GlobalModel(Adapter({"q": Factors(A0, B0)}, 3, 6.0))
    views = {c: build_method("fedit").view(model, c, 3, 1, SEED) for c in "ab"}
    updates = [
        ClientUpdate(c, 1, {"q.A": sign * 2.0**-26 * U, "q.B": sign * 2.0**-26 * V}, 1, 1, 1)
        for c, sign in (("a", 1), ("b", -1))
    ]
    found = diagnose(model, model, views, updates, {"a": 0.5, "b": 0.5})
    expected = np.linalg.norm(2.0**-52 * V @ U) / np.linalg.norm(B0 @ A0)
    assert found.deviation == pytest.approx(expected, rel=1e-6, abs=0)


def test_the_stack_of_many_clients_is_not_densified(monkeypatch):
    merged = equal_ranks(3, n_out=60, n_in=70)
    monkeypatch.setattr(LowRank, "dense", lambda self: pytest.fail("it was densified"))
    for name in ("mean", "svd_balanced", "svd_left", "regauge", "reinit", "ridge"):
        _, _, rest = splits.build(name).of(merged, SplitContext("m", 1, {"seed": np.array(0)}))
        rest.truncated(5)


# Ridge


def test_ridge_is_least_squares_at_zero_and_the_mean_at_infinity():
    merged, context = equal_ranks(3), SplitContext("m", 1, {})
    A, B = merged.mean
    T = merged.total.dense()
    _, least, _ = splits.build("ridge", {"strength": 0.0}).of(merged, context)
    np.testing.assert_allclose(least, T @ np.linalg.pinv(2.0 * A), atol=1e-10)
    _, stiff, _ = splits.build("ridge", {"strength": 1e12}).of(merged, context)
    np.testing.assert_allclose(stiff, B, atol=1e-7)
    _, middle, _ = splits.build("ridge", {"strength": 5.0}).of(merged, context)
    expected = (2.0 * T @ A.T + 5.0 * B) @ np.linalg.inv(4.0 * A @ A.T + 5.0 * np.eye(3))
    np.testing.assert_allclose(middle, expected, atol=1e-10)


def test_ridge_without_strength_names_the_module_whose_a_is_singular():
    same = Local(np.ones((2, 5)), np.ones((4, 2)), 1.0, np.ones(2, bool))
    merged = Merged(1.0, (Term(np.ones(2), same),))
    with pytest.raises(NumericalError, match=r"layers\.0\.q: the means of A are linearly dependent") as caught:
        splits.build("ridge", {"strength": 0.0}).of(merged, SplitContext("layers.0.q", 1, {}))
    assert "strength" in caught.value.hint


# What it costs the server


def test_the_residual_is_stored_in_no_more_columns_than_its_rank():
    for count in (1, 2, 4):
        assert equal_ranks(count).residual.q == (count - 1) * 3


def test_the_residual_of_uneven_shares_by_slot_is_the_total_without_the_product_of_means():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), size=3).T
    shares[1, 2] += shares[0, 2]
    shares[0, 2] = 0.0
    merged = Merged(2.0, tuple(Term(c, t.local) for c, t in zip(shares, equal_ranks(4).terms, strict=True)))
    A, B = merged.mean
    assert_near(merged.residual.dense(), merged.total.dense() - 2.0 * B @ A, 1e-12)


@pytest.mark.parametrize("common", ["A", "B"])
def test_sums_of_products_with_a_common_factor_do_not_grow(common):
    terms = equal_ranks(4).terms
    same = {common: getattr(terms[0].local, common)}
    one = Merged(2.0, tuple(Term(t.share, replace(t.local, **same)) for t in terms))
    assert one.total.q == 3
    assert_near(one.total.dense(), sum(2.0 * 0.25 * t.local.B @ t.local.A for t in one.terms), 1e-12)


def test_a_dense_remainder_is_added_to_without_a_decomposition(monkeypatch):
    for name in ("svd", "qr"):
        monkeypatch.setattr(np.linalg, name, lambda *a, **k: pytest.fail("it was decomposed"))
    rng = np.random.default_rng(0)
    for shape in ((9, 6), (6, 9)):
        before, expected = None, np.zeros(shape)
        for _ in range(5):
            more = LowRank(rng.normal(size=(shape[0], 4)), rng.normal(size=(4, shape[1])))
            before, expected = accumulate(before, more, np.float64, "m"), expected + more.dense()
            assert before.q <= 6
            assert_near(before.dense(), expected, 1e-12)
