"""On a GPU: agreement with a CPU, the one-kernel attention, a whole run, quantised bases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model import attention
from shepherd.model.adapter import fresh_adapter, load_adapter
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, pack
from shepherd.model.slots import features
from shepherd.types import ClientFailure, ClientModel, Tokens, TrainTask, Work

pytestmark = pytest.mark.gpu
NAMES = ("q_proj", "v_proj", "down_proj")


def some_data(clients: int = 3, rows: int = 4) -> dict[str, list[Tokens]]:
    rng = np.random.default_rng(5)
    data = {}
    for k in range(clients):
        lengths = rng.integers(6, 40, rows)
        data[f"client-{k}"] = [
            Tokens(f"{k}:{i}", rng.integers(3, 300, n).astype(np.int32), np.arange(n) >= n // 2)
            for i, n in enumerate(lengths)
        ]
    return data


def updates(folder, device: str, data, dtype: str = "float32", quantize: str = "none", dropout: float = 0.0) -> dict:
    base = load_base(str(folder), device=device, dtype=dtype, quantize=quantize)
    modules = {n: m for n, m in base.model.named_modules() if n.endswith(NAMES)}
    adapter = fresh_adapter({n: features(m) for n, m in modules.items()}, 4, 8.0, 3)
    for pair in adapter.factors.values():
        pair.B[:] = np.random.default_rng(9).normal(0, 0.05, pair.B.shape)
    work = {client: Work(client, 0, 4, (0.1, 0.05)) for client in data}
    task = TrainTask(1, dict.fromkeys(work, ClientModel(adapter)), 7, work)
    settings = LocalTraining(optimizer="sgd", dropout=dropout, tokens_per_pass=256)
    make = lambda: CohortLora(modules, dropout=dropout, device=base.device)  # noqa: E731
    return {u.client: u for u in train(task, {}, TrainingHost(PackedModel(base.model), make, settings, data))}


def distance(a, b) -> float:
    x, y = (np.concatenate([u.delta[name].ravel() for name in sorted(b.delta)]).astype(np.float64) for u in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2"])
def test_training_in_float32_on_a_gpu_matches_a_cpu(kind, dropout, model_folder):
    data = some_data()
    there, here = (updates(model_folder(kind), device, data, dropout=dropout) for device in ("cuda", "cpu"))
    for client in data:
        assert there[client].metrics["loss"] == pytest.approx(here[client].metrics["loss"], rel=1e-5)
        assert distance(there[client], here[client]) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2"])
def test_training_in_bfloat16_on_a_gpu_is_close_to_float32_on_a_cpu(kind, model_folder):
    data = some_data()
    there, here = updates(model_folder(kind), "cuda", data, "bfloat16"), updates(model_folder(kind), "cpu", data)
    for client in data:
        assert there[client].metrics["loss"] == pytest.approx(here[client].metrics["loss"], rel=0.02)
        assert distance(there[client], here[client]) < 0.2


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_one_kernel_for_all_sequences_equals_the_loop(kind, model_folder, monkeypatch):
    packed = PackedModel(load_base(str(model_folder(kind)), device="cuda", dtype="bfloat16").model)
    batch = pack([Row(0, row) for row in some_data(1, 6)["client-0"]]).to(packed.device)
    calls = []
    whole = attention._varlen
    monkeypatch.setattr(attention, "_varlen", lambda *a: calls.append(1) or whole(*a))
    with packed.packing():
        one, _ = packed.token_losses(batch)
        assert calls, "the kernel was not used"
        monkeypatch.setattr(attention, "_one_kernel", lambda *a: False)
        loop, _ = packed.token_losses(batch)
    assert (one - loop).abs().max() < 0.05


def test_a_client_that_diverges_on_a_gpu_does_not_affect_the_others(model_folder):
    data = some_data()
    healthy = updates(model_folder(), "cuda", data)
    base = load_base(str(model_folder()), device="cuda", dtype="float32")
    modules = {n: m for n, m in base.model.named_modules() if n.endswith(NAMES)}
    adapter = fresh_adapter({n: features(m) for n, m in modules.items()}, 4, 8.0, 3)
    for pair in adapter.factors.values():
        pair.B[:] = np.random.default_rng(9).normal(0, 0.05, pair.B.shape)
    broken = fresh_adapter({n: features(m) for n, m in modules.items()}, 4, 8.0, 3)
    for pair in broken.factors.values():
        pair.B[:] = np.nan
    work = {client: Work(client, 0, 4, (0.1, 0.05)) for client in data}
    views = {client: ClientModel(broken if client == "client-1" else adapter) for client in data}
    make = lambda: CohortLora(modules, device="cuda")  # noqa: E731
    settings = LocalTraining(optimizer="sgd", tokens_per_pass=256)
    answers = {
        a.client: a
        for a in train(TrainTask(1, views, 7, work), {}, TrainingHost(PackedModel(base.model), make, settings, data))
    }
    assert isinstance(answers["client-1"], ClientFailure) and answers["client-1"].code == "diverged"
    for client in ("client-0", "client-2"):
        assert distance(answers[client], healthy[client]) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_on_a_gpu_and_the_same_bytes_when_repeated(dtype, run_small):
    first = run_small("model.device=cuda", f"model.dtype={dtype}")
    again = run_small("model.device=cuda", f"model.dtype={dtype}")
    assert first.summary["model"]["device"].startswith("cuda")
    assert first.summary["adapter_sha256"] == again.summary["adapter_sha256"]
    assert first.summary["arms"]["federated"]["loss"] < first.summary["arms"]["base"]["loss"]
    assert load_adapter(first.path / "adapter").num_parameters == first.summary["adapter"]["parameters"]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_training_on_a_quantised_base_has_the_direction_of_full_precision(bits, model_folder):
    pytest.importorskip("bitsandbytes")
    warnings.filterwarnings("ignore", message="inner dimension")  # so narrow a model has no fast kernel
    data = some_data()
    whole = updates(model_folder(), "cuda", data, "bfloat16")
    rough = updates(model_folder(), "cuda", data, "bfloat16", quantize=bits)
    for client in data:
        x, y = (np.concatenate([u[client].delta[n].ravel() for n in sorted(u[client].delta)]) for u in (whole, rough))
        assert np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) > 0.5
    torch.cuda.empty_cache()
