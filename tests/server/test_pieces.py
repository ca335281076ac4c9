"""Weighings and client models on dense matrices, and the state of a reloaded model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import (
    ALPHA,
    SEED,
    SHAPES,
    WEIGHTS,
    R,
    a_round,
    after_rounds,
    assert_near,
    begin,
    dense,
    local,
    shapes_for,
    whole,
)
from shepherd.errors import UsageError
from shepherd.lowrank import LowRank
from shepherd.server.method import compose
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.server.uploads import Uploads
from shepherd.store.state import load_state, save_state
from shepherd.types import ServerState


def shares_of(name: str, done):
    from shepherd.server.pieces.weighing import weighings

    uploads = Uploads(done.before, done.views, done.updates)
    return weighings.build(name).of(uploads, np.array([done.weights[u.client] for u in uploads.updates]))("q")


# Weighing


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
