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
    to_bfloat16,
)
from method_tables import ALL, CUT, UNCUT, VARIANTS, of
from shepherd.errors import UsageError
from shepherd.server.method import compose
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.server.uploads import Uploads
from shepherd.testing import check_method
from shepherd.testing.arrays import arrays

EXACT = [name for name in UNCUT if build_method(*ALL[name]).exact]
MIXED = [name for name in UNCUT if build_method(*ALL[name]).mixed_ranks]
MIXED_RANKS = {"a": 2, "b": 4, "c": 2}


@pytest.mark.parametrize("name", [*methods, *VARIANTS])
def test_a_method_keeps_the_promises_of_aggregation(name):
    check_method(*VARIANTS.get(name, (name, {}))[:1], **VARIANTS.get(name, (name, {}))[1])


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


SLOTS = [name for name in MIXED if of(name).pieces.view.all_slots]
"""Methods whose clients of lower rank own some of the slots."""


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
def test_a_rank_out_of_range_is_refused_with_the_client(name):
    model = after_rounds(of(name), 2)
    for rank in (0, R + 1):
        with pytest.raises(UsageError, match=f"a has rank {rank}"):
            of(name).view(model, "a", rank, 3, SEED)


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
