"""Whole runs with personal models, and settings that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prepared import plan_of, trainer_of
from shepherd.clients.personal.methods import personalizations
from shepherd.errors import UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.experiment.personal_models import personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.lowrank import LowRank
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.serving.tuned import load_tuned
from shepherd.types import GlobalModel, ServerState
from tiny_training import distance

SMALL = (
    "federation.rounds=2",
    "evaluation.generate=0",
    "training.local_steps=2",
    "evaluation.arms=base,federated,local",
)

# Whole runs


@pytest.mark.parametrize(
    "settings",
    [
        ("federation.method=fedsa_lora",),
        ("federation.method=fedper_lora",),
        (
            "federation.method=hetlora", "lora.ranks=[1,2]", 'method.home={name="modules",names=["layers.1","v_proj"]}',
            "personalization.name=finetune", "personalization.steps=4",
        ),
        ("personalization.name=ditto", "personalization.strength=0.5"),
        ("personalization.name=finetune", "personalization.steps=4"),
        ("personalization.name=finetune", "personalization.steps=4", "federation.method=fedex_lora"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_run_evaluates_and_saves_the_personal_model_of_each_client(settings, run_small):
    run = run_small(*SMALL, *settings)
    metrics = json.loads((run.path / "evaluation" / "metrics.json").read_text())
    own = metrics["personal"]
    assert sorted(own) == next(event["clients"] for event in run.events if event["event"] == "start")
    for client, losses in own.items():
        assert losses["base"] == pytest.approx(metrics["arms"]["base"]["per_client"][client]["loss"])
        assert losses["global"] == pytest.approx(metrics["arms"]["federated"]["per_client"][client]["loss"])
        assert losses["local"] == pytest.approx(metrics["arms"]["local"][client]["per_client"][client]["loss"])
    mean = {model: np.mean([losses[model] for losses in own.values()]) for model in ("base", "global", "personal")}
    assert mean["personal"] < mean["base"]
    if "federation.method=fedsa_lora" in settings:
        assert mean["global"] == mean["base"]
    if "personalization.name=finetune" in settings:
        assert mean["personal"] < mean["global"]
    if "personalization.name=ditto" in settings:
        assert all(losses["personal"] not in (losses["global"], losses["local"]) for losses in own.values())
    assert "Personal models" in (run.path / "report.html").read_text(encoding="utf-8")
    tuned = load_tuned(run.path)
    client, losses = next(iter(own.items()))
    lora = CohortLora(tuned.lora.modules).hold([load_adapter(run.path / "personal" / client)])
    rows = held_out_rows(run.config, tuned, client)
    (again,) = row_losses(PackedModel(tuned.base.model), rows, lora)
    assert again.stat.mean == pytest.approx(losses["personal"], rel=1e-4)


def test_fine_tuning_starts_from_the_adapter_and_the_remainder(small_config):
    config = small_config("personalization.name=finetune", "training.optimizer=sgd", "training.learning_rate=0.1")
    base = load_base(config.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(config, base.tokenizer)
    trainer, plan = trainer_of(config, base), plan_of(config, rows)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 0.1, shape).astype(np.float32)  # noqa: E731
    remainder = {n: LowRank(draw(len(B), 2), draw(2, A.shape[1])) for n, (A, B) in trainer.adapter.factors.items()}
    beside = ServerState(1, GlobalModel(trainer.adapter, remainder))
    found, failures = personal_models(trainer, plan, rows, beside, prepare_schedule(config))
    assert sorted(found) == sorted(rows.clients) and not failures
    assert all(model.remainder is remainder for model in found.values())
    for name, term in remainder.items():
        base.model.get_submodule(name).weight.data += torch.from_numpy(term.dense())
    inside, _ = personal_models(
        trainer, plan, rows, ServerState(1, GlobalModel(trainer.adapter)), prepare_schedule(config)
    )
    for client, model in found.items():
        ours, theirs = (
            {n: pair.B for n, pair in m.adapter.factors.items()} for m in (model, inside[client])
        )  # fmt: skip
        assert distance(ours, theirs) < 1e-3


@pytest.mark.parametrize(
    ("key", "values"), [("personalization.learning_rate", (0.05, 0.2)), ("objective.rate_ratio", (1, 4))]
)
def test_fine_tuning_uses_the_rate_of_the_personalization_and_the_rate_ratio_of_the_run(key, values, small_config):
    # One step of SGD from B = 0 moves B in proportion to its rate: here four times as far, whatever training goes at.
    usual = ("personalization.name=finetune", "personalization.steps=1", "training.optimizer=sgd",
             "training.learning_rate=0.1", "training.max_grad_norm=0")  # fmt: skip
    base, moved = None, []
    for value in values:
        config = small_config(*usual, f"{key}={value}")
        base = base or load_base(config.model.base, device="cpu", dtype="float32")
        rows, _ = prepare_rows(config, base.tokenizer)
        trainer, plan = trainer_of(config, base), plan_of(config, rows)
        found, _ = personal_models(
            trainer, plan, rows, ServerState(1, GlobalModel(trainer.adapter)), prepare_schedule(config)
        )
        moved.append({(c, n): pair.B for c, m in found.items() for n, pair in m.adapter.factors.items()})
    assert distance({k: 4 * B for k, B in moved[0].items()}, moved[1]) < 1e-5


def held_out_rows(config, tuned, client):
    rows, _ = prepare_rows(config, tuned.base.tokenizer)
    return [rows.held_out[i] for i in rows.held_out_of(client)]


def test_state_and_personal_models_have_the_same_bytes_with_fewer_clients_at_once(run_small):
    found = []
    for at_once in (0, 3):
        run = run_small(*SMALL[:3], "evaluation.arms=base,federated", "personalization.name=ditto",
                        "objective.scaffold=true", "training.tokens_per_pass=250",
                        f"training.clients_at_once={at_once}")  # fmt: skip
        files = sorted([*(run.path / "checkpoints" / "round-0002").iterdir(), *(run.path / "personal").rglob("*")])
        names = ("state.safetensors", "adapter_model.safetensors")
        found.append([(f.relative_to(run.path), f.read_bytes()) for f in files if f.name in names])
    assert len(found[0]) > 2 and found[0] == found[1]


def test_a_run_without_personalization_has_no_personal_entry(tiny_run):
    assert "personal" not in json.loads((tiny_run.path / "evaluation" / "metrics.json").read_text())
    assert not (tiny_run.path / "personal").exists()


# Refused settings


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("dito", {}, "Did you mean 'ditto'"),
        ("ditto", {"strength": -1.0}, "strength must be at least 0"),
        ("ditto", {"lambda": 1.0}, "no option 'lambda'"),
        ("ditto", {"form": "gram"}, "'factors' or 'product'"),
        ("finetune", {"steps": 0}, "steps must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_would(name, options, words):
    with pytest.raises(UsageError, match=words):
        personalizations.build(name, options)


@pytest.mark.parametrize("method", ["flora", "fedex_lora", "fed_sb", "fedsa_lora", "fedper_lora", "frlora"])
def test_ditto_is_refused_with_methods_without_a_persistent_adapter(method, small_config, tmp_path):
    from shepherd.experiment.run import run

    config = small_config("personalization.name=ditto", f"federation.method={method}", "model.base=/nowhere")
    with pytest.raises(UsageError, match=f'"ditto" and federation.method = "{method}" do not fit'):
        run(config, out_dir=tmp_path)
