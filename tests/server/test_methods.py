"""Every registered method against dense float64 matrices: exactness, invariances, ranks and errors."""

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
    bfloat16,
    dense,
    fresh,
    in_another_gauge,
    in_dense_form,
    law,
    local,
    random_update,
    to_bfloat16,
    train,
)
from shepherd.clients.personal.methods import personalizations
from shepherd.config import keys
from shepherd.errors import ClientError, NumericalError, UsageError
from shepherd.lowrank import LowRank
from shepherd.server.merged_adapter import merged_adapter
from shepherd.server.method import compose
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.server.uploads import Uploads

# Methods whose preset truncates by energy, here without; and variants that deserve a separate row.
VARIANTS = {
    "fedmomentum, all energy": ("fedmomentum", {"energy": 1.0}),
    "florist, all energy": ("florist", {"energy": 1.0}),
    "ffa_lora, orthonormal": ("ffa_lora", {"start": "orthonormal"}),
    "flexlora, common scale": ("flexlora", {"scale": "common"}),
    "fedrot_lora, whole rotation": ("fedrot_lora", {"strength": 1.0}),
    "ravan, two heads": ("ravan", {"heads": 2}),
    "fedex_lora, rank 2": ("fedex_lora", {"rank": 2}),
}
GLOBAL = [name for name in methods if not methods.build(name).pieces.personal]
"""Methods that train the global model; the others train personal models."""
ALL = {**{name: (name, {}) for name in GLOBAL}, **VARIANTS}


def of(name: str):
    return build_method(*ALL[name])


CUT = {name for name, (method, options) in ALL.items() if build_method(method, options).pieces.remainder.energy < 1}
UNCUT = sorted(ALL.keys() - CUT)
EXACT = [name for name in UNCUT if build_method(*ALL[name]).exact]
INEXACT = [name for name in UNCUT if name not in EXACT]
MIXED = [name for name in UNCUT if build_method(*ALL[name]).mixed_ranks]
MIXED_RANKS = {"a": 2, "b": 4, "c": 2}
TOLERANCE = {np.float64: 1e-11, np.float32: 3e-6}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_method_moves_the_increment_by_the_weighted_mean_of_the_clients_changes(name, dtype):
    model = begin(of(name), dtype=dtype)
    for number in (1, 2, 3):
        done = a_round(of(name), model, number)
        for module in SHAPES:
            assert_near(dense(done.after, module), law(done, module), TOLERANCE[dtype])
        model = done.after
        assert all(f.dtype == dtype for pair in model.adapter.factors.values() for f in pair)
        assert all(rest.L.dtype == dtype for rest in model.remainder.values())


@st.composite
def federations(draw):
    """(shapes, r, weights): modules of any sizes, some smaller than the total rank of the clients, for any cohort."""
    r = 4 * draw(st.integers(1, 2))  # so that two or four heads divide it
    sizes = st.tuples(st.integers(r, 24), st.integers(r, 24))
    shapes = {f"m{i}": size for i, size in enumerate(draw(st.lists(sizes, min_size=1, max_size=3)))}
    parts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    return shapes, r, {f"client-{i}": part / sum(parts) for i, part in enumerate(parts)}


@pytest.mark.parametrize("name", EXACT)
@given(federation=federations())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_the_exactness_law_holds_for_modules_and_cohorts_of_any_size(name, federation):
    shapes, r, weights = federation
    model = begin(of(name), shapes, r)
    for number in (1, 2):
        done = a_round(of(name), model, number, weights)
        for module in shapes:
            assert_near(dense(done.after, module), law(done, module), 1e-10)
        model = done.after


@pytest.mark.parametrize("name", INEXACT)
def test_a_method_declared_inexact_is_inexact(name):
    done = a_round(of(name), after_rounds(of(name), 2, ranks=RANKS.get(name)), 3, ranks=RANKS.get(name))
    assert_far(dense(done.after, "q"), law(done, "q"), 1e-3)


RANKS = {name: MIXED_RANKS for name in ("hetlora", "fedilora", "fed_plora")}
SLOTS = [name for name in MIXED if of(name).pieces.view.all_slots]
"""Methods whose clients of lower rank own some of the slots."""


@pytest.mark.parametrize("name", sorted(CUT))
def test_a_method_that_keeps_a_share_of_the_energy_loses_no_more_than_the_rest_of_it(name):
    method = of(name)
    done = a_round(method, after_rounds(method, 2), 3)
    for module in SHAPES:
        exact = law(done, module)
        rest = done.before.remainder[module].dense()
        lost = np.linalg.norm(dense(done.after, module) - exact)
        assert lost <= 1.0001 * np.sqrt(1 - method.pieces.remainder.energy) * np.linalg.norm(exact - rest)


@pytest.mark.parametrize("name", UNCUT)
def test_with_one_client_the_global_model_becomes_its_model(name):
    done = a_round(of(name), after_rounds(of(name), 2), 3, weights={"a": 1.0})
    for module in SHAPES:
        assert_near(dense(done.after, module), local(done.before, done.views["a"], done.updates[0], module), 1e-11)


@pytest.mark.parametrize("name", UNCUT)
def test_with_identical_clients_the_global_model_becomes_theirs(name):
    done = a_round(of(name), after_rounds(of(name), 2), 3)
    same = tuple(replace(done.updates[0], client=c) for c in WEIGHTS)
    done = replace(done, updates=same)
    for module in SHAPES:
        assert_near(dense(done.after, module), local(done.before, done.views["a"], same[0], module), 1e-11)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_arrival_changes_no_bit(name):
    done = a_round(of(name), after_rounds(of(name), 2), 3)  # float64: rounding to float32 would hide another order
    straight = arrays(done.after)
    for order in ((2, 1, 0), (1, 2, 0)):
        mixed = arrays(replace(done, updates=tuple(done.updates[i] for i in order)).after)
        assert straight.keys() == mixed.keys()
        assert all(straight[key].tobytes() == mixed[key].tobytes() for key in straight)


def arrays(model) -> dict[str, np.ndarray]:
    found = dict(model.memory)
    for module, (A, B) in model.adapter.factors.items():
        found |= {f"{module}.A": A, f"{module}.B": B}
    for module, rest in model.remainder.items():
        found |= {f"{module}.L": rest.L, f"{module}.R": rest.R}
    return found


@pytest.mark.parametrize("name", ALL)
def test_combining_does_not_modify_its_arguments(name):
    done = a_round(of(name), after_rounds(of(name), 1), 2)
    inputs = {**arrays(done.before), **{f"{u.client} {n}": d for u in done.updates for n, d in u.delta.items()}}
    before = {key: value.copy() for key, value in inputs.items()}
    assert done.after is not None
    assert all(np.array_equal(inputs[key], before[key]) for key in inputs)


# A rotation needs both factors.
@pytest.mark.parametrize("name", [name for name in UNCUT if not of(name).pieces.train.one_factor])
def test_declared_gauge_invariance_is_that_of_the_results(name):
    method = of(name)
    p = method.pieces
    done = a_round(method, after_rounds(method, 1), 2)
    rng = np.random.default_rng(5)
    turned = replace(done, updates=tuple(in_another_gauge(done.views[u.client], u, rng) for u in done.updates))
    whole_rotation = p.payload.name == "rotate" and name in VARIANTS
    invariant = (p.merge.name == "product" and p.split.name != "ridge" and p.remainder.rank == 0) or whole_rotation
    if p.weigh.by_slot and p.merge.name == "product":
        invariant = True  # equal ranks: every client owns every slot
    for module in SHAPES:
        if invariant:
            assert_near(dense(turned.after, module), dense(done.after, module), 1e-10)
        else:
            assert_far(dense(turned.after, module), dense(done.after, module), 0.01)


@pytest.mark.parametrize("name", EXACT)
def test_the_law_holds_for_uploads_that_were_rounded_to_bfloat16(name):
    done = a_round(of(name), after_rounds(of(name), 2), 3, change=to_bfloat16)
    for module in SHAPES:
        assert_near(dense(done.after, module), law(done, module), 1e-11)


@pytest.mark.parametrize("scale", ["common", "own"])
@pytest.mark.parametrize("name", [name for name in MIXED if name in EXACT])
def test_the_law_holds_for_clients_of_mixed_ranks_and_scales(name, scale):
    method = of(name)
    if method.pieces.view.name == "fresh":
        method = method.changed({"view": {"name": "fresh", "scale": scale}})
    if method.pieces.weigh.by_slot:
        method = method.changed({"weigh": "given"})
    model = begin(method)
    for number in (1, 2, 3):
        done = a_round(method, model, number, ranks=MIXED_RANKS)
        for module in SHAPES:
            assert_near(dense(done.after, module), law(done, module), 1e-11)
        model = done.after


@pytest.mark.parametrize("merge, split", [("product", "svd_balanced"), ("product", "mean"), ("factor", "mean")])
@pytest.mark.parametrize("scale", ["common", "own"])
@pytest.mark.parametrize("view", ["prefix", "svd", "fold", "probe"])
def test_mixed_ranks_compose_with_any_product_and_with_one_trained_factor(view, scale, merge, split):
    if view == "svd" and merge == "factor":
        return
    view = {"name": view} if view in ("fold", "probe") else {"name": view, "scale": scale}
    train_one = "AB" if merge == "product" else "B"
    method = compose(
        "mixed", view=view, train=train_one, merge=merge, split=split,
        remainder="keep" if merge == "product" else "drop",
    )  # fmt: skip
    done = a_round(method, after_rounds(method, 2, ranks=MIXED_RANKS), 3, ranks=MIXED_RANKS)
    for module in SHAPES:
        assert_near(dense(done.after, module), law(done, module), 1e-11)


@pytest.mark.parametrize("name", MIXED)
def test_a_client_model_has_the_rank_of_its_client(name):
    method = of(name)
    model = after_rounds(method, 2)
    view = method.view(model, "a", 2, 3, SEED)
    if view.choice is not None:
        assert view.adapter.r == R and view.choice.budget == 2 * len(SHAPES)
    elif view.slots is None:
        assert view.adapter.r == 2 and all(len(A) == B.shape[1] == 2 for A, B in view.adapter.factors.values())
    else:
        assert view.adapter.r == R and all(moves.sum() == 2 for moves in view.slots.values())
    if view.adapter.r == R:
        assert_near(local(model, view, None, "q"), dense(model, "q"), 1e-12)
    for rank in (0, R + 1):
        with pytest.raises(UsageError, match=f"a has rank {rank}"):
            method.view(model, "a", rank, 3, SEED)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SLOTS)
def test_uploads_of_owned_slots_give_the_same_bits_as_uploads_of_all_slots(name, dtype):
    method = of(name)
    model = begin(method, dtype=dtype)
    for number in (1, 2, 3):
        done = a_round(method, model, number, ranks=MIXED_RANKS)
        dense_form = in_dense_form(done)
        if method.pieces.weigh.by_slot:  # the server knows the owners from the slots alone
            owned = Uploads(done.before, done.views, done.updates)
            patched = method.pieces.weigh.of(owned, np.array([WEIGHTS[c] for c in "abc"]))
            weigh = replace(method.pieces.weigh, of=lambda uploads, weights, patched=patched: patched)
            dense_form = replace(dense_form, method=replace(method, pieces=replace(method.pieces, weigh=weigh)))
        one, other = arrays(done.after), arrays(dense_form.after)
        assert all(one[key].tobytes() == other[key].tobytes() for key in other)
        sizes = [(a.nbytes, b.nbytes) for a, b in zip(done.updates, dense_form.updates, strict=True)]
        assert all(owned < 0.6 * everything for (owned, everything), c in zip(sizes, "abc", strict=True) if c != "b")
        model = done.after


@pytest.mark.parametrize("name", sorted(ALL.keys() - set(MIXED) - CUT))
def test_a_method_without_mixed_ranks_refuses_them(name):
    with pytest.raises(UsageError, match=r"a has rank 2"):
        of(name).view(begin(of(name)), "a", 2, 1, SEED)
    with pytest.raises(UsageError) as caught:
        check_ranks(of(name), {"a": 2, "b": R}, R)
    assert "flora" in caught.value.hint or "heads" in caught.value.message


@pytest.mark.parametrize("share", [0.5, 1.5])
@pytest.mark.parametrize("name", EXACT)
def test_weights_that_do_not_sum_to_one_scale_the_change_but_not_the_model(name, share):
    weights = {client: share * weight for client, weight in WEIGHTS.items()}
    done = a_round(of(name), after_rounds(of(name), 2), 3, weights=weights)
    for module in SHAPES:
        assert_near(dense(done.after, module), law(done, module), 1e-11)


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


# Known results


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


def test_ffa_lora_stops_at_the_floor_of_its_fixed_a_and_rolora_goes_through_it():
    # With A = a₀ᵀ of norm 1 the best B leaves ‖T‖² − ‖T a₀‖², ‖T‖ = 1 (RoLoRA, Prop. 4.6).
    ffa, seen = rank_one("ffa_lora", 60)
    np.testing.assert_allclose(ffa, 1 - seen, rtol=1e-9)
    assert ffa > 0.5
    errors = [rank_one("rolora", rounds)[0] for rounds in (40, 80, 120)]
    assert errors[2] < 1e-12 and errors[1] < 1e-3 * errors[0]


# What goes wrong


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
