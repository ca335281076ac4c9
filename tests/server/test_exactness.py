"""The exactness law and the invariances of every method, against dense float64 matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federations import (
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
    in_another_gauge,
    in_dense_form,
    law,
    local,
    to_bfloat16,
)
from method_tables import ALL, CUT, UNCUT, VARIANTS, of
from shepherd.errors import UsageError
from shepherd.server.method import compose
from shepherd.server.methods import build_method, check_ranks
from shepherd.server.uploads import Uploads

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


RANKS = dict.fromkeys(("hetlora", "fedilora", "fed_plora"), MIXED_RANKS)
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
