"""The pieces of methods on dense matrices: merges, refactorisations, weighings, client models, payloads, conflicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federations import (
    ALPHA,
    SEED,
    SHAPES,
    WEIGHTS,
    R,
    a_round,
    after_rounds,
    assert_far,
    assert_near,
    begin,
    dense,
    descend,
    in_another_gauge,
    law,
    local,
    shapes_for,
    whole,
)
from shepherd.errors import NumericalError, UsageError
from shepherd.lowrank import LowRank
from shepherd.server.composition import DEFAULTS, REGISTRIES, build_pieces
from shepherd.server.diagnostics import diagnose
from shepherd.server.method import compose
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.server.optimizer import optimizers
from shepherd.server.pieces.merge import Merged, Term
from shepherd.server.pieces.payload import nearest_rotation
from shepherd.server.pieces.remainder import accumulate
from shepherd.server.pieces.split import SplitContext, splits
from shepherd.server.traffic import SMOLLM2_QV, numbers, table
from shepherd.server.uploads import Local, Uploads
from shepherd.store.state import load_state, save_state
from shepherd.types import Adapter, ClientUpdate, Factors, GlobalModel, ServerState

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


# Weighing


def shares_of(name: str, done):
    from shepherd.server.pieces.weighing import weighings

    uploads = Uploads(done.before, done.views, done.updates)
    return weighings.build(name).of(uploads, np.array([done.weights[u.client] for u in uploads.updates]))("q")


def test_owners_share_each_slot_by_their_weights_and_equal_ranks_give_the_weights_of_the_round():
    method = compose("owners", view="prefix", weigh="slot_owners")
    done = a_round(method, begin(method), 1, ranks={"a": 1, "b": 2, "c": 4})
    # Weights 0.2, 0.5, 0.3; slot 0 is everybody's, slot 1 is b's and c's, slots 2 and 3 are c's.
    expected = [[0.2, 0, 0, 0], [0.5, 0.625, 0, 0], [0.3, 0.375, 1, 1]]
    np.testing.assert_allclose(shares_of("slot_owners", done), expected, atol=1e-15)
    equal = a_round(method, begin(method), 1)
    np.testing.assert_allclose(shares_of("slot_owners", equal), shares_of("given", equal), atol=1e-15)


@pytest.mark.parametrize("merge, split", [("factor", "mean"), ("product", "svd_balanced"), ("product", "mean")])
def test_with_equal_ranks_every_client_owns_every_slot(merge, split):
    plain = compose(
        "plain", view="prefix", merge=merge, split=split, remainder="keep" if merge == "product" else "drop"
    )
    owners = plain.changed({"weigh": "slot_owners"})
    model = after_rounds(plain, 2)
    for module in SHAPES:
        one, other = (dense(a_round(m, model, 3).after, module) for m in (plain, owners))
        assert_near(one, other, 1e-13)


@pytest.mark.parametrize("merge", ["factor", "product"])
def test_a_slot_without_an_owner_is_unchanged(merge):
    method = compose("owners", view="prefix", weigh="slot_owners", merge=merge)
    full = after_rounds(method, 1)
    done = a_round(method, full, 2, ranks=dict.fromkeys(WEIGHTS, 2))
    for module, (A, B) in done.after.adapter.factors.items():
        before = full.adapter.factors[module]
        np.testing.assert_allclose(A[2:], before.A[2:], atol=1e-14)
        np.testing.assert_allclose(B[:, 2:], before.B[:, 2:], atol=1e-14)
        assert np.abs(A[:2] - before.A[:2]).max() > 0.01


def test_hetlora_pads_with_zeros_and_weighs_by_the_norms_of_the_increments():
    method = build_method("hetlora")
    done = a_round(method, after_rounds(method, 1), 2, ranks={"a": 2, "b": 4, "c": 3})
    norms = []
    for u in done.updates:
        norms.append(np.sqrt(sum(np.sum(local(done.before, done.views[u.client], u, m) ** 2) for m in SHAPES)))
    w = np.array(norms) / sum(norms)
    np.testing.assert_allclose(shares_of("product_norm", done), np.repeat(w[:, None], R, axis=1), rtol=1e-12)
    for module in SHAPES:
        A = sum(
            c * np.pad(done.views[u.client].adapter.factors[module].A + u.delta[f"{module}.A"], ((0, R - r), (0, 0)))
            for c, u, r in zip(w, done.updates, (2, 4, 3), strict=True)
        )
        np.testing.assert_allclose(done.after.adapter.factors[module].A, A, atol=1e-13)


def test_fed_plora_averages_each_slot_over_its_owners():
    method = build_method("fed_plora")
    done = a_round(method, after_rounds(method, 1), 2, ranks={"a": 1, "b": 2, "c": 3})
    before, after = done.before.adapter.factors["q"], done.after.adapter.factors["q"]
    for j in range(R):
        owners = [u for u in done.updates if done.views[u.client].slots["q"][j]]
        total = sum(WEIGHTS[u.client] for u in owners)
        changes = {u.client: whole(done.views[u.client], u, "q.B")[:, j] for u in owners}
        change = sum(WEIGHTS[c] * changes[c] for c in changes) / total if owners else 0.0
        np.testing.assert_allclose(after.B[:, j], before.B[:, j] + change, atol=1e-13)


# Views


def test_the_svd_view_and_a_prefix_of_a_balanced_model_are_best_approximations():
    method = compose("svd", view="svd", merge="product", split="svd_balanced", remainder="keep")
    model = after_rounds(method, 2)
    for module in SHAPES:
        increment = model.adapter.scale * np.matmul(*reversed(model.adapter.factors[module]))
        best = LowRank(increment, np.eye(increment.shape[1])).truncated(2).dense() + model.remainder[module].dense()
        for view in ("svd", "prefix"):
            for scale in ("common", "own"):
                by_view = method.changed({"view": {"name": view, "scale": scale}}).view(model, "a", 2, 3, SEED)
                assert_near(local(model, by_view, None, module), best, 1e-10)
                s = ALPHA / 2 if scale == "own" else ALPHA / R
                assert by_view.adapter.scale == pytest.approx(s)


def test_client_models_of_full_rank_are_exact():
    for view in ("identity", "prefix", "svd", "fold", "probe"):
        method = compose("whole", view=view, merge="product", split="svd_balanced", remainder="keep")
        model = after_rounds(method, 2)
        for module in SHAPES:
            assert_near(local(model, method.view(model, "a", R, 3, SEED), None, module), dense(model, module), 1e-12)


def test_client_models_of_lower_rank_keep_rank_stabilised_scales():
    method = build_method("hetlora")
    model = begin(method)
    model = replace(model, adapter=replace(model.adapter, rslora=True))
    for scale, expected in (("common", ALPHA / R**0.5), ("own", ALPHA / 2**0.5)):
        view = method.changed({"view": {"name": "prefix", "scale": scale}}).view(model, "a", 2, 1, SEED)
        assert view.adapter.scale == pytest.approx(expected)


def test_slots_and_heads_differ_between_clients_and_rounds_but_not_between_repetitions():
    for name in ("fed_plora", "ravan"):
        method = build_method(name)
        model = begin(method, r=8)  # Ravan: 2 of 4 heads, one of 6 choices
        drawn = {
            (c, n): method.view(model, c, 4, n, SEED).slots["q"].tobytes() for c in ("a", "b", "c") for n in (1, 2, 3)
        }
        assert len(set(drawn.values())) >= 4
        assert drawn["b", 2] == method.view(model, "b", 4, 2, SEED).slots["q"].tobytes()


def test_a_rank_that_is_not_a_multiple_of_a_head_is_refused():
    method = build_method("ravan", {"heads": 2})
    with pytest.raises(UsageError, match="a has rank 3, which is no whole number of heads of rank 2"):
        method.view(begin(method), "a", 3, 1, SEED)
    with pytest.raises(UsageError, match="whole heads of rank 2"):
        check_ranks(method, {"a": 3}, R)
    with pytest.raises(UsageError, match="3 heads do not divide rank 4"):
        begin(build_method("ravan", {"heads": 3}))


def test_heads_of_several_slots_are_averaged_over_their_owners():
    method = build_method("ravan", {"heads": 2})  # of rank 2 each
    done = a_round(method, begin(method), 1, ranks={"a": 2, "b": 2, "c": 4})
    for module in SHAPES:
        before, after = (model.memory[f"{module}.core"] for model in (done.before, done.after))
        for head in range(2):
            owners = [u for u in done.updates if (s := done.views[u.client].slots) is None or s[module][2 * head]]
            weights = np.array([WEIGHTS[u.client] for u in owners])
            changes = [whole(done.views[u.client], u, f"{module}.core")[head] for u in owners]
            mean = sum(w * change for w, change in zip(weights / weights.sum(), changes, strict=True))
            np.testing.assert_allclose(after[head] - before[head], mean, atol=1e-12)
    assert len({tuple(v.slots["q"]) for c, v in done.views.items() if c != "c"}) == 2, "they moved different heads"


def test_the_bases_of_cores_are_orthonormal_and_depend_on_the_seed_alone():
    method = build_method("ravan")
    model = begin(method)
    for module, (A, _) in model.adapter.factors.items():
        basis = model.memory[f"{module}.basis"]
        np.testing.assert_allclose(A @ A.T, np.eye(R), atol=1e-12)
        np.testing.assert_allclose(basis.T @ basis, np.eye(R), atol=1e-12)
        assert np.array_equal(basis, begin(method).memory[f"{module}.basis"])
    other = method.start(begin(build_method("fedit")).adapter, SEED + 1)
    assert not np.allclose(other.memory["q.basis"], model.memory["q.basis"])


def test_orthonormal_rows_that_do_not_fit_are_refused_by_module():
    with pytest.raises(UsageError, match="q: 9 orthonormal rows do not fit into 8 dimensions"):
        begin(build_method("fedsvd"), shapes={"q": (8, 20)}, r=9)


# FedRot


def test_a_rotation_preserves_increments_and_removes_a_random_gauge():
    method = build_method("fedrot_lora", {"strength": 1.0})
    for number in (2, 3):  # A is aligned in even rounds, B in odd ones
        done = a_round(method, after_rounds(method, number - 1), number, size=0.02)
        rng = np.random.default_rng(1)
        turned = replace(done, updates=tuple(in_another_gauge(done.views[u.client], u, rng) for u in done.updates))
        plain = replace(turned, method=build_method("fedit"))
        exact = law(done, "q")
        aligned = np.linalg.norm(dense(turned.after, "q") - exact)
        assert aligned < 0.05 * np.linalg.norm(dense(plain.after, "q") - exact)
        start = done.before.adapter
        transform = method.pieces.payload.transform
        for u in turned.updates:
            before = Local(start.factors["q"].A, start.factors["q"].B, start.scale, np.ones(R, bool))
            own = Local(before.A + u.delta["q.A"], before.B + u.delta["q.B"], start.scale, np.ones(R, bool))
            after = transform(own, before, number)
            np.testing.assert_allclose(after.B @ after.A, own.B @ own.A, atol=1e-12)
            assert_far(after.A, own.A, 0.01)


def test_the_deviation_of_a_round_is_that_of_the_merged_factors():
    method = build_method("fedrot_lora", {"strength": 1.0})
    done = a_round(method, after_rounds(method, 1), 2, size=0.02)
    rng = np.random.default_rng(1)
    turned = replace(done, updates=tuple(in_another_gauge(done.views[u.client], u, rng) for u in done.updates))
    of = lambda *transform: diagnose(  # noqa: E731
        turned.before, turned.after, turned.views, turned.updates, turned.weights, *transform
    )
    merged, plain = of(method.pieces.payload), of()
    lost = [dense(turned.after, m) - law(turned, m) for m in SHAPES]
    whole = [law(turned, m) for m in SHAPES]
    norm = lambda parts: np.sqrt(sum(np.sum(part**2) for part in parts))  # noqa: E731
    assert merged.deviation == pytest.approx(norm(lost) / norm(whole), rel=1e-9)
    assert plain.deviation > 10 * merged.deviation and plain.cosine_mean == pytest.approx(merged.cosine_mean)


def test_the_deviation_of_a_round_uses_the_weights_of_the_method():
    method = build_method("hetlora")
    done = a_round(method, after_rounds(method, 1), 2)
    shares = method.pieces.weigh.of(Uploads(done.before, done.views, done.updates), np.array([0.2, 0.5, 0.3]))("q")
    own = dict(zip("abc", shares[:, 0], strict=True))
    by_method = diagnose(done.before, done.after, done.views, done.updates, WEIGHTS, weigh=method.pieces.weigh)
    by_hand = diagnose(done.before, done.after, done.views, done.updates, own)
    by_round = diagnose(done.before, done.after, done.views, done.updates, WEIGHTS)
    assert by_method == by_hand and by_method.deviation != by_round.deviation


def turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_a_rotation_of_strength_one_fifth_is_one_fifth_of_the_chord():
    # The client is turned by 90°: R is that turn, and 0.8·I + 0.2·R = [[0.8, −0.2], [0.2, 0.8]] turns by atan(0.25).
    transform = build_method("fedrot_lora", {"strength": 0.2}).pieces.payload.transform
    start = Local(np.eye(2), np.eye(2), 1.0, np.ones(2, bool))
    own = replace(start, A=turn(np.pi / 2))
    part = turn(np.arctan(0.25))
    after = transform(own, start, 2)
    np.testing.assert_allclose(after.A, part.T @ own.A, atol=1e-12)
    np.testing.assert_allclose(after.B, part, atol=1e-12)


@pytest.mark.parametrize("number, aligned", [(2, "A"), (3, "B")])
def test_even_rounds_align_a_and_odd_ones_b(number, aligned):
    # A is turned by 0.5 and B by 0.3 the other way, so that no one rotation takes both back.
    transform = build_method("fedrot_lora", {"strength": 1.0}).pieces.payload.transform
    start = Local(np.eye(2), np.eye(2), 1.0, np.ones(2, bool))
    after = transform(replace(start, A=turn(0.5), B=turn(0.3)), start, number)
    turned = {"A": np.eye(2), "B": turn(0.8)} if aligned == "A" else {"A": turn(0.8), "B": np.eye(2)}
    np.testing.assert_allclose(after.A, turned["A"], atol=1e-12)
    np.testing.assert_allclose(after.B, turned["B"], atol=1e-12)


def test_the_energy_that_a_remainder_keeps_is_a_share_of_the_whole_merged_increment():
    # The rest has σ² = 4, 2, 1. 0.96 of ‖merged‖² = 100 lets 4 of it go, 2 + 1 at most; of 70 lets go 2.8, of 20 0.8.
    rest = LowRank(np.eye(5, 3) * [2.0, 2**0.5, 1.0], np.eye(3, 6))
    kept = build_pieces({"merge": "product", "remainder": {"name": "keep", "energy": 0.96}}).remainder.of
    assert [kept(rest, square, "q").q for square in (100.0, 70.0, 20.0)] == [1, 2, 3]


def test_alternating_steps_start_with_b():
    method = build_method("la_lora")
    assert method.pieces.train.of(1)[0] == ("B", "A")
    model = begin(method)  # B = 0, so that A has a gradient only once B has moved
    view = method.view(model, "a", R, 1, SEED)
    update = descend(model, view, "a", 1, lambda module, E: E - np.ones_like(E), 0.01, 2)
    assert np.abs(update.delta["q.A"]).max() > 0 and np.abs(update.delta["q.B"]).max() > 0


def test_the_nearest_rotation_is_a_rotation_and_the_best_of_them():
    rng = np.random.default_rng(2)
    for _ in range(5):
        M = rng.normal(size=(4, 4))
        R_best = nearest_rotation(M)
        np.testing.assert_allclose(R_best @ R_best.T, np.eye(4), atol=1e-12)
        assert np.linalg.det(R_best) == pytest.approx(1.0)
        for _ in range(20):
            Q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
            Q[:, 0] *= np.sign(np.linalg.det(Q))
            assert np.trace(Q.T @ M) <= np.trace(R_best.T @ M) + 1e-12


def test_small_directions_of_the_overlap_determine_the_rotation():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    M = np.zeros((4, 4))
    M[:2, :2], M[2:, 2:] = np.eye(2), 1e-6 * turn
    np.testing.assert_allclose(nearest_rotation(M)[2:, 2:], turn, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_best_rotation_for_a_singular_matrix_is_the_nearest_to_identity(rank):
    rng = np.random.default_rng(rank)
    M = rng.normal(size=(4, rank)) @ rng.normal(size=(rank, 4))
    R_best = nearest_rotation(M)
    np.testing.assert_allclose(R_best @ R_best.T, np.eye(4), atol=1e-12)
    assert np.linalg.det(R_best) == pytest.approx(1.0)
    # The limit of M + εI, whose best rotation is one alone, as ε falls.
    np.testing.assert_allclose(R_best, nearest_rotation(M + 1e-7 * np.eye(4)), atol=1e-5)
    if rank == 1:  # by hand: the turn of v onto u in their plane leaves what is orthogonal to both
        U, _, V = np.linalg.svd(M)
        rest = np.linalg.svd(np.stack([U[:, 0], V[0]]))[2][2:]
        np.testing.assert_allclose(R_best @ V[0], U[:, 0], atol=1e-12)
        np.testing.assert_allclose(R_best @ rest.T, rest.T, atol=1e-12)
    np.testing.assert_allclose(nearest_rotation(M @ M.T), np.eye(4), atol=1e-12)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_unchanged_client_is_not_rotated_for_any_rank_of_the_factors(strength, number):
    # Four slots of rank 2, as after few steps: the overlap is singular, and its null space was turned at will.
    rng = np.random.default_rng(number)
    A, B = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 12)), rng.normal(size=(9, 2)) @ rng.normal(size=(2, 4))
    start = Local(A, B, 2.0, np.ones(4, bool))
    after = build_method("fedrot_lora", {"strength": strength}).pieces.payload.transform(start, start, number)
    np.testing.assert_allclose(after.A, A, atol=1e-12)
    np.testing.assert_allclose(after.B, B, atol=1e-12)


def test_a_half_turn_of_strength_one_half_does_not_rotate():
    # 0.5·I + 0.5·R is zero for a turn by π: of all rotations, which are equally near, it is I.
    transform = build_method("fedrot_lora", {"strength": 0.5}).pieces.payload.transform
    start = Local(np.eye(2), np.eye(2), 1.0, np.ones(2, bool))
    np.testing.assert_allclose(transform(replace(start, A=-np.eye(2)), start, 2).A, -np.eye(2), atol=1e-12)


def test_keeping_zero_energy_is_refused():
    for name in ("florist", "fedmomentum"):
        with pytest.raises(UsageError, match=r'energy must be above 0 and at most 1, got 0.*remainder "drop"'):
            build_method(name, {"energy": 0.0})


def test_fedrot_equals_fedit_in_the_first_round_and_at_strength_zero():
    for strength, number in ((1.0, 1), (0.0, 2)):
        method = build_method("fedrot_lora", {"strength": strength})
        model = begin(method) if number == 1 else after_rounds(build_method("fedit"), 1)
        by_rotation, plain = (a_round(m, model, number).after for m in (method, build_method("fedit")))
        assert np.array_equal(by_rotation.adapter.factors["q"].A, plain.adapter.factors["q"].A)


# What fits together


MISFITS = {
    'view "svd" and merge "factor"': {"view": "svd"},
    'view "svd" and weigh "slot_owners"': {"view": "svd", "merge": "product", "weigh": "slot_owners"},
    'view "fresh" and split "mean"': {"view": "fresh", "merge": "product", "remainder": "keep"},
    'view "fresh" and start "principal"': {
        "view": "fresh", "start": "principal", "merge": "product", "split": "reinit", "remainder": "keep",
    },
    'split "reinit" and remainder "drop"': {"view": "fresh", "merge": "product", "split": "reinit"},
    'split "fixed" and start "given"': {"split": "fixed", "remainder": "keep"},
    'split "ridge" and merge "factor"': {"split": "ridge"},
    'remainder "keep" and merge "factor"': {"remainder": "keep"},
    'payload "rotate" and train "B"': {"payload": "rotate", "train": "B"},
    'payload "rotate" and view "prefix"': {"payload": "rotate", "view": "prefix"},
    'train "A" and start "given"': {"train": "A"},
    'train "by_round" and split "reinit"': {
        "train": "by_round", "merge": "product", "split": "reinit", "remainder": "keep",
    },
    'home "last_blocks" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "home": "last_blocks",
    },
    'home "modules" and view "probe"': {"view": "probe", "home": {"name": "modules", "names": ("q",)}},
    'train "core" and start "given"': {"train": "core"},
    'merge "core" and start "given"': {"merge": "core"},
    'split "svd_left" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "split": "svd_left",
    },
    'remainder "keep" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "remainder": "keep",
    },
    'payload "rotate" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "payload": "rotate",
    },
}  # fmt: skip


@pytest.mark.parametrize("pair", MISFITS)
def test_conflicting_pieces_are_refused_with_both_names_the_reason_and_an_alternative(pair):
    with pytest.raises(UsageError) as caught:
        build_pieces(MISFITS[pair])
    lines = caught.value.message.split("\n")
    (line,) = [line for line in lines if line.startswith(f"{pair} do not fit: ")]
    assert "; use " in line


def test_the_alternatives_of_conflicts_are_registered_names():
    import re

    for specs in MISFITS.values():
        with pytest.raises(UsageError) as caught:
            build_pieces(specs)
        for kind, name in re.findall(r'(\w+) "(\w+)"', caught.value.message.partition("; use")[2]):
            if kind in REGISTRIES:
                assert name in REGISTRIES[kind]


@pytest.mark.parametrize(
    "name, optimizer, words",
    [
        ("fedsvd", "fedadam", 'server.optimizer "fedadam" and split "regauge"'),
        ("fedsvd", "fedavgm", 'server.optimizer "fedavgm" and split "regauge"'),
        ("fedmomentum", "fedyogi", 'server.optimizer "fedyogi" and merge "product"'),
        ("fedex_lora", "fedadagrad", 'server.optimizer "fedadagrad" and merge "product"'),
        # Clients of 1 and 2 steps moved B once each; divided by 1 and 2 their changes of B weighed 2 : 1.
        ("la_lora", "fednova", 'server.optimizer "fednova" and train "by_step"'),
    ],
)
def test_a_server_optimizer_with_meaningless_moments_is_refused(name, optimizer, words):
    with pytest.raises(UsageError) as caught:
        build_method(name, optimizer=optimizer)
    assert words in caught.value.message and "use " in caught.value.message


def test_changing_pieces_to_ones_that_conflict_with_the_optimizer_is_refused():
    with pytest.raises(UsageError, match="moments refer to rank slots"):
        build_method("fedit", optimizer="fedadam").changed({"split": "svd_left"})


def test_unknown_pieces_and_options_are_refused_with_a_suggestion_and_the_list():
    with pytest.raises(UsageError) as caught:
        build_method("fedit", {"split": "svd_balance"})
    assert "unknown split: 'svd_balance'. Did you mean 'svd_balanced'? Known: fixed, mean" in caught.value.message
    with pytest.raises(UsageError) as caught:
        build_method("fedex_lora", {"remainder": {"name": "keep", "ranks": 3}})
    assert "has no option 'ranks'. Did you mean 'rank'?" in caught.value.message
    with pytest.raises(UsageError) as caught:
        build_method("fedex_lora", {"spilt": "mean"})
    assert "has no option 'spilt'" in caught.value.message and "pieces: start, view" in caught.value.message
    with pytest.raises(UsageError, match=r"unknown method: 'fedexlora'. Did you mean 'fedex_lora'"):
        build_method("fedexlora")
    with pytest.raises(UsageError, match=r"unknown server optimizer: 'fedadm'. Did you mean 'fedadam'"):
        build_method("fedit", optimizer="fedadm")
    with pytest.raises(UsageError, match="merge must be a name or a table"):
        build_method("fedit", {"merge": 3})


def test_all_mistakes_in_pieces_are_reported_together():
    with pytest.raises(UsageError) as caught:
        build_pieces({"split": "x", "merge": "y", "vieww": "identity"})
    assert len(caught.value.message.split("\n")) == 3 and "Did you mean 'view'?" in caught.value.message


@pytest.mark.parametrize(
    "table",
    [
        {"remainder": {"name": "keep", "rank": -1}}, {"energy": 1.5}, {"energy": float("nan")},
        {"split": {"name": "ridge", "strength": -1.0}},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_with_their_name(table):
    with pytest.raises(UsageError, match=r"(rank|energy|strength) must be"):
        build_method("fedmomentum", table)


def test_a_table_without_a_name_sets_options_of_the_piece_of_the_method():
    method = build_method("fedmomentum", {"remainder": {"rank": 3}})
    assert (method.pieces.remainder.rank, method.pieces.remainder.energy) == (3, 0.9999)
    assert build_method("fedex_lora", {"rank": 5}).pieces.remainder.rank == 5
    swapped = build_method("fedex_lora", {"split": "svd_left"})
    assert swapped.pieces.split.name == "svd_left" and swapped.exact


def test_every_piece_has_a_one_line_description():
    for registry in (*REGISTRIES.values(), optimizers):
        for name in registry:
            assert registry.describe(name).rstrip(";").endswith((".", ")", "product")), (registry.kind, name)
    assert all(DEFAULTS[kind] in registry for kind, registry in REGISTRIES.items())


# What it costs


def test_traffic_matches_a_worked_example():
    # r = 8 on q and v of SmolLM2-135M, ten clients: 57,600 numbers per rank; B alone 23,040; cores of 64 numbers.
    of = {row["name"]: (row["bytes_up"], row["bytes_down"]) for row in table()}
    both, B, A = 4 * 8 * 57_600, 4 * 8 * 23_040, 4 * 8 * 34_560
    assert of["fedit"] == of["la_lora"] == of["fedrot_lora"] == of["hetlora"] == of["lora_fair"] == (both, both)
    assert of["ffa_lora"] == (B, B) and of["rolora"] == of["lora_a2"] == ((A + B) / 2, (A + B) / 2)
    assert of["flora"] == of["fedex_lora"] == of["fedmomentum"] == (both, 10 * both)
    assert of["flexlora"] == of["raflora"] == of["frlora"] == (both, both)
    assert of["fedsvd"] == (B, both)
    assert of["fed_sb"] == (4 * 64 * 60, 4 * 64 * 60) and of["ravan"] == (4 * 16 * 60, 4 * 16 * 60)


def test_traffic_depends_on_mixed_ranks_and_bounds_on_the_remainder():
    sizes, ranks = {"q": (100, 50)}, [2, 4, 8]
    assert numbers(build_method("flora"), sizes, 8, ranks) == (14 / 3 * 150, 14 * 150)
    assert numbers(build_method("hetlora"), sizes, 8, ranks) == (14 / 3 * 150, 14 / 3 * 150)
    assert numbers(build_method("fed_plora"), sizes, 8, ranks) == (14 / 3 * 150, 8 * 150)
    assert numbers(build_method("fedex_lora", {"rank": 5}), sizes, 8, [8] * 3) == (8 * 150, 13 * 150)
    assert numbers(build_method("fedex_lora"), sizes, 8, [8] * 30)[1] == (8 + 50) * 150  # no more than the matrix has
    assert sum(n_in + n_out for n_in, n_out in SMOLLM2_QV.values()) == 57_600


@pytest.mark.parametrize("name", list(methods))
def test_the_planned_upload_equals_that_of_real_updates(name):
    method = build_method(name)
    model = begin(method)
    sent = [u.delta for number in (1, 2) for u in a_round(method, model, number).updates]
    counted = sum(array.size for delta in sent for array in delta.values()) / len(sent)
    assert numbers(method, shapes_for(method), R, [R] * 3)[0] == counted


@pytest.mark.parametrize("name", [name for name in methods if methods.build(name).pieces.view.all_slots])
def test_with_mixed_ranks_only_owned_slots_are_sent_and_counted(name):
    method = build_method(name)
    if not method.mixed_ranks:
        return
    shapes, ranks = {"o": (40, 40), "q": (40, 40)}, {"a": 2, "b": 4, "c": 2}
    model = begin(method, shapes=shapes)
    sent = [u for number in (1, 2) for u in a_round(method, model, number, ranks=ranks).updates]
    counted = numbers(method, shapes, R, list(ranks.values()))[0]
    # a byte for each slot of a choice, eight for each float64 of a factor; `numbers` counts four bytes a number
    as_float32 = sum(u.nbytes - sum(s.nbytes for s in u.slots.values()) for u in sent) / 2
    assert (as_float32 + sum(s.nbytes for u in sent for s in u.slots.values())) / len(sent) == 4 * counted
    assert counted < numbers(method, shapes, R, [R] * 3)[0]


# A restart


@pytest.mark.parametrize("name", list(methods))
def test_a_reloaded_model_continues_with_the_same_bits(name, tmp_path):
    optimizer = "fedavgm" if name != "fedsvd" else "fedavg"
    method = build_method(name, optimizer=optimizer)
    model = after_rounds(method, 2, dtype=np.float32)
    save_state(tmp_path, ServerState(2, model), base_name="toy")
    restored = load_state(tmp_path).model
    one, other = (a_round(method, m, 3).after for m in (model, restored))
    for module in shapes_for(method):
        assert dense(one, module).tobytes() == dense(other, module).tobytes()
    assert one.memory.keys() == other.memory.keys()
    assert all(np.array_equal(one.memory[key], other.memory[key]) for key in one.memory)


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
