"""Whole runs with clusters: separation, traffic, resuming, and settings that are refused."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest

from shepherd.clients.personal.methods import personalizations
from shepherd.config import PersonalizationTable
from shepherd.errors import UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan as estimate
from shepherd.experiment.rows import prepare_rows
from shepherd.model.adapter import load_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.serving.tuned import load_tuned
from shepherd.store.state import load_state
from shepherd.types import ClientFailure
from stopped_runs import after_round, checkpoint_digest, stopped

IFCA = ("personalization.name=ifca", "evaluation.arms=base,federated", "evaluation.generate=0")

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
def test_a_single_cluster_equals_the_global_model_bit_for_bit(settings, run_small):
    rounds = ("federation.rounds=3", "checkpoints.keep=9")
    run = run_small(*IFCA, "personalization.clusters=1", *rounds, *settings)
    plain = run_small(*IFCA[1:], *rounds, *settings)
    assert run.summary["adapter_sha256"] == plain.summary["adapter_sha256"], "and the global adapter is unchanged"
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
    """Eight clients with the same questions: the responses of a… are yes, those of b… no."""
    folder, rng = tmp_path_factory.mktemp("groups"), np.random.default_rng(0)
    words = ["red", "green", "blue", "tree", "stone", "river", "cloud", "house", "horse", "bread", "light", "storm"]
    for k in range(8):
        side, answer = [("a", "yes yes yes"), ("b", "no no no")][k % 2]
        questions = [" ".join(rng.choice(words, 3)) for _ in range(8)]
        rows = [{"instruction": f"Say: {q}", "response": f"{answer} {q.split()[0]}"} for q in questions]
        (folder / f"{side}{k}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return (
        f"data.source={folder}", "partition.name=files", "data.rows_per_category=0", "data.max_length=64",
        "training.local_steps=3", "training.batch_size=4", "federation.rounds=3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def separated(two_groups, run_small):
    return run_small(*IFCA, *two_groups, "federation.clients_per_round=6")


SIDES = [["a0", "a2", "a4", "a6"], ["b1", "b3", "b5", "b7"]]


def test_two_groups_of_clients_are_separated_and_have_a_lower_loss_with_two_clusters(separated):
    metrics = json.loads((separated.path / "evaluation" / "metrics.json").read_text())
    assert sorted(metrics["clusters"].values()) == SIDES
    lines = [json.loads(line) for line in (separated.path / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        assert sorted(line["clusters"]) == line["cohort"]
        assert all((line["clusters"][c] == line["clusters"][d]) == (c[0] == d[0])
                   for c in line["cohort"] for d in line["cohort"])  # fmt: skip
    for losses in metrics["personal"].values():
        assert losses["personal"] < losses["global"] < losses["base"]


def test_a_run_saves_each_cluster_adapter_once_with_the_list_of_its_clients(separated):
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


def test_the_traffic_of_clusters_is_counted_and_matches_the_plan(separated):
    lines = [json.loads(line) for line in (separated.path / "rounds.jsonl").read_text().splitlines()]
    one = separated.summary["adapter"]["bytes"]
    # Round 1 knows no clusters; then 6 clients get the global model and 2 of clusters, and send 2 updates.
    assert [line["bytes_up"] for line in lines] == [6 * one, 2 * 6 * one, 2 * 6 * one]
    assert [line["bytes_down"] for line in lines] == [6 * one, 3 * 6 * one, 3 * 6 * one]
    planned = estimate(separated.config)
    assert (planned.bytes_up, planned.bytes_down) == (separated.summary["bytes_up"], separated.summary["bytes_down"])
    alone = estimate(separated.config.model_copy(update={"personalization": PersonalizationTable()}))
    assert planned.tokens["federated"] == pytest.approx(alone.tokens["federated"] * 5 / 3, abs=1)


def test_clients_that_were_never_sampled_have_a_cluster_at_the_end(two_groups, run_small):
    run = run_small(*IFCA, *two_groups, "federation.rounds=1", "federation.clients_per_round=4")
    members = json.loads((run.path / "clusters" / "clients.json").read_text())
    cohort = json.loads((run.path / "rounds.jsonl").read_text())["cohort"]
    assert sorted(chain(*members.values())) == sorted(chain(*SIDES)) and len(cohort) == 4
    assert len(json.loads((run.path / "evaluation" / "metrics.json").read_text())["personal"]) == 8


@pytest.mark.parametrize("number", [1, 2])
def test_a_resumed_run_with_clusters_ends_with_the_same_bytes(number, separated, two_groups, small_config, tmp_path):
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
def test_clusters_have_the_same_bytes_one_client_at_a_time_and_in_worker_processes(
    way, separated, two_groups, run_small
):
    run = run_small(*IFCA, *two_groups, "federation.clients_per_round=6", *way)
    assert checkpoint_digest(run.path) == checkpoint_digest(separated.path)


def test_a_round_with_too_few_updates_initialises_no_cluster_and_is_noted(run_small, monkeypatch):
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


# Refused settings


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
def test_settings_that_conflict_with_clusters_are_refused_before_the_model_is_loaded(
    settings, reason, small_config, tmp_path
):
    config = small_config(*IFCA, *settings, "model.base=/nowhere")
    with pytest.raises(UsageError, match=f'"ifca" and .* do not fit: .*{reason}') as caught:
        experiment.run(config, out_dir=tmp_path)
    assert "fedit" in caught.value.hint and "finetune" in caught.value.hint


def test_more_clusters_than_clients_per_round_are_refused(small_config, tmp_path):
    config = small_config(*IFCA, "personalization.clusters=4", "federation.clients_per_round=3")
    with pytest.raises(UsageError, match=r"clusters = 4 start from a client each, and a round samples 3") as caught:
        experiment.run(config, out_dir=tmp_path)
    assert "at most 3" in caught.value.hint


@pytest.mark.parametrize("options", [{"clusters": 0}, {"rows": -1}])
def test_invalid_numbers_of_clusters_and_rows_are_refused(options):
    with pytest.raises(UsageError, match="clusters must be at least 1 and rows at least 0"):
        personalizations.build("ifca", options)
