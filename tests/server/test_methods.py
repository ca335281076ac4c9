"""Properties of single methods: remainders, refactorisations, fixed row spaces and convergence."""

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
    assert_near,
    begin,
    dense,
    law,
    random_update,
    train,
)
from method_tables import ALL, of
from shepherd.clients.personal.methods import personalizations
from shepherd.config import keys
from shepherd.errors import UsageError
from shepherd.server.merged_adapter import merged_adapter
from shepherd.server.methods import build_method, methods


def test_flora_fedex_and_fedmomentum_with_all_energy_have_the_same_effective_weights_after_a_round():
    found = []
    for name in ("flora", "fedex_lora", "fedmomentum, all energy"):
        done = a_round(of(name), begin(of(name)), 1)
        found.append([dense(done.after, module) for module in SHAPES])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert_near(x, y, 1e-12)


def test_a_remainder_holds_the_sum_of_many_rounds_without_growing_beyond_the_matrix():
    shapes = {"o": (10, 10), "q": (14, 8)}
    for name in ("flora", "fedex_lora", "fedmomentum, all energy"):
        for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 5e-6)):
            model = begin(of(name), shapes=shapes, dtype=dtype)
            expected = {module: dense(model, module) for module in shapes}
            for number in range(1, 9):
                done = a_round(of(name), model, number, size=0.1)
                drift = {m: law(done, m) - dense(done.before, m) for m in shapes}
                expected = {m: expected[m] + drift[m] for m in shapes}
                model = done.after
                assert all(model.remainder[m].q <= min(shapes[m]) for m in shapes)
            for module in shapes:
                assert_near(dense(model, module), expected[module], tolerance)
                assert np.linalg.norm(model.remainder[module].dense()) > 0


def test_a_truncated_residual_is_the_best_of_its_rank():
    done = a_round(of("fedex_lora, rank 2"), begin(of("fedex_lora, rank 2")), 1)
    for module in SHAPES:
        after = done.after
        residual = law(done, module) - after.adapter.scale * np.matmul(*reversed(after.adapter.factors[module]))
        S = np.linalg.svd(residual, compute_uv=False)
        assert after.remainder[module].q == 2
        error = np.linalg.norm(dense(after, module) - law(done, module))
        np.testing.assert_allclose(error, np.sqrt(np.sum(S[2:] ** 2)), rtol=1e-9)


@pytest.mark.parametrize("name", ["flexlora", "raflora"])
def test_a_dropped_rest_leaves_the_best_approximation_of_the_global_rank(name):
    done = a_round(of(name), after_rounds(of(name), 1), 2)
    for module in SHAPES:
        S = np.linalg.svd(law(done, module), compute_uv=False)
        error = np.linalg.norm(dense(done.after, module) - law(done, module))
        np.testing.assert_allclose(error, np.sqrt(np.sum(S[R:] ** 2)), rtol=1e-9)


@pytest.mark.parametrize("name", ["flexlora", "raflora", "fedmomentum, all energy"])
def test_slots_without_a_singular_value_have_gradients_again(name):
    # Two equal clients of one slot each: the product has rank 1, three of four slots are empty.
    method = of(name) if name != "fedmomentum, all energy" else of(name).changed({"view": "prefix"})
    done = a_round(method, begin(method), 1, weights={"a": 1.0}, ranks={"a": 1})
    for module, (A, B) in done.after.adapter.factors.items():
        assert np.linalg.norm(B[:, 0]) > 0.1 and not B[:, 1:].any()
        rows = np.linalg.norm(A[1:], axis=1)
        assert (rows > 0.5).all() and np.ptp(rows) < 1e-9
        cosines = (A / np.linalg.norm(A, axis=1, keepdims=True)) @ (A / np.linalg.norm(A, axis=1, keepdims=True)).T
        np.testing.assert_allclose(cosines, np.eye(R), atol=1e-10)
        assert_near(dense(done.after, module), law(done, module), 1e-11)


def test_the_balanced_split_gives_both_factors_of_a_slot_the_same_norm():
    model = after_rounds(of("fedmomentum"), 2)
    for A, B in model.adapter.factors.values():
        np.testing.assert_allclose(np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0), rtol=1e-10)
        assert all(np.diff(np.linalg.norm(A, axis=1)) <= 0)


def test_the_left_split_gives_orthonormal_rows_of_a():
    for name in ("flexlora", "fedsvd"):
        for A, _ in after_rounds(of(name), 2).adapter.factors.values():
            np.testing.assert_allclose(A @ A.T, np.eye(R), atol=1e-12)


def test_fedsvd_never_leaves_the_row_space_of_its_first_a():
    first = begin(of("fedsvd"))
    last = after_rounds(of("fedsvd"), 5)
    for module, (A, _) in last.adapter.factors.items():
        cosines = np.linalg.svd(A @ first.adapter.factors[module].A.T, compute_uv=False)
        np.testing.assert_allclose(cosines, 1.0, atol=1e-12)


def test_fedsvd_keeps_its_row_space_where_a_module_has_fewer_rows_than_slots():
    shapes = {"m": (40, 2)}  # B [2, 4] has rank 2: the two other rows of A were random ones in each round
    first, last = begin(of("fedsvd"), shapes=shapes), after_rounds(of("fedsvd"), 3, shapes=shapes)
    A = last.adapter.factors["m"].A
    np.testing.assert_allclose(A @ A.T, np.eye(R), atol=1e-12)
    cosines = np.linalg.svd(A @ first.adapter.factors["m"].A.T, compute_uv=False)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-12)


def test_fedsvd_with_sgd_is_ffa_lora_with_an_orthonormal_a():
    targets = some_targets()
    _, by_svd = train(of("fedsvd"), targets, 8, 0.02, 3, begin(of("fedsvd")))
    _, by_ffa = train(of("ffa_lora, orthonormal"), targets, 8, 0.02, 3, begin(of("ffa_lora, orthonormal")))
    np.testing.assert_allclose(by_svd, by_ffa, rtol=1e-12)


def some_targets(count=3, spread=0.5):
    rng = np.random.default_rng(11)
    common = {m: rng.normal(size=(n_out, 2)) @ rng.normal(size=(2, n_in)) / 8 for m, (n_in, n_out) in SHAPES.items()}
    return {
        f"c{k}": {m: common[m] + spread * rng.normal(size=common[m].shape) / 30 for m in common} for k in range(count)
    }


@pytest.mark.parametrize("name", ALL)
def test_every_method_reduces_the_loss_of_a_quadratic(name):
    targets = some_targets()
    mean = {m: sum(t[m] for t in targets.values()) / len(targets) for m in SHAPES}
    floor = sum(0.5 * np.sum((t[m] - mean[m]) ** 2) / len(targets) for t in targets.values() for m in SHAPES)
    ranks = dict(zip(targets, (2, 4, 2), strict=True)) if of(name).mixed_ranks else None
    start = begin(of(name))
    begins = sum(0.5 * np.sum((dense(start, m) - t[m]) ** 2) / len(targets) for t in targets.values() for m in SHAPES)
    _, losses = train(of(name), targets, 12, 0.02, 4, start, ranks)
    # A frozen A sees r of 40 directions of the target, a core of r² numbers between random bases still less.
    p = of(name).pieces
    share = 0.9995 if p.start.heads else 0.97 if p.train.one_factor and name not in ("rolora", "lora_a2") else 0.8
    assert losses[-1] - floor < share * (begins - floor)
    assert losses[-1] < losses[0] < begins


def rank_one(name: str, rounds: int):
    """½‖s·BA − b a‖² with r = 1: two clients whose targets have that mean, one gradient step a round."""
    rng = np.random.default_rng(3)
    shapes = {"m": (20, 10)}
    a, b = rng.normal(size=20), rng.normal(size=10)
    target, noise = np.outer(b / np.linalg.norm(b), a / np.linalg.norm(a)), rng.normal(size=(10, 20))
    targets = {"x": {"m": target + 0.1 * noise}, "y": {"m": target - 0.1 * noise}}
    model = begin(of(name), shapes=shapes, r=1, alpha=1.0)
    model = replace(model, adapter=replace(model.adapter, factors={"m": unit(model.adapter.factors["m"])}))
    A0 = model.adapter.factors["m"].A[0]
    model, _ = train(of(name), targets, rounds, 0.7, 1, model)
    return np.sum((dense(model, "m") - target) ** 2), np.sum((target @ A0) ** 2)


def unit(pair):
    return pair._replace(A=pair.A / np.linalg.norm(pair.A))


# Known results


def test_ffa_lora_stops_at_the_floor_of_its_fixed_a_and_rolora_goes_through_it():
    # With A = a₀ᵀ of norm 1 the best B leaves ‖T‖² − ‖T a₀‖², ‖T‖ = 1 (RoLoRA, Prop. 4.6).
    ffa, seen = rank_one("ffa_lora", 60)
    np.testing.assert_allclose(ffa, 1 - seen, rtol=1e-9)
    assert ffa > 0.5
    errors = [rank_one("rolora", rounds)[0] for rounds in (40, 80, 120)]
    assert errors[2] < 1e-12 and errors[1] < 1e-3 * errors[0]


# What goes wrong


def test_every_method_has_a_one_line_description_with_its_source():
    for name in methods:
        method = build_method(name)
        assert method.citation and methods.describe(name).endswith("."), name
        assert method.name == name


@pytest.mark.parametrize("name", ["fedit", "fedex_lora", "flora", "fedmomentum", "frlora"])
def test_a_model_with_its_remainder_is_one_adapter_of_higher_rank(name):
    for rslora in (False, True):
        model = after_rounds(of(name), 3, dtype=np.float32)
        model = replace(model, adapter=replace(model.adapter, rslora=rslora))
        whole = merged_adapter(model)
        for module, (A, B) in whole.factors.items():
            assert_near(whole.scale * B.astype(np.float64) @ A, dense(model, module), 1e-6)
            assert A.dtype == B.dtype == np.float32 and len(A) == B.shape[1] == whole.r
        assert (whole is model.adapter) == (name == "fedit")


def test_with_local_b_the_global_a_is_the_mean_and_the_global_increment_is_zero():
    method = build_method("fedsa_lora")
    start = begin(method)
    views = {c: method.view(start, c, R, 1, SEED) for c in WEIGHTS}
    rng = np.random.default_rng(0)
    updates = [random_update(views[c], c, 1, rng) for c in sorted(views)]
    assert {name.rsplit(".", 1)[1] for u in updates for name in u.delta} == {"A"}
    model = method.combine(start, views, updates, WEIGHTS)
    for module in SHAPES:
        mean = sum(WEIGHTS[u.client] * u.delta[f"{module}.A"] for u in updates)
        assert_near(model.adapter.factors[module].A - start.adapter.factors[module].A, mean, 1e-12)
        assert not model.adapter.factors[module].B.any()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("FedAvg", ("federation", "method")), ("fedprox", ("objective", "proximal")),
     ("scaffold", ("objective", "scaffold")), *((n, ("personalization", "name")) for n in ("ditto", "ifca", "feddpa"))],
)  # fmt: skip
def test_an_alias_of_a_method_is_refused_with_the_equivalent_setting(name, setting):
    with pytest.raises(UsageError) as caught:
        build_method(name)
    said = caught.value.message
    assert said.startswith(f"unknown method: '{name}'. ") and "Did you mean" not in said
    assert ".".join(setting) in keys()
    named = {("federation", "method"): methods, ("personalization", "name"): personalizations}.get(setting)
    assert ".".join(setting) in said or named is methods
    assert named is None or said.rsplit('"', 2)[1] in named
