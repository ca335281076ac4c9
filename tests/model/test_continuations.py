"""Losses of continuations on a cache, and the layers that read embeddings alone."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.evaluation.losses import row_losses
from shepherd.model.base import load_base
from shepherd.model.continuations import continuation_losses
from shepherd.model.first_layers import token_inputs
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.types import GlobalModel, Tokens
from tiny import random_adapters


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_continuations_have_the_losses_of_whole_rows(kind, model_folder):
    base = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
    layers = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    lora = CohortLora(layers).load(GlobalModel(random_adapters(layers, 1)[0]))
    rng = np.random.default_rng(0)
    prompt, rest = rng.integers(3, 380, 20), [rng.integers(3, 380, n) for n in (1, 3, 4, 2, 4)]
    rows = [
        Tokens(str(i), np.concatenate([prompt, one]).astype(np.int32), np.arange(20 + len(one)) >= 20)
        for i, one in enumerate(rest)
    ]
    packed = PackedModel(base.model)
    losses = []
    for slot in (None, lora):
        found = continuation_losses(base.model, prompt.tolist(), [one.tolist() for one in rest], slot, batch_size=3)
        assert found == pytest.approx(row_losses(packed, rows, slot)[0].nll, rel=1e-5)
        losses.append(found)
    assert abs(losses[0] - losses[1]).min() > 1e-3, "the adapter changes them"


def test_the_inputs_of_the_first_attention_are_a_normed_embedding_of_each_token(model_folder):
    base = load_base(str(model_folder("llama")), device="cpu", dtype="float32")
    layers = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    (found,) = token_inputs(base.model, layers)
    assert found.layers == tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
    embedded = base.model.get_input_embeddings().weight
    expected = base.model.model.layers[0].input_layernorm(embedded).detach().numpy()
    assert found.inputs == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind, groups", [("gpt_neox", 2), ("gpt2", 0), ("phi3", 1)])
def test_layers_beside_the_attention_count_and_embeddings_with_positions_do_not(kind, groups, model_folder):
    base = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
    layers = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    assert len(token_inputs(base.model, layers)) == groups
