"""The client side of IFCA: cluster losses, the choice of a cluster, and its training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plain_client import low_rank, mean_loss, train_plainly
from shepherd.clients.personal.ifca import HOMELESS, cluster_losses, judged, pick, train_in_clusters
from shepherd.clients.personal.methods import personalizations
from shepherd.clients.row_order import next_rows
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import Adapter, ClientModel, Factors, TrainTask, Work
from shepherd.updates.tensors import cluster_part, view_part
from tiny_training import adapter_for, base_model, distance, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
MODULES = targets_of(base_model())
DATA = some_data()


def another(seed: int, size: float = 1.0) -> Adapter:
    """An adapter far from the others."""
    rng = np.random.default_rng(seed)
    draw = lambda a: (size * rng.normal(0, 0.3, a.shape)).astype(np.float32)  # noqa: E731
    model = adapter_for(MODULES)
    return replace(model, factors={n: Factors(draw(A), draw(B)) for n, (A, B) in model.factors.items()})


ADAPTERS = tuple(map(another, range(3)))
BROKEN = replace(ADAPTERS[0], factors={n: Factors(A * np.nan, B) for n, (A, B) in ADAPTERS[0].factors.items()})


def losses_of(clients=tuple(DATA), adapters=ADAPTERS, tokens_per_pass=1024, data=DATA):
    model = base_model()
    lora = CohortLora(targets_of(model))
    given = dict.fromkeys(clients, adapters)
    return cluster_losses(given, {c: data[c] for c in clients}, PackedModel(model), lora, tokens_per_pass)


def one_round(clusters, clients=tuple(DATA), at_once=16, first_row=0, **options):
    """The replies of a round by client; clusters: the adapters of each client's clusters."""
    model = base_model()
    views = dict.fromkeys(clients, ClientModel(adapter_for(MODULES)))
    work = {client: Work(client, first_row, 2 * len(RATES), RATES) for client in clients}
    task = TrainTask(1, views, 7, work, clusters={c: tuple(map(ClientModel, clusters[c])) for c in clients})
    settings = LocalTraining(
        weight_decay=0.5, clients_at_once=at_once, personal=personalizations.build("ifca", options)
    )
    modules = targets_of(model)
    site = TrainingHost(PackedModel(model), lambda: CohortLora(modules), settings, DATA)
    return {answer.client: answer for answer in train_in_clusters(task, {}, site)}


def plain_losses(client):
    found = []
    for adapter in ADAPTERS:
        model = base_model()
        pairs = {n: tuple(map(torch.tensor, pair)) for n, pair in adapter.factors.items()}
        with low_rank(targets_of(model), pairs.__getitem__, adapter.scale), torch.no_grad():
            found.append(float(mean_loss(model, DATA[client])))
    return found


def test_a_client_chooses_the_cluster_with_the_least_loss_of_separate_passes():
    answers = one_round(dict.fromkeys(DATA, ADAPTERS))
    for client, losses in losses_of().items():
        expected = plain_losses(client)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert pick(losses) == answers[client].cluster == 1 + int(np.argmin(expected))
    assert len({answer.cluster for answer in answers.values()}) > 1, "clients that all agree show nothing"


@pytest.mark.parametrize("tokens_per_pass", [20, 1024])
def test_cluster_losses_of_a_client_have_the_same_bits_in_any_cohort(tokens_per_pass):
    together = losses_of(tokens_per_pass=tokens_per_pass)
    for client in DATA:
        (alone,) = losses_of((client,), tokens_per_pass=tokens_per_pass).values()
        assert alone.tobytes() == together[client].tobytes()
    turned = losses_of(tuple(reversed(DATA)), tokens_per_pass=tokens_per_pass)
    assert all(turned[client].tobytes() == together[client].tobytes() for client in DATA)


@pytest.mark.parametrize("threads", [1, 2])
def test_cluster_losses_of_one_short_row_have_the_same_bits_in_any_cohort(threads):
    # With two threads products of few rows use special kernels, so a pass is padded (decision 0008).
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for longest in (7, 8, 12):
            data = some_data(8, rows=1, longest=longest)
            together = losses_of(tuple(data), data=data)
            alone = {client: losses_of((client,), data=data)[client] for client in data}
            assert [c for c in data if alone[c].tobytes() != together[c].tobytes()] == []
    finally:
        torch.set_num_threads(before)


def test_an_update_of_a_clustered_client_has_the_same_bytes_in_any_cohort():
    together, chunks = (one_round(dict.fromkeys(DATA, ADAPTERS), at_once=n) for n in (16, 2))
    for client in DATA:
        alone = one_round(dict.fromkeys(DATA, ADAPTERS), (client,))[client]
        for other in (together[client], chunks[client]):
            assert (alone.cluster, alone.metrics) == (other.cluster, other.metrics)
            assert all(array.tobytes() == other.delta[name].tobytes() for name, array in alone.delta.items())


def test_training_the_chosen_cluster_matches_autograd():
    answer = one_round(dict.fromkeys(DATA, ADAPTERS))["client-0"]
    model = base_model()
    start = ClientModel(ADAPTERS[answer.cluster - 1])
    after, losses, _ = train_plainly(model, targets_of(model), start, DATA["client-0"], "client-0", RATES)
    expected = {name: after[name] - before for name, before in start.tensors().items()}
    assert distance(cluster_part(answer.delta), expected) < 1e-5
    assert answer.metrics["cluster_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_clusters_do_not_change_the_global_update():
    task = TrainTask(
        1, dict.fromkeys(DATA, ClientModel(adapter_for(MODULES))), 7, {c: Work(c, 0, 6, RATES) for c in DATA}
    )
    model = base_model()
    modules = targets_of(model)
    site = TrainingHost(PackedModel(model), lambda: CohortLora(modules), LocalTraining(weight_decay=0.5), DATA)
    plain = train(task, {}, site)
    beside = one_round(dict.fromkeys(DATA, ADAPTERS))
    for answer in plain:
        change = view_part(beside[answer.client].delta)
        assert change.keys() == answer.delta.keys()
        assert all(array.tobytes() == answer.delta[name].tobytes() for name, array in change.items())


def test_a_non_finite_cluster_is_never_chosen_and_a_client_without_a_finite_one_fails_alone():
    clusters = {"client-0": (BROKEN, ADAPTERS[1]), "client-1": (BROKEN, BROKEN), "client-2": ADAPTERS[:2]}
    answers, healthy = one_round(clusters), one_round(dict.fromkeys(DATA, ADAPTERS[:2]))
    assert answers["client-0"].cluster == 2
    assert (answers["client-1"].code, answers["client-1"].detail) == ("diverged", HOMELESS)
    assert answers["client-2"].metrics == healthy["client-2"].metrics
    assert pick(np.array([np.nan, np.inf])) == 0 and pick(np.array([np.nan, 2.0, 1.0, 1.0])) == 3


def test_clusters_are_compared_on_the_rows_of_the_round_up_to_the_limit_and_the_rows_held():
    rows = DATA["client-0"]
    ids = lambda some: [row.id for row in some]  # noqa: E731
    assert ids(judged(rows, "c", 4, 4, 0, 7)) == ids(next_rows(rows, "c", 4, 4, 7))
    assert ids(judged(rows, "c", 4, 4, 3, 7)) == ids(next_rows(rows, "c", 4, 3, 7))
    assert sorted(ids(judged(rows, "c", 0, 18, 0, 7))) == sorted(ids(rows))
    picks = {}
    for first_row in range(4):
        for client, answer in one_round(dict.fromkeys(DATA, ADAPTERS), first_row=first_row, rows=1).items():
            model = base_model()
            (first,) = next_rows(DATA[client], client, first_row, 1, 7)
            losses = cluster_losses(
                {client: ADAPTERS}, {client: [first]}, PackedModel(model), CohortLora(targets_of(model)), 99
            )
            assert answer.cluster == pick(losses[client])
            picks.setdefault(client, set()).add(answer.cluster)
    assert any(len(of_client) > 1 for of_client in picks.values()), "the row that is judged by makes a difference"
