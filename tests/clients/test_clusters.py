"""Clusters of clients (IFCA): how they begin, which one a client chooses, what becomes of them, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from federations import SEED, begin, dense, local, random_update
from forged import TASK, forged, update, values
from plain_client import low_rank, mean_loss, train_plainly
from shepherd.clients.personal.ifca import HOMELESS, cluster_losses, judged, pick, train_in_clusters
from shepherd.clients.personal.methods import personalizations
from shepherd.clients.row_order import next_rows
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.config import PersonalizationTable
from shepherd.errors import UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan as estimate
from shepherd.experiment.rows import prepare_rows
from shepherd.model.adapter import load_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.server.clusters import combine_clusters, group, medoids
from shepherd.server.methods import build_method
from shepherd.serving.tuned import load_tuned
from shepherd.store.state import load_state
from shepherd.types import Adapter, ClientFailure, ClientModel, ClientUpdate, Factors, GlobalModel, TrainTask, Work
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.rules import update_norm
from shepherd.updates.tensors import cluster_part, view_part
from shepherd.updates.wire import Envelope, Sealed, pack, unpack
from stopped_runs import after_round, checkpoint_digest, stopped
from tiny_training import adapter_for, base_model, distance, some_data, targets_of

IFCA = ("personalization.name=ifca", "evaluation.arms=base,federated", "evaluation.generate=0")
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
    asked = {client: adapters for client in clients}
    return cluster_losses(asked, {c: data[c] for c in clients}, PackedModel(model), lora, tokens_per_pass)


def one_round(clusters, clients=tuple(DATA), at_once=16, first_row=0, **options):
    """The answers of a round by client; `clusters` holds the adapters of each client's clusters."""
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


# What a client chooses


def plain_losses(client):
    found = []
    for adapter in ADAPTERS:
        model = base_model()
        pairs = {n: tuple(map(torch.tensor, pair)) for n, pair in adapter.factors.items()}
        with low_rank(targets_of(model), pairs.__getitem__, adapter.scale), torch.no_grad():
            found.append(float(mean_loss(model, DATA[client])))
    return found


def test_a_client_chooses_the_adapter_under_which_one_sequence_at_a_time_has_the_least_loss():
    answers = one_round(dict.fromkeys(DATA, ADAPTERS))
    for client, losses in losses_of().items():
        expected = plain_losses(client)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert pick(losses) == answers[client].cluster == 1 + int(np.argmin(expected))
    assert len({answer.cluster for answer in answers.values()}) > 1, "clients that all agree show nothing"


@pytest.mark.parametrize("tokens_per_pass", [20, 1024])
def test_what_a_client_finds_is_the_same_bits_whoever_is_judged_beside_it(tokens_per_pass):
    together = losses_of(tokens_per_pass=tokens_per_pass)
    for client in DATA:
        (alone,) = losses_of((client,), tokens_per_pass=tokens_per_pass).values()
        assert alone.tobytes() == together[client].tobytes()
    turned = losses_of(tuple(reversed(DATA)), tokens_per_pass=tokens_per_pass)
    assert all(turned[client].tobytes() == together[client].tobytes() for client in DATA)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_short_row_is_judged_to_the_same_bits_whoever_is_judged_beside_it(threads):
    # With two threads products of few rows have kernels of their own, so a pass is filled up (decision 0008).
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


def test_a_client_sends_the_same_bytes_whoever_trains_beside_it():
    together, chunks = (one_round(dict.fromkeys(DATA, ADAPTERS), at_once=n) for n in (16, 2))
    for client in DATA:
        alone = one_round(dict.fromkeys(DATA, ADAPTERS), (client,))[client]
        for other in (together[client], chunks[client]):
            assert (alone.cluster, alone.metrics) == (other.cluster, other.metrics)
            assert all(array.tobytes() == other.delta[name].tobytes() for name, array in alone.delta.items())


def test_a_client_trains_the_adapter_that_it_chose_as_autograd_would():
    answer = one_round(dict.fromkeys(DATA, ADAPTERS))["client-0"]
    model = base_model()
    start = ClientModel(ADAPTERS[answer.cluster - 1])
    after, losses, _ = train_plainly(model, targets_of(model), start, DATA["client-0"], "client-0", RATES)
    expected = {name: after[name] - before for name, before in start.tensors().items()}
    assert distance(cluster_part(answer.delta), expected) < 1e-5
    assert answer.metrics["cluster_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_global_update_does_not_notice_the_clusters():
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


def test_a_broken_adapter_is_chosen_by_nobody_and_without_another_the_client_fails_alone():
    clusters = {"client-0": (BROKEN, ADAPTERS[1]), "client-1": (BROKEN, BROKEN), "client-2": ADAPTERS[:2]}
    answers, healthy = one_round(clusters), one_round(dict.fromkeys(DATA, ADAPTERS[:2]))
    assert answers["client-0"].cluster == 2
    assert (answers["client-1"].code, answers["client-1"].detail) == ("diverged", HOMELESS)
    assert answers["client-2"].metrics == healthy["client-2"].metrics
    assert pick(np.array([np.nan, np.inf])) == 0 and pick(np.array([np.nan, 2.0, 1.0, 1.0])) == 3


def test_a_client_judges_by_the_rows_of_the_round_and_by_no_more_than_it_may_or_has():
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


# How clusters begin


def test_groups_gather_around_the_clients_that_bring_the_others_nearest():
    # Points on a line at 0, 1, 2, 10, 11 and 30. The most central is 2 (sum of distances 2 + 1 + 8 + 9 + 28 = 48, of 1
    # and 10 it is 50 and 54); then 30 (the sum falls from 48 to 20); then 10 or 11 (from 20 to 4), 10 is the first.
    line = np.array([0.0, 1, 2, 10, 11, 30])
    apart = np.abs(line[:, None] - line)
    assert medoids(apart, 1).tolist() == [0] * 6
    assert medoids(apart, 2).tolist() == [0, 0, 0, 0, 0, 1]
    assert medoids(apart, 3).tolist() == [0, 0, 0, 2, 2, 1]
    assert sorted(medoids(np.zeros((3, 3)), 3)) == [0, 1, 2], "no group is empty, not even where all are one point"


def test_clients_are_grouped_by_the_cosines_of_dense_increments_whatever_their_ranks():
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


def test_clients_that_did_not_move_are_in_some_group():
    model = begin(build_method("fedit"))
    views = dict.fromkeys("abc", ClientModel(model.adapter))
    still = [
        ClientUpdate(c, 1, {n: 0 * t for n, t in ClientModel(model.adapter).tensors().items()}, 1, 1, 1) for c in "abc"
    ]
    assert set(group(model, views, still, 2).values()) == {1, 2}


# What becomes of them


def numbers_of(value: float) -> Adapter:
    return Adapter({"q": Factors(np.full((1, 3), value, np.float32), np.full((2, 1), -value, np.float32))}, 1, 1.0)


def test_a_cluster_becomes_the_weighted_mean_of_those_who_chose_it_and_one_that_nobody_chose_stays():
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
    nobody = combine_clusters(method, clusters, views, updates, numbers, {**weights, "a": 0.0, "c": 0.0})
    assert nobody[0] is clusters[0], "two of weight 0 are nobody"
    # Clients a and c of cluster 1 with τ = 1 and 3: shares 1/4 and 3/4, mean 2.5, so 5/8 and 5/8 of the changes.
    nova = build_method("fedit", None, "fednova")
    steps = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 1.0}
    after = combine_clusters(nova, clusters, views, updates, numbers, weights, steps)
    np.testing.assert_allclose(after[0].adapter.factors["q"].A, 1 + 5 / 8 * (0.5 + 3), rtol=1e-7)


# The gate


def numbered(count: int) -> TrainTask:
    views = TASK.views
    return replace(TASK, clusters={client: (view,) * count for client, view in views.items()})


def both() -> dict[str, np.ndarray]:
    return values() | {f"cluster/{name}": 2 * array for name, array in values().items()}


@pytest.mark.parametrize("from_", ["memory", "bytes"])
@pytest.mark.parametrize(
    "count, given, code",
    [
        (2, 0, "cluster"), (2, 3, "cluster"), (2, -1, "cluster"), (2, 10**30, "cluster"), (2, True, "fields"),
        (2, 1.0, "fields"), (2, "1", "fields"), (2, None, "fields"), (2, [1], "fields"), (0, 1, "cluster"),
        (0, -1, "cluster"), (2, 1, ""), (2, 2, ""), (1, 1, ""), (0, 0, ""),
    ],
)  # fmt: skip
def test_a_number_that_is_none_of_the_clusters_sent_is_refused(from_, count, given, code):
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


def test_the_adapter_of_a_cluster_is_held_to_the_shapes_and_the_length_that_it_may_have():
    task, good = numbered(2), {"delta": both(), "cluster": 2}
    faults = {
        "tensors": {n: a for n, a in both().items() if n != "cluster/q.A"},
        "shape": both() | {"cluster/q.A": np.ones((2, 4), np.float32)},
        "non-finite": both() | {"cluster/q.B": np.full((7, 2), np.inf, np.float32)},
    }
    for code, delta in faults.items():
        assert Gate().admit(update(**good | {"delta": delta}), task).code == code
    assert Gate().admit(update(delta=both()), TASK).code == "tensors", "nobody asked for it"
    # The squares of `values` sum to 98, those of the cluster's twice as long tensors to 392.
    assert update_norm(update(**good)) == pytest.approx(98**0.5)
    assert isinstance(Gate(Limits(norm=392**0.5 + 0.01)).admit(update(**good), task), ClientUpdate)
    assert Gate(Limits(norm=392**0.5 - 0.01)).admit(update(**good), task).code == "norm"


def test_the_number_and_the_adapter_of_a_cluster_travel():
    sent = update(delta=both(), cluster=2)
    got, _ = unpack(pack(sent, Envelope("demo", "n", "", "", 2, 2.0)))
    assert got.cluster == 2 and cluster_part(got.delta).keys() == values().keys()
    assert got.nbytes == 2 * update().nbytes


# Whole runs


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("federation.method=ffa_lora", "server.optimizer=fedadam", "federation.clients_per_round=5"),
        ("federation.method=flexlora", "lora.ranks=[1, 2]", "objective.proximal=9.0", "training.local_steps=2"),
        ("federation.method=fed_plora", "lora.ranks=[1, 2]"),
        ("federation.method=rolora", "selection.name=poisson", "federation.clients_per_round=5", "lora.dropout=0.1"),
    ],
    ids=" ".join,
)
def test_one_cluster_alone_is_the_global_model_again_bit_for_bit(settings, run_small):
    rounds = ("federation.rounds=3", "checkpoints.keep=9")
    run = run_small(*IFCA, "personalization.clusters=1", *rounds, *settings)
    plain = run_small(*IFCA[1:], *rounds, *settings)
    assert run.summary["adapter_sha256"] == plain.summary["adapter_sha256"], "and nobody notices it"
    for number in (1, 2, 3):
        state = load_state(run.path / "checkpoints" / f"round-000{number}")
        (cluster,) = state.clusters
        for name, pair in state.model.adapter.factors.items():
            for ours, theirs in zip(cluster.adapter.factors[name], pair, strict=True):
                assert ours.tobytes() == theirs.tobytes()
        assert cluster.memory.keys() == state.model.memory.keys()
        assert all(array.tobytes() == state.model.memory[name].tobytes() for name, array in cluster.memory.items())


@pytest.fixture(scope="module")
def two_groups(tmp_path_factory):
    """Eight clients with the same questions: a… answer yes, b… answer no."""
    folder, rng = tmp_path_factory.mktemp("groups"), np.random.default_rng(0)
    words = ["red", "green", "blue", "tree", "stone", "river", "cloud", "house", "horse", "bread", "light", "storm"]
    for k in range(8):
        side, answer = [("a", "yes yes yes"), ("b", "no no no")][k % 2]
        asked = [" ".join(rng.choice(words, 3)) for _ in range(8)]
        rows = [{"instruction": f"Say: {q}", "response": f"{answer} {q.split()[0]}"} for q in asked]
        (folder / f"{side}{k}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return (
        f"data.source={folder}", "partition.name=files", "data.rows_per_category=0", "data.max_length=64",
        "training.local_steps=3", "training.batch_size=4", "federation.rounds=3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def separated(two_groups, run_small):
    return run_small(*IFCA, *two_groups, "federation.clients_per_round=6")


SIDES = [["a0", "a2", "a4", "a6"], ["b1", "b3", "b5", "b7"]]


def test_two_groups_of_clients_are_told_apart_and_fare_better_by_a_model_each(separated):
    metrics = json.loads((separated.path / "evaluation" / "metrics.json").read_text())
    assert sorted(metrics["clusters"].values()) == SIDES
    lines = [json.loads(line) for line in (separated.path / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        assert sorted(line["clusters"]) == line["cohort"]
        assert all((line["clusters"][c] == line["clusters"][d]) == (c[0] == d[0])
                   for c in line["cohort"] for d in line["cohort"])  # fmt: skip
    for losses in metrics["personal"].values():
        assert losses["personal"] < losses["global"] < losses["base"]


def test_the_adapters_of_the_clusters_are_left_once_beside_who_is_in_which(separated):
    folder = separated.path / "clusters"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "MANIFEST.json", "clients.json"]
    assert not (separated.path / "personal").exists()
    members = json.loads((folder / "clients.json").read_text())
    metrics = json.loads((separated.path / "evaluation" / "metrics.json").read_text())
    assert members == metrics["clusters"] and sorted(members.values()) == SIDES
    tuned = load_tuned(separated.path)
    rows, _ = prepare_rows(separated.config, tuned.base.tokenizer)
    for number, client in ((n, clients[0]) for n, clients in members.items()):
        lora = CohortLora(tuned.lora.modules).hold([load_adapter(folder / number)])
        own = [rows.held_out[i] for i in rows.held_out_of(client)]
        (again,) = row_losses(PackedModel(tuned.base.model), own, lora)
        assert again.stat.mean == pytest.approx(metrics["personal"][client]["personal"], rel=1e-4)
    text = (separated.path / "report.html").read_text(encoding="utf-8")
    assert "Clients by cluster: 4 in 1, 4 in 2." in text and ">Cluster<" in text


def test_every_byte_of_the_clusters_is_counted_and_was_planned(separated):
    lines = [json.loads(line) for line in (separated.path / "rounds.jsonl").read_text().splitlines()]
    one = separated.summary["adapter"]["bytes"]
    # Round 1 knows no clusters; then 6 clients get the global model and 2 of clusters, and send 2 updates.
    assert [line["bytes_up"] for line in lines] == [6 * one, 2 * 6 * one, 2 * 6 * one]
    assert [line["bytes_down"] for line in lines] == [6 * one, 3 * 6 * one, 3 * 6 * one]
    planned = estimate(separated.config)
    assert (planned.bytes_up, planned.bytes_down) == (separated.summary["bytes_up"], separated.summary["bytes_down"])
    alone = estimate(separated.config.model_copy(update={"personalization": PersonalizationTable()}))
    assert planned.tokens["federated"] == pytest.approx(alone.tokens["federated"] * 5 / 3, abs=1)


def test_clients_that_never_took_part_have_a_cluster_at_the_end(two_groups, run_small):
    run = run_small(*IFCA, *two_groups, "federation.rounds=1", "federation.clients_per_round=4")
    members = json.loads((run.path / "clusters" / "clients.json").read_text())
    cohort = json.loads((run.path / "rounds.jsonl").read_text())["cohort"]
    assert sorted(chain(*members.values())) == sorted(chain(*SIDES)) and len(cohort) == 4
    assert len(json.loads((run.path / "evaluation" / "metrics.json").read_text())["personal"]) == 8


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_was_stopped_goes_on_with_its_clusters_to_the_same_bytes(
    number, separated, two_groups, small_config, tmp_path
):
    config = small_config(*IFCA, *two_groups, "federation.clients_per_round=6")
    folder = stopped(config, tmp_path, after_round(number))
    experiment.resume(folder)
    assert checkpoint_digest(folder) == checkpoint_digest(separated.path)
    for name in ("1", "2"):
        ours, theirs = (p / "clusters" / name / "adapter_model.safetensors" for p in (folder, separated.path))
        assert ours.read_bytes() == theirs.read_bytes()
    assert (folder / "clusters/clients.json").read_text() == (separated.path / "clusters/clients.json").read_text()


@pytest.mark.parametrize(
    "way",
    [("training.clients_at_once=1",), pytest.param(("run.workers=2",), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_clusters_are_the_same_bytes_one_at_a_time_and_in_worker_processes(way, separated, two_groups, run_small):
    run = run_small(*IFCA, *two_groups, "federation.clients_per_round=6", *way)
    assert checkpoint_digest(run.path) == checkpoint_digest(separated.path)


def test_a_round_with_too_few_updates_begins_no_cluster_and_the_run_says_so(run_small, monkeypatch):
    from shepherd.engines.local import LocalEngine

    whole = LocalEngine.train

    def one_alone(self, task, *rest):
        answers = list(whole(self, task, *rest))
        return [answers[0], *(ClientFailure(a.client, task.round, "lost", "") for a in answers[1:])]

    monkeypatch.setattr(LocalEngine, "train", one_alone)
    run = run_small(*IFCA, "federation.min_updates=1")
    warnings = [event["message"] for event in run.events if event["event"] == "warning"]
    assert "no round had 2 usable updates, so no cluster was begun" in warnings
    assert not (run.path / "clusters").exists()
    assert "clusters" not in json.loads((run.path / "evaluation" / "metrics.json").read_text())


# Mistakes


@pytest.mark.parametrize(
    "settings, reason",
    [
        (("federation.method=flora",), "is reset in each round"),
        (("federation.method=fedex_lora",), "lies beside the base"),
        (("method.start=principal",), "lies beside the base"),
        (("federation.method=frlora",), "is reset in each round"),
        (("federation.method=fed_sb",), "train a core"),
        (("federation.method=fedsa_lora",), "keep local parts already"),
        (("federation.method=fedper_lora",), "keep local parts already"),
        (("federation.method=lora_a2",), "choose their slots"),
        (("objective.scaffold=true",), "control variates"),
    ],
)
def test_what_does_not_fit_clusters_is_refused_before_anything_is_loaded(settings, reason, small_config, tmp_path):
    config = small_config(*IFCA, *settings, "model.base=/nowhere")
    with pytest.raises(UsageError, match=f'"ifca" and .* do not fit: .*{reason}') as caught:
        experiment.run(config, out_dir=tmp_path)
    assert "fedit" in caught.value.hint and "finetune" in caught.value.hint


def test_more_clusters_than_a_round_asks_clients_are_refused(small_config, tmp_path):
    config = small_config(*IFCA, "personalization.clusters=4", "federation.clients_per_round=3")
    with pytest.raises(UsageError, match=r"clusters = 4 start from a client each, and a round samples 3") as caught:
        experiment.run(config, out_dir=tmp_path)
    assert "at most 3" in caught.value.hint


@pytest.mark.parametrize("options", [{"clusters": 0}, {"rows": -1}])
def test_clusters_and_rows_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match="clusters must be at least 1 and rows at least 0"):
        personalizations.build("ifca", options)
