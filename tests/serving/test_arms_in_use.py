"""The adapters of the other arms in use: opened by name, as PEFT folders, exported, chatted with, measured again."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

import shepherd
from console import Shell
from shepherd.errors import UsageError
from shepherd.model.adapter import digest, load_adapter
from shepherd.serving.chat import load_voices
from shepherd.serving.export import export
from shepherd.store import read_json

IDS = (5, 17, 40, 8, 99, 3)


def alone(run) -> list[str]:
    return [name for name in shepherd.open_run(run.path).adapters() if ":local/" in name]


def logits(name) -> np.ndarray:
    return shepherd.load_tuned(name).logits(IDS).numpy()


def test_by_default_three_clients_spread_over_the_names_leave_their_adapters(tiny_run):
    clients = sorted(read_json(tiny_run.path / "partition.json")["clients"])
    picked = [clients[0], clients[round((len(clients) - 1) / 2)], clients[-1]]
    assert alone(tiny_run) == [f"{tiny_run.path}:local/{client}" for client in picked]
    names = [str(tiny_run.path), f"{tiny_run.path}:centralised", *alone(tiny_run)]
    assert shepherd.open_run(tiny_run.path).adapters() == [*names, *(f"{tiny_run.path}@{n}" for n in (1, 2))]
    assert "keep_local" not in (tiny_run.path / "config.toml").read_text()


def test_every_kept_arm_measures_as_the_run_did(tiny_run):
    arms = read_json(tiny_run.path / "evaluation/metrics.json")["arms"]
    for name in (f"{tiny_run.path}:centralised", alone(tiny_run)[1]):
        _, _, arm = name.rpartition(":")
        expected = arms["local"][arm.partition("/")[2]] if "/" in arm else arms[arm]
        assert shepherd.evaluate(name)["federated"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert (
        shepherd.load_tuned(alone(tiny_run)[0]).name == f"{tiny_run.path.name}:{alone(tiny_run)[0].rpartition(':')[2]}"
    )
    assert np.abs(logits(alone(tiny_run)[0]) - logits(alone(tiny_run)[2])).max() > 1e-3


def test_a_folder_of_a_client_is_one_that_plain_peft_loads(tiny_run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name = alone(tiny_run)[0]
    folder = tiny_run.path / "arms/local/adapters" / name.rpartition("/")[2]
    base = AutoModelForCausalLM.from_pretrained(tiny_run.config.model.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        got = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(got, logits(name), atol=1e-4)


def test_arms_are_exported_with_a_card_that_says_which(tiny_run, tmp_path):
    client = alone(tiny_run)[0].rpartition("/")[2]
    written = export(f"{tiny_run.path}:local/{client}", "peft", tmp_path / "peft")
    assert written.difference <= 1e-4
    files = {path.name for path in (tmp_path / "peft").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files and "arm.json" not in files
    source = tiny_run.path / "arms/local/adapters" / client
    assert digest(load_adapter(tmp_path / "peft")) == digest(load_adapter(source))
    export(f"{tiny_run.path}:local/{client}", "merged", tmp_path / "merged")
    card = (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    loss = tiny_run.summary["arms"]["local"][client]["loss"]
    assert f"tuned by one client alone, {client}, adapter merged" in card and f"{loss:.4f} after" in card
    assert digest(load_adapter(source)) in card and "in 2 rounds" not in card
    with pytest.raises(UsageError, match="is a checkpoint"):
        export(f"{tiny_run.path}@1", "peft", tmp_path / "round")
    assert not (tmp_path / "round").exists()


def test_a_client_alone_and_the_federation_answer_side_by_side(tiny_run, tmp_path, monkeypatch, capsys):
    name = alone(tiny_run)[0]
    voices = load_voices(tiny_run.path, name)
    assert [voice.name for voice in voices] == ["tiny", f"tiny:{name.rpartition(':')[2]}"]
    assert voices[1].tuned.base is voices[0].tuned.base
    assert load_voices(f"{tiny_run.path}@1")[0].name == load_voices(tiny_run.path, round_number=1)[0].name
    with pytest.raises(UsageError, match="is one adapter, and round 1 another"):
        load_voices(name, round_number=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tiny_run.path.parent)
    shell = Shell(capsys, monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    found = shell("chat", f"tiny:{name.rpartition(':')[2]}", "--max-new-tokens", "2")
    assert found.status == 0, found.err
    found = shell("chat", "tiny:local/nobody")
    assert found.status == 2 and "has no client 'nobody'" in found.err and "kept: runs/tiny:local/" in found.err
    found = shell("chat", "tine:local/nobody")
    assert found.status == 2 and "run not found: tine. Did you mean 'tiny'?" in found.err
    found = shell("evaluate", "tiny:centralised", "--json")
    assert json.loads(found.out)["federated"]["loss"] == pytest.approx(
        tiny_run.summary["arms"]["centralised"]["loss"], rel=1e-6
    )
