"""Whole runs with local modules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prepared import plan_of, trainer_of
from shepherd.errors import UsageError
from shepherd.experiment import inputs
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan as planned
from shepherd.experiment.personal_models import personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.types import GlobalModel, ServerState

SMALL = (
    "federation.rounds=3", "federation.method=fedper_lora", "evaluation.generate=0", "training.local_steps=2",
    "evaluation.arms=base,federated",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(run_small):
    return run_small(*SMALL)


def test_the_federated_arm_is_the_shared_part_of_every_personal_model(whole):
    shared = load_adapter(whole.path / "adapter")
    assert all(pair.B.any() == (".layers.1." not in name) for name, pair in shared.factors.items())
    clients = sorted(json.loads((whole.path / "evaluation" / "metrics.json").read_text())["personal"])
    own = [load_adapter(whole.path / "personal" / client) for client in clients]
    assert len(own) == 8
    for name, pair in shared.factors.items():
        same = {adapter.factors[name].B.tobytes() for adapter in own} == {pair.B.tobytes()}
        assert same == (".layers.1." not in name)
        assert ".layers.1." not in name or len({adapter.factors[name].B.tobytes() for adapter in own}) == 8


def test_without_local_blocks_a_run_equals_fedit_and_with_half_of_them_it_sends_half(whole, run_small):
    none, plain = run_small(*SMALL, "method.blocks=0"), run_small(*SMALL, "federation.method=fedit")
    assert none.summary["adapter_sha256"] == plain.summary["adapter_sha256"] != whole.summary["adapter_sha256"]
    for way in ("bytes_up", "bytes_down"):
        assert none.summary[way] == plain.summary[way] == 2 * whole.summary[way]
        assert getattr(planned(whole.config), way) == whole.summary[way]
    assert not (none.path / "personal").exists()


def test_a_resumed_run_has_the_same_personal_models(whole, tmp_path):
    from stopped_runs import after_round, stopped

    folder = stopped(whole.config, tmp_path, after_round(2))
    experiment.resume(folder)
    assert files(folder) == files(whole.path)


def files(folder):
    found = [*folder.glob("personal/*/*.safetensors"), *folder.glob("checkpoints/round-0003/*.safetensors")]
    assert len(found) == 8 + 2
    return {file.relative_to(folder): file.read_bytes() for file in found}


def test_fine_tuning_continues_from_the_local_blocks(small_config):
    config = small_config(
        "federation.method=fedper_lora", "personalization.name=finetune", "personalization.learning_rate=1e-9",
        "personalization.steps=1",
    )  # fmt: skip
    base = load_base(config.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(config, base.tokenizer)
    learner, plan = trainer_of(config, base), plan_of(config, rows)
    one, *others = sorted(rows.clients)
    start = learner.adapter.factors
    kept = {f"home/{n}.{p}": np.full_like(getattr(start[n], p), 0.01) for n in start if ".1." in n for p in "AB"}
    state = ServerState(1, GlobalModel(learner.adapter), clients={one: kept})
    found, failures = personal_models(learner, plan, rows, state, prepare_schedule(config))
    assert not failures and sorted(found) == [one, *others]
    for client, model in found.items():
        for name, (A, B) in model.adapter.factors.items():
            own = client == one and ".1." in name
            np.testing.assert_allclose(A, 0.01 if own else start[name].A, atol=1e-8)
            np.testing.assert_allclose(B, 0.01 if own else 0.0, atol=1e-8)


def test_local_modules_that_the_model_does_not_have_are_refused_before_its_weights_are_loaded(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(inputs, "load_base", lambda **_: pytest.fail("the weights were loaded"))
    config = small_config(*SMALL, "method.blocks=2")
    for attempt in (planned, lambda config: experiment.run(config, out_dir=tmp_path)):
        with pytest.raises(UsageError, match=r"the last 2 blocks .* the adapter lies in 2: nothing would travel"):
            attempt(config)
    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_of_personal_models_is_part_of_the_plan(small_config):
    with_home, without = (planned(small_config(*SMALL, f"method.blocks={n}")).tokens["evaluation"] for n in (1, 0))
    # Before, after each of 3 rounds and the reload check on all held-out rows; each under its one client's own model.
    assert with_home * 5 == without * 6
