"""One seed, one adapter: neither worker processes, nor the order of arrival, nor how many train at once shows in it."""

from __future__ import annotations

import pytest

from shepherd.engines.local import LocalEngine
from shepherd.engines.workers import Workers
from shepherd.experiment import run as experiment
from shepherd.rng import stream
from stopped_runs import checkpoint_digest

SETTINGS = (
    "federation.rounds=3", "training.local_steps=2", "objective.scaffold=true", "server.optimizer=fedadam",
    "evaluation.arms=base,federated", "evaluation.generate=0",
)  # fmt: skip
WAYS: dict[str, tuple[str, ...]] = {
    "again": (),
    "one at a time": ("training.clients_at_once=1",),
    "three at a time": ("training.clients_at_once=3",),
    "one worker": ("run.workers=1",),
    "two workers": ("run.workers=2",),
    "two workers, three at a time": ("run.workers=2", "training.clients_at_once=3"),
}
PROCESSES = {way for way in WAYS if "worker" in way}


@pytest.fixture(scope="module")
def first(small_config, tmp_path_factory):
    return experiment.run(small_config(*SETTINGS), out_dir=tmp_path_factory.mktemp("first"))


@pytest.fixture
def shuffled(monkeypatch) -> list[list[str]]:
    """Answers arrive in another order in every round; the orders are noted."""
    orders: list[list[str]] = []

    def permuting(train):
        def permuted(self, task, *rest, **named):
            answers = list(train(self, task, *rest, **named))
            order = stream(5, "arrival", task.round).permutation(len(answers))
            orders.append([answers[i].client for i in order])
            yield from (answers[i] for i in order)

        return permuted

    for engine in (LocalEngine, Workers):
        monkeypatch.setattr(engine, "train", permuting(engine.train))
    return orders


def same_bytes(small_config, first, tmp_path, way: str) -> None:
    run = experiment.run(small_config(*SETTINGS, *WAYS[way]), out_dir=tmp_path)
    assert run.summary["adapter_sha256"] == first.summary["adapter_sha256"]
    assert checkpoint_digest(run.path) == checkpoint_digest(first.path), "the state of the server and of each client"
    assert run.summary["arms"] == first.summary["arms"]


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=pytest.mark.slow) if w in PROCESSES else w for w in WAYS], ids=str
)
def test_a_whole_run_has_the_same_bytes(small_config, first, tmp_path, shuffled, way):
    same_bytes(small_config, first, tmp_path, way)
    assert len(shuffled) == 3 and all(order != sorted(order) for order in shuffled)
    assert len({tuple(order) for order in shuffled}) == 3


def test_another_seed_gives_another_adapter(small_config, first, tmp_path):
    run = experiment.run(small_config(*SETTINGS, "run.seed=1"), out_dir=tmp_path)
    assert run.summary["adapter_sha256"] != first.summary["adapter_sha256"]
