"""A federation for the promises of engines: a random Llama of two layers, three clients with rows of integers, a task.

No file is read or written, and no tokenizer is needed. Importing this module loads PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost
from shepherd.engines.local import LocalEngine
from shepherd.model.adapter import fresh_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.slots import features
from shepherd.types import ClientId, ClientModel, GlobalModel, Objective, Tokens, TrainTask, Work

VOCABULARY, RATES, SEED = 97, (3e-3, 2e-3), 7
SPOILT = "zz-spoilt"
"""A client whose rows cannot be trained on: a token is beyond the vocabulary."""


@dataclass(frozen=True)
class TinyFederation:
    """What an engine is held to: the host with the rows of all clients, a global model, and a round's task.

    The task is for all clients but SPOILT, whose rows the host has too. held_out: rows of the server. tokenizer: the
    digest that messages have to name; "" for any.
    """

    host: TrainingHost
    model: GlobalModel
    task: TrainTask
    held_out: Sequence[Tokens]
    tokenizer: str = ""


def tiny_federation() -> TinyFederation:
    """Three clients, two local steps of two rows each under SCAFFOLD, and one client that fails."""
    data = {f"client-{k}": _rows(f"client-{k}", 6, k) for k in range(3)}
    spoilt = [Tokens(row.id, np.full_like(row.input_ids, 10**6), row.loss_mask) for row in data["client-0"]]
    host = tiny_host({**data, SPOILT: spoilt})
    sizes = {name: features(layer) for name, layer in host.make_lora().modules.items()}
    adapter = fresh_adapter(sizes, 4, 8.0, SEED)
    rng = np.random.default_rng(9)
    for pair in adapter.factors.values():  # B away from zero, so that A has a gradient from the first step
        pair.B[:] = rng.normal(0, 0.1, pair.B.shape)
    work = {client: Work(client, 0, 4, RATES) for client in data}
    view = ClientModel(adapter)
    task = TrainTask(1, dict.fromkeys(work, view), SEED, work, objective=Objective(scaffold=True))
    return TinyFederation(host, GlobalModel(adapter), task, _rows("held out", 5, 9))


def tiny_host(data: Mapping[ClientId, Sequence[Tokens]]) -> TrainingHost:
    """The same random base in every process, with two of its layers adapted, for clients with these rows."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        for parameter in model.parameters():  # larger than the usual 0.02, so that a wrong gradient shows
            parameter.requires_grad_(False).add_(0.1 * torch.randn_like(parameter))
    modules = {name: layer for name, layer in model.eval().named_modules() if name.endswith(("q_proj", "down_proj"))}
    settings = LocalTraining(tokens_per_pass=64, clients_at_once=2)
    return TrainingHost(PackedModel(model), lambda: CohortLora(modules), settings, data)


def tiny_worker(data: Mapping[ClientId, Sequence[Tokens]]) -> tuple[LocalEngine, str, str]:
    """The engine of a worker process for some of the clients, as `engines.workers.Workers` builds it; no digests."""
    torch.set_num_threads(1)
    return LocalEngine(tiny_host(data)), "", ""


def _rows(name: str, count: int, seed: int) -> list[Tokens]:
    rng = np.random.default_rng([SEED, seed])
    rows = []
    for i in range(count):
        length = int(rng.integers(4, 14))
        mask = np.arange(length) >= rng.integers(1, length - 1)
        rows.append(Tokens(f"{name}:{i}", rng.integers(3, VOCABULARY, length).astype(np.int32), mask))
    return rows
