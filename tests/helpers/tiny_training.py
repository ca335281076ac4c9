"""Tiny bases, clients' rows and adapters for the laws of training, and how far two results are apart."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from shepherd.model.adapter import fresh_adapter
from shepherd.model.slots import features
from shepherd.types import Tokens

R, ALPHA, VOCABULARY = 4, 8.0, 97
BASES = {
    "llama": (transformers.LlamaConfig, ["q_proj", "v_proj", "down_proj"]),
    "qwen3": (transformers.Qwen3Config, ["q_proj", "o_proj", "gate_proj"]),
    "gemma2": (transformers.Gemma2Config, ["k_proj", "up_proj"]),
    "mistral": (transformers.MistralConfig, ["q_proj", "v_proj"]),
    "gpt2": (transformers.GPT2Config, ["c_attn", "c_proj"]),
    "gpt_neox": (transformers.GPTNeoXConfig, ["query_key_value", "dense"]),
}


def base_model(kind: str = "llama") -> torch.nn.Module:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    extra = {"intermediate_size": 40, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        extra = {"n_positions": 64, "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.5}
    if kind == "gpt_neox":
        extra["hidden_dropout"] = 0.5
    if kind in ("llama", "qwen3", "gemma2", "mistral"):
        extra |= {"num_key_value_heads": 2, "head_dim": 6}
    if kind in ("gemma2", "mistral"):
        extra["sliding_window"] = 5
    if kind == "gemma2":
        extra["pad_token_id"] = 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(BASES[kind][0](**sizes, **extra), dtype=torch.float32)
        for parameter in model.parameters():  # larger than the usual 0.02, so that a wrong gradient shows
            parameter.requires_grad_(False).add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def some_data(clients: int = 3, rows: int = 6, longest: int = 13) -> dict[str, list[Tokens]]:
    rng = np.random.default_rng(5)
    data = {}
    for k in range(clients):
        name = f"client-{k}"
        data[name] = []
        for i in range(rows):
            n = int(rng.integers(4, longest + 1))
            mask = np.arange(n) >= rng.integers(1, n - 1)
            data[name].append(Tokens(f"{name}:{i}", rng.integers(3, VOCABULARY, n).astype(np.int32), mask))
    return data


def targets_of(model: torch.nn.Module, kind: str = "llama") -> dict[str, torch.nn.Module]:
    suffixes = tuple("." + name for name in BASES[kind][1])
    return {name: module for name, module in model.named_modules() if name.endswith(suffixes)}


def adapter_for(modules, seed=3):
    adapter = fresh_adapter({name: features(m) for name, m in modules.items()}, R, ALPHA, seed)
    for pair in adapter.factors.values():  # B away from zero, so that A has a gradient from the first step
        pair.B[:] = np.random.default_rng(9).normal(0, 0.1, pair.B.shape)
    return adapter


def distance(a, b) -> float:
    """‖a − b‖ / ‖b‖ over all factors. Not per element: Adam turns the rounding of a gradient near 0 into a step."""
    flat = [np.concatenate([x[name].ravel() for name in sorted(b)]).astype(np.float64) for x in (a, b)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def same_bytes(a, b) -> bool:
    """Whether two dicts of arrays hold the same names and bits."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
