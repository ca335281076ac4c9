"""Every method runs for real: rounds on a tiny model, an adapter that any PEFT user can load, a resume."""

from __future__ import annotations

import pytest

from shepherd.model.adapter import digest, load_adapter
from shepherd.server.methods import build_method, methods

SMALL = ("federation.rounds=2", "evaluation.arms=base,federated", "evaluation.generate=0", "training.local_steps=2")


GLOBAL = [name for name in sorted(methods) if not build_method(name).pieces.personal]


@pytest.mark.parametrize("method", GLOBAL)
def test_a_method_learns_on_a_real_model_and_its_adapter_on_disk_has_the_reported_loss(method, run_small):
    mixed = ("lora.r=4", "lora.alpha=8", "lora.ranks=[2,4]") if build_method(method).mixed_ranks else ("lora.r=4",)
    run = run_small(*SMALL, *mixed, f"federation.method={method}", "lora.targets=q_proj,v_proj,down_proj")
    summary = run.summary
    assert summary["arms"]["federated"]["loss"] < summary["arms"]["base"]["loss"]
    assert abs(summary["reload_check"]["difference"]) < 1e-4
    assert digest(load_adapter(run.path / "adapter")) == summary["adapter_sha256"]
    assert summary["bytes_up"] > 0


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_a_remainder_on_a_bfloat16_base_goes_into_the_adapter_up_to_rounding(method, run_small):
    rounding = ("model.dtype=bfloat16", "federation.rounds=4", "training.learning_rate=3e-2")
    run = run_small(*SMALL, *rounding, f"federation.method={method}")
    gained = run.summary["arms"]["base"]["loss"] - run.summary["arms"]["federated"]["loss"]
    assert gained > 0.2 and abs(run.summary["reload_check"]["difference"]) < 0.01 * gained


@pytest.mark.parametrize(
    "settings",
    [
        ("objective.proximal=0.1",),
        ("objective.proximal=0.1", "objective.proximal_form=product"),
        ("objective.scaffold=true",),
        ("objective.rate_ratio=5", "federation.method=la_lora"),
        ("server.optimizer=fedavgm", "server.momentum=0.5"),
        ("server.optimizer=fedadam", "server.learning_rate=0.01"),
        ("server.optimizer=fedavgm", "federation.method=fedmomentum"),
    ],
    ids=" ".join,
)
def test_an_objective_or_a_server_optimizer_changes_what_is_learned_and_learns(settings, run_small, plain):
    run = run_small(*SMALL, *settings)
    method = [setting for setting in settings if setting.startswith("federation.method=")]
    without = run_small(*SMALL, *method) if method else plain  # the method alone changes it, too
    assert run.summary["arms"]["federated"]["loss"] < run.summary["arms"]["base"]["loss"]
    assert run.summary["adapter_sha256"] != without.summary["adapter_sha256"]


def test_fednova_with_unequal_steps_is_not_fedavg(run_small):
    epochs = ("training.local_steps=0", "training.local_epochs=1", "training.batch_size=1")
    uneven = (*SMALL, *epochs, "partition.name=linear", "partition.clients=3")
    nova, average = (run_small(*uneven, f"server.optimizer={name}") for name in ("fednova", "fedavg"))
    assert nova.summary["adapter_sha256"] != average.summary["adapter_sha256"]


@pytest.fixture(scope="module")
def plain(run_small):
    return run_small(*SMALL)


def test_fednova_with_equal_steps_is_fedavg(run_small, plain):
    nova = run_small(*SMALL, "server.optimizer=fednova")
    assert nova.summary["arms"]["federated"]["loss"] == pytest.approx(
        plain.summary["arms"]["federated"]["loss"], rel=1e-5
    )


def test_scaffold_doubles_the_bytes_up(run_small, plain):
    scaffold = run_small(*SMALL, "objective.scaffold=true")
    assert scaffold.summary["bytes_up"] == 2 * plain.summary["bytes_up"]
