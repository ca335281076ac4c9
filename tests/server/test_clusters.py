"""Clusters on the server: initialisation, aggregation, and the checks of the gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import SEED, begin, dense, local, random_update
from forged import TASK, forged, update, values
from shepherd.server.clusters import combine_clusters, group, medoids
from shepherd.server.methods import build_method
from shepherd.types import Adapter, ClientFailure, ClientModel, ClientUpdate, Factors, GlobalModel, TrainTask
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.rules import update_norm
from shepherd.updates.tensors import cluster_part
from shepherd.updates.wire import Envelope, Sealed, pack, unpack

# Initialisation


def test_clusters_are_initialised_around_the_medoids_of_the_clients():
    # Points on a line at 0, 1, 2, 10, 11 and 30. The most central is 2 (sum of distances 2 + 1 + 8 + 9 + 28 = 48, of 1
    # and 10 it is 50 and 54); then 30 (the sum falls from 48 to 20); then 10 or 11 (from 20 to 4), 10 is the first.
    line = np.array([0.0, 1, 2, 10, 11, 30])
    apart = np.abs(line[:, None] - line)
    assert medoids(apart, 1).tolist() == [0] * 6
    assert medoids(apart, 2).tolist() == [0, 0, 0, 0, 0, 1]
    assert medoids(apart, 3).tolist() == [0, 0, 0, 2, 2, 1]
    assert sorted(medoids(np.zeros((3, 3)), 3)) == [0, 1, 2], "no group is empty, not even where all are one point"


def test_clients_of_mixed_ranks_are_grouped_by_the_cosines_of_their_increments():
    method, ranks = build_method("flexlora"), {"a": 4, "b": 2, "c": 4, "d": 3, "e": 2, "f": 4}
    model = begin(method)
    common = [np.random.default_rng(side) for side in (1, 2)]
    B = {side: {n: rng.normal(size=pair.B.shape) for n, pair in model.adapter.factors.items()}
         for side, rng in enumerate(common)}  # fmt: skip
    views = {c: method.view(model, c, rank, 1, SEED) for c, rank in ranks.items()}
    updates = []
    for client, rank in ranks.items():
        noise = random_update(views[client], client, 1, np.random.default_rng(ord(client)), size=0.05)
        side = client in "ace"  # "bdf" are the others
        delta = {n: d + (3 * B[side][n[:-2]][:, :rank] if n.endswith("B") else 0) for n, d in noise.delta.items()}
        updates.append(replace(noise, delta=delta))
    numbers = group(model, views, updates[::-1], 2)
    assert [c for c in sorted(numbers) if numbers[c] == numbers["a"]] == ["a", "c", "e"]
    changes = [
        np.concatenate([(local(model, views[u.client], u, m) - dense(model, m)).ravel() for m in model.adapter.factors])
        for u in updates
    ]
    unit = np.array([change / np.linalg.norm(change) for change in changes])
    for count in range(1, 7):
        expected = medoids(1 - unit @ unit.T, count)
        assert list(group(model, views, updates, count).values()) == (1 + expected).tolist()


def test_clients_with_zero_updates_are_assigned_to_a_group():
    model = begin(build_method("fedit"))
    views = dict.fromkeys("abc", ClientModel(model.adapter))
    still = [
        ClientUpdate(c, 1, {n: 0 * t for n, t in ClientModel(model.adapter).tensors().items()}, 1, 1, 1) for c in "abc"
    ]
    assert set(group(model, views, still, 2).values()) == {1, 2}


def numbers_of(value: float) -> Adapter:
    return Adapter({"q": Factors(np.full((1, 3), value, np.float32), np.full((2, 1), -value, np.float32))}, 1, 1.0)


# Aggregation


def test_a_cluster_becomes_the_weighted_mean_of_its_clients_and_is_unchanged_without_any():
    method = build_method("fedit")
    clusters = tuple(GlobalModel(numbers_of(value)) for value in (1.0, 5.0, 9.0))
    changes = {"a": 0.5, "b": -1.0, "c": 3.0, "d": 2.0}
    numbers, weights = {"a": 1, "b": 3, "c": 1, "d": 3}, {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    views = {c: tuple(ClientModel(model.adapter) for model in clusters) for c in changes}
    shape = {"q.A": (1, 3), "q.B": (2, 1)}
    updates = [
        ClientUpdate(c, 1, {n: np.full(s, change, np.float32) for n, s in shape.items()}, 1, 1, 1)
        for c, change in changes.items()
    ]
    after = combine_clusters(method, clusters, views, updates[::-1], numbers, weights)
    # Cluster 1: 1 + (0.1 · 0.5 + 0.3 · 3) / 0.4 = 3.375; cluster 3: 9 + (0.2 · −1 + 0.4 · 2) / 0.6 = 10.
    for model, A, B in ((after[0], 3.375, 1.375), (after[2], 10.0, -8.0)):
        np.testing.assert_allclose(model.adapter.factors["q"].A, A, rtol=1e-7)
        np.testing.assert_allclose(model.adapter.factors["q"].B, B, rtol=1e-7)
    assert after[1] is clusters[1]
    unchanged = combine_clusters(method, clusters, views, updates, numbers, {**weights, "a": 0.0, "c": 0.0})
    assert unchanged[0] is clusters[0], "two clients of weight 0 do not count"
    # Clients a and c of cluster 1 with τ = 1 and 3: shares 1/4 and 3/4, mean 2.5, so 5/8 and 5/8 of the changes.
    nova = build_method("fedit", None, "fednova")
    steps = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 1.0}
    after = combine_clusters(nova, clusters, views, updates, numbers, weights, steps)
    np.testing.assert_allclose(after[0].adapter.factors["q"].A, 1 + 5 / 8 * (0.5 + 3), rtol=1e-7)


def numbered(count: int) -> TrainTask:
    views = TASK.views
    return replace(TASK, clusters={client: (view,) * count for client, view in views.items()})


def both() -> dict[str, np.ndarray]:
    return values() | {f"cluster/{name}": 2 * array for name, array in values().items()}


# The gate


@pytest.mark.parametrize("from_", ["memory", "bytes"])
@pytest.mark.parametrize(
    "count, given, code",
    [
        (2, 0, "cluster"), (2, 3, "cluster"), (2, -1, "cluster"), (2, 10**30, "cluster"), (2, True, "fields"),
        (2, 1.0, "fields"), (2, "1", "fields"), (2, None, "fields"), (2, [1], "fields"), (0, 1, "cluster"),
        (0, -1, "cluster"), (2, 1, ""), (2, 2, ""), (1, 1, ""), (0, 0, ""),
    ],
)  # fmt: skip
def test_an_update_for_a_cluster_that_was_not_sent_is_rejected(from_, count, given, code):
    delta = both() if count else values()
    task = numbered(count) if count else TASK
    sent = (
        update(delta=delta, cluster=given) if from_ == "memory" else Sealed("a", forged(delta, cluster=given))
    )  # fmt: skip
    answer = Gate(run="demo").admit(sent, task)
    if code:
        assert isinstance(answer, ClientFailure) and answer.code == code
        assert "cluster" in answer.detail and str(10**30) not in answer.detail
    else:
        assert isinstance(answer, ClientUpdate) and answer.cluster == given


def test_the_gate_checks_the_shapes_and_the_norm_of_a_cluster_update():
    task, good = numbered(2), {"delta": both(), "cluster": 2}
    faults = {
        "tensors": {n: a for n, a in both().items() if n != "cluster/q.A"},
        "shape": both() | {"cluster/q.A": np.ones((2, 4), np.float32)},
        "non-finite": both() | {"cluster/q.B": np.full((7, 2), np.inf, np.float32)},
    }
    for code, delta in faults.items():
        assert Gate().admit(update(**good | {"delta": delta}), task).code == code
    assert Gate().admit(update(delta=both()), TASK).code == "tensors", "not requested"
    # The squares of `values` sum to 98, those of the cluster's twice as long tensors to 392.
    assert update_norm(update(**good)) == pytest.approx(98**0.5)
    assert isinstance(Gate(Limits(norm=392**0.5 + 0.01)).admit(update(**good), task), ClientUpdate)
    assert Gate(Limits(norm=392**0.5 - 0.01)).admit(update(**good), task).code == "norm"


def test_the_message_of_an_update_contains_the_number_and_the_adapter_of_its_cluster():
    sent = update(delta=both(), cluster=2)
    got, _ = unpack(pack(sent, Envelope("demo", "n", "", "", 2, 2.0)))
    assert got.cluster == 2 and cluster_part(got.delta).keys() == values().keys()
    assert got.nbytes == 2 * update().nbytes
