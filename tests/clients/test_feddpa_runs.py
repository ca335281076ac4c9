"""Whole runs with FedDPA, and settings that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shepherd.clients.personal.methods import personalizations
from shepherd.clients.personal.mixture import load_mixture, prompt_of
from shepherd.errors import UsageError
from shepherd.evaluation.losses import row_losses_each
from shepherd.experiment import run as experiment
from shepherd.experiment.rows import prepare_rows
from shepherd.model.adapter import load_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.serving.tuned import load_tuned


def feddpa(**options):
    return personalizations.build("feddpa", options)


SMALL = (
    "federation.rounds=2",
    "evaluation.generate=0",
    "training.local_steps=2",
    "evaluation.arms=base,federated,local",
)
VARIANTS = {
    "F": ("personalization.name=feddpa", "personalization.steps=4"),
    "T": ("personalization.name=feddpa", "personalization.variant=T", "personalization.weight=0.9"),
    "mixed ranks": (
        "personalization.name=feddpa", "personalization.variant=T", "federation.method=flexlora", "lora.ranks=1,2",
    ),
}  # fmt: skip

# Whole runs


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_saved_mixture_of_each_client_has_the_losses_measured_in_the_run(variant, run_small):
    run = run_small(*SMALL, *VARIANTS[variant])
    metrics = json.loads((run.path / "evaluation" / "metrics.json").read_text())
    own, weight = metrics["personal"], 0.9 if variant == "T" else 0.5
    assert sorted(own) == next(event["clients"] for event in run.events if event["event"] == "start")
    assert all(-weight <= losses["share"] <= weight for losses in own.values())
    assert len({losses["share"] for losses in own.values()}) == len(own)
    means = {model: np.mean([losses[model] for losses in own.values()]) for model in ("base", "global", "personal")}
    assert means["personal"] < means["base"] and means["global"] < means["base"]
    assert all(losses["personal"] not in (losses["global"], losses["local"]) for losses in own.values())
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Personal models" in report and "Mean λ" in report
    tuned = load_tuned(run.path)
    packed, rows = PackedModel(tuned.base.model), prepare_rows(run.config, tuned.base.tokenizer)[0]
    for client, losses in own.items():
        read = load_mixture(run.path / "personal" / client, load_adapter(run.path / "adapter"))
        held = [rows.held_out[i] for i in rows.held_out_of(client)]
        lora = CohortLora(tuned.lora.modules)
        shares = read.measure(packed, lora, [prompt_of(row) for row in held])
        again = row_losses_each(packed, held, read.hold(lora, shares))
        assert again.stat.mean == pytest.approx(losses["personal"], rel=1e-6)
        assert shares.mean() == pytest.approx(losses["share"], rel=1e-5)


def test_variant_T_changes_neither_the_global_adapter_nor_the_upload(run_small):
    settings = ("evaluation.arms=base,federated", "evaluation.generate=0")
    with_, without = run_small(*settings, *VARIANTS["T"]), run_small(*settings)
    assert with_.summary["adapter_sha256"] == without.summary["adapter_sha256"]
    assert with_.summary["bytes_up"] == without.summary["bytes_up"]


@pytest.mark.parametrize("variant", ["F", "T"])
def test_a_resumed_run_has_the_same_local_adapters_anchors_and_losses(variant, small_config, tmp_path):
    settings = ("federation.rounds=3", "federation.clients_per_round=5", "training.clients_at_once=3")
    config = small_config(*settings, "evaluation.arms=base,federated", "evaluation.generate=0", *VARIANTS[variant])
    whole = experiment.run(config, out_dir=tmp_path / "whole").path

    def stop_after_round_2(event):
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, observer=stop_after_round_2, out_dir=tmp_path / "stopped")
    resumed = experiment.resume(tmp_path / "stopped" / config.run.name).path
    names = [f.relative_to(whole) for f in sorted(whole.rglob("*.safetensors"))]
    assert sum(name.parts[0] == "personal" for name in names) >= 10
    assert [f.relative_to(resumed) for f in sorted(resumed.rglob("*.safetensors"))] == names
    assert all((whole / name).read_bytes() == (resumed / name).read_bytes() for name in names)
    metrics = [json.loads((f / "evaluation" / "metrics.json").read_text())["personal"] for f in (whole, resumed)]
    assert metrics[0] == metrics[1]


# Refused settings


@pytest.mark.parametrize("method", ["flora", "fedex_lora", "fed_sb", "fedsa_lora", "fedper_lora", "frlora"])
@pytest.mark.parametrize("variant", ["F", "T"])
def test_feddpa_is_refused_with_methods_whose_adapter_is_not_the_whole_model(method, variant, small_config, tmp_path):
    config = small_config("personalization.name=feddpa", f"personalization.variant={variant}",
                          f"federation.method={method}", "model.base=/nowhere")  # fmt: skip
    with pytest.raises(UsageError, match=f'"feddpa" and federation.method = "{method}" do not fit: .* mixed with'):
        experiment.run(config, out_dir=tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"variant": "G"}, "'F' or 'T'"),
        ({"weight": 1.5}, "weight must be 0 to 1, got 1.5"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"share": 1.2}, "share must be more than 0 and at most 1"),
        ({"steps": -1}, "must be at least 0, got -1"),
        ({"variant": "T", "steps": 5}, 'are those of variant "F"'),
        ({"variant": "T", "learning_rate": 0.1}, 'are those of variant "F"'),
        ({"lambda": 0.5}, "no option 'lambda'"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_would(options, words):
    with pytest.raises(UsageError, match=words):
        feddpa(**options)
