"""FedRot-LoRA: rotations of the slots of a client towards the global factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import (
    SEED,
    SHAPES,
    WEIGHTS,
    R,
    a_round,
    after_rounds,
    assert_far,
    begin,
    dense,
    descend,
    in_another_gauge,
    law,
)
from shepherd.errors import UsageError
from shepherd.lowrank import LowRank
from shepherd.server.composition import build_pieces
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method
from shepherd.server.pieces.payload import nearest_rotation
from shepherd.server.uploads import Local, Uploads


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
