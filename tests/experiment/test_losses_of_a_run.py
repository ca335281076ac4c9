"""The losses that a run writes by row are those of its metrics, for every arm."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import shepherd
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment.arms import load_arm
from shepherd.store import read_json


def test_every_figure_of_the_metrics_follows_from_the_losses_by_row(tiny_run):
    losses = shepherd.open_run(tiny_run.path).losses()
    metrics = read_json(tiny_run.path / "evaluation/metrics.json")
    partition = read_json(tiny_run.path / "partition.json")
    assert list(losses.ids) == partition["held_out"] and set(losses.holds) == set(partition["clients"])
    assert (
        set(losses.pooled) | set(losses.each) == metrics["arms"].keys() == {"base", "federated", "local", "centralised"}
    )
    for name, found in losses.models.items():
        arm, _, client = name.partition("/")
        expected = metrics["arms"][arm][client] if client else metrics["arms"][arm]
        assert found.stat.mean == expected["loss"] and found.stderr == expected["stderr"], name
        for owner in losses.holds:
            own = found.select(losses.own(owner))
            assert own.stat.mean == expected["per_client"][owner]["loss"]
        for category, part in expected["per_category"].items():
            rows = np.array([group == category for group in losses.groups])
            assert found.select(rows).stat.mean == part["loss"]
    (entry,) = (d for d in metrics["differences"] if (d["a"], d["b"]) == ("federated", "base"))
    again = paired_difference(losses.models["federated"], losses.models["base"])
    assert {key: entry[key] for key in again} == again
    assert entry["ci95"][0] < entry["difference"] < entry["ci95"][1]


def test_the_losses_of_the_arms_are_those_that_the_arms_kept(tiny_run):
    losses = shepherd.open_run(tiny_run.path).losses()
    local = load_arm(tiny_run.path / "arms/local", per_client=True)
    assert list(losses.local) == list(local.losses)
    for client, kept in local.losses.items():
        assert kept.nll.tobytes() == losses.local[client].nll.tobytes()
    pooled = load_arm(tiny_run.path / "arms/centralised", per_client=False).losses["pooled"]
    assert pooled.nll.tobytes() == losses.models["centralised"].nll.tobytes()


def test_a_run_without_losses_is_still_opened_measured_and_reported(tiny_run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_run.path, old)
    (old / "evaluation/losses.safetensors").unlink()
    shutil.rmtree(old / "arms/local/adapters")
    run = shepherd.open_run(old)
    assert run.report().is_file() and run.metrics["arms"] and run.load().name == "old"
    assert len(run.adapters()) == 4
    with pytest.raises(shepherd.ShepherdError, match=r"has no evaluation/losses\.safetensors"):
        run.losses()
