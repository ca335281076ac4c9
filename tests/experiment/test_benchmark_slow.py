"""Benchmarks of the real small model, and the harness's own tasks without a network."""

from __future__ import annotations

import pytest

from shepherd.errors import NetworkError, UsageError
from shepherd.experiment.benchmarks.benchmark import benchmark
from shepherd.experiment.benchmarks.tasks import parse
from shepherd.experiment.run import run
from shepherd.recipe import load
from shepherd.store import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SETTINGS = (
    "model.base=smollm2-135m",
    "model.device=cpu",
    "model.dtype=float32",
    "data.rows_per_category=3",
    "data.held_out_per_category=1",
    "federation.rounds=1",
    "training.local_steps=1",
    "training.batch_size=2",
    "data.max_length=160",
    "evaluation.arms=base,federated",
    "evaluation.generate=2",
    "evaluation.max_new_tokens=8",
)


def test_benchmarks_of_the_real_model_give_the_losses_of_its_run_for_adapter_and_merged_model(tmp_path, monkeypatch):
    place = run(load(None, [*SETTINGS]), out_dir=tmp_path).path
    found = {record["task"]: record for record in benchmark(place, [""], parse(["held-out"]))}
    assert set(found) == {"held-out:likelihood", "held-out:choice", "held-out:generation"}
    arms = read_json(place / "evaluation" / "metrics.json")["arms"]
    models = found["held-out:likelihood"]["models"]
    for arm in ("base", "federated"):
        assert models[arm]["metrics"]["loss"]["value"] == pytest.approx(arms[arm]["loss"], abs=1e-3)
    for record in found.values():
        print(record["task"], len(record["rows"]), record["left_out"])
        for metric in record["metrics"]:
            figures = {name: model["metrics"][metric] for name, model in record["models"].items()}
            print(f"  {metric}", {name: (figure["value"], figure["stderr"]) for name, figure in figures.items()})
            assert figures["federated"]["value"] == pytest.approx(figures["merged"]["value"], abs=1e-3)
    assert found["held-out:choice"]["models"]["base"]["metrics"]["acc"]["value"] > 0.25, "better than chance"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NetworkError, match="task 'arc_easy' reads the dataset allenai/ai2_arc"):
        benchmark(place, ["base"], parse(["arc_easy"]))
    with pytest.raises(UsageError, match=r"unknown task: 'arc_eesy'\. Did you mean 'arc_easy'"):
        benchmark(place, ["base"], parse(["arc_eesy"]))
