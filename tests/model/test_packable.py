"""Models that mix packed sequences are refused; other families, checkpointing and windows."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import torch
import transformers

from packed_rows import reference, some_rows
from shepherd.errors import ModelError
from shepherd.model.base import Base, load_base
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, pack
from shepherd.model.targets import pick_targets
from shepherd.types import Tokens
from tiny import random_adapters


@pytest.fixture(scope="module")
def bases(model_folder):
    loaded: dict[str, Base] = {}

    def base(kind: str) -> Base:
        if kind not in loaded:
            loaded[kind] = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
        return loaded[kind]

    return base


SMALL = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LEAKS = {
    "BloomForCausalLM": lambda: transformers.BloomConfig(**SMALL, hidden_size=16, n_layer=1, n_head=2),
    "MambaForCausalLM": lambda: transformers.MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=1, state_size=4),
    "MptForCausalLM": lambda: transformers.MptConfig(**SMALL, d_model=16, n_heads=2, n_layers=1),
    "FalconForCausalLM": lambda: transformers.FalconConfig(
        **SMALL, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True
    ),
    "RecurrentGemmaForCausalLM": lambda: transformers.RecurrentGemmaConfig(
        **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, lru_width=16,
        attention_window_size=8, block_types=["recurrent", "attention"], head_dim=8,
    ),
    "BertLMHeadModel": lambda: transformers.BertConfig(
        **SMALL, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    ),
}  # fmt: skip
FAMILY = dict(
    **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
    max_position_embeddings=128,
)  # fmt: skip
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=12, n_group=1, topk_group=1)
FAMILIES = {
    "scaled logits": lambda: transformers.CohereConfig(**FAMILY, logit_scale=0.3),
    "divided logits, multiplied residuals": lambda: transformers.GraniteConfig(
        **FAMILY, logits_scaling=3.0, residual_multiplier=0.5, attention_multiplier=0.2, embedding_multiplier=2.0
    ),
    "capped logits": lambda: transformers.Gemma2Config(
        **FAMILY, head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=1.0, sliding_window=8
    ),
    "attention with biases": lambda: transformers.LlamaConfig(**FAMILY, attention_bias=True, mlp_bias=True),
    "dropout in the config": lambda: transformers.LlamaConfig(**FAMILY, attention_dropout=0.5),
    "learned positions": lambda: transformers.OPTConfig(
        **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, max_position_embeddings=128,
        word_embed_proj_dim=16, dropout=0.5,
    ),
    "attention and MLP side by side": lambda: transformers.PhiConfig(**FAMILY, partial_rotary_factor=0.5),
    "experts": lambda: transformers.MixtralConfig(**FAMILY, num_local_experts=4, num_experts_per_tok=2),
    "experts and latent attention": lambda: transformers.DeepseekV3Config(
        **FAMILY, **EXPERTS, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "positions in some layers only": lambda: transformers.SmolLM3Config(**FAMILY, no_rope_layers=[1, 0]),
    "a hybrid without recurrent layers": lambda: transformers.GraniteMoeHybridConfig(
        **FAMILY, num_local_experts=0, num_experts_per_tok=0, layer_types=["attention"] * 2, mamba_n_heads=4,
        mamba_d_head=8, shared_intermediate_size=24,
    ),
    "a causal decoder of BERT's": lambda: transformers.BertConfig(
        **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, is_decoder=True,
    ),
}  # fmt: skip


def made(config, seed=1):
    """A random model of this config without weights of zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.data.add_(0.1 * noise)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_packed_losses_of_other_model_families_are_those_of_separate_passes(family):
    model = made(FAMILIES[family]())
    rows = some_rows((23, 2, 9, 60))
    for row in rows:
        row.tokens.input_ids[:] = row.tokens.input_ids % 90 + 3
    packed = PackedModel(model)
    with packed.packing():
        losses, _ = packed.token_losses(pack(rows))
        sums = packed.loss_sums(pack(rows))
    expected = np.concatenate([reference(model, row)[0] for row in rows])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert sums.sum().item() == pytest.approx(expected.sum(), rel=1e-4)


NOISY = {
    # In train mode: layers that are left out, dropout in the layer itself, experts that are drawn, jitter of a router.
    "OPT": lambda: transformers.OPTConfig(
        **SMALL, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, max_position_embeddings=128,
        word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
    ),
    "BioGpt": lambda: transformers.BioGptConfig(
        **SMALL, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, layerdrop=0.5,
        hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, activation_dropout=0.5, max_position_embeddings=128,
    ),
    "Phimoe": lambda: transformers.PhimoeConfig(
        **FAMILY, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.3, input_jitter_noise=0.3,
        hidden_dropout=0.5,
    ),
    "Mixtral": lambda: transformers.MixtralConfig(
        **FAMILY, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.9
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOISY)
@pytest.mark.filterwarnings("ignore")
def test_checkpointing_enables_no_noise_in_the_frozen_base(kind, monkeypatch):
    model = made(NOISY[kind]())
    layer = pick_targets(model, "all-linear")[0]
    lora = CohortLora({layer: model.get_submodule(layer)}).hold(
        random_adapters({layer: model.get_submodule(layer)}, 1), trainable=True
    )
    packed, batch = PackedModel(model), pack(some_rows((23, 9), targets=1.0))
    batch.input_ids.remainder_(99)
    batch.labels.remainder_(99)
    settings, found, calls = dict(vars(model.config)), [], []
    own = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or own(*a, **k))
    for context in (contextlib.nullcontext(), checkpointing(model)):
        lora.segments = batch.segments
        lora.held[0].gradient.zero_()
        with packed.packing(), lora.attached(), context:
            sums = packed.loss_sums(batch)
            sums.sum().backward()
        found.append((sums.detach(), lora.held[0].gradient.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert calls or "_gradient_checkpointing_func" not in dir(model)
    assert not any(module.training for module in model.modules()) and dict(vars(model.config)) == settings


OWN_WAYS = {
    # What each would silently lose: a mask that attention computes, positions that the model counts itself, a window
    # defined by the mask alone, a convolution across the boundary, a state.
    "a mask or bias of its own": lambda: transformers.DogeConfig(**FAMILY, head_dim=8),
    "positions that it counts itself": lambda: transformers.BlenderbotSmallConfig(
        **SMALL, d_model=16, decoder_layers=2, encoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24,
        encoder_attention_heads=2, encoder_ffn_dim=24, max_position_embeddings=128, is_decoder=True,
        is_encoder_decoder=False,
    ),
    "a window of 8 tokens": lambda: transformers.PhimoeConfig(
        **FAMILY, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "keep packed sequences apart": lambda: transformers.Lfm2Config(
        **FAMILY, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "recurrent layers": lambda: transformers.Mamba2Config(
        **SMALL, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1
    ),
    "attention sinks": lambda: transformers.GptOssConfig(
        **FAMILY, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", OWN_WAYS)
@pytest.mark.filterwarnings("ignore")
def test_a_model_with_attention_features_that_a_packed_pass_omits_is_refused_with_the_feature(reason):
    model = made(OWN_WAYS[reason]())
    with pytest.raises(ModelError, match=reason) as caught:
        PackedModel(model)
    assert type(model).__name__ in caught.value.message and "Llama" in caught.value.hint


def test_a_window_beyond_the_context_length_is_ignored():
    PackedModel(
        made(transformers.PhimoeConfig(**FAMILY, num_local_experts=4, num_experts_per_tok=2, sliding_window=128))
    )


def test_an_unused_or_routed_layer_cannot_carry_an_adapter(bases):
    packed = PackedModel(bases("llama").model)
    layers = {name: packed.model.get_submodule(name) for name in pick_targets(packed.model, "all-linear")}
    packed.check_called(layers)
    with pytest.raises(ModelError, match=r"1 adapted layer not used when text .* tower\.up"):
        packed.check_called({**layers, "tower.up": torch.nn.Linear(2, 2)})

    class Routed(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.expert = layer

        def forward(self, x):
            return torch.cat([self.expert(x[:, :3]), torch.zeros_like(x[:, 3:, :1]).expand(-1, -1, 48)], 1)

    mlp = packed.model.model.layers[0].mlp
    own, mlp.up_proj = mlp.up_proj, Routed(mlp.up_proj)
    try:
        with pytest.raises(ModelError, match="1 adapted layer met by a part of the tokens"):
            packed.check_called(layers)
    finally:
        mlp.up_proj = own


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_mixes_packed_sequences_is_refused_by_name(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(LEAKS[name]()).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert type(model).__name__ == name
    before = model.config._attn_implementation
    with pytest.raises(ModelError) as caught:
        PackedModel(model)
    assert name in caught.value.message and re.search("packed|both sides", caught.value.message)
    assert model.config._attn_implementation == before


def test_chunked_attention_is_refused():
    config = transformers.LlamaConfig(**SMALL, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.attention_chunk_size = 8
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="attention_chunk_size = 8"):
        PackedModel(model)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_pass_that_begins_or_ends_with_the_pad_token_causes_no_warning(bases, kind, monkeypatch):
    base, told = bases(kind), []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning_once", told.append)
    ids = np.array([0, 5, 6, 0], np.int32)
    batch = pack([Row(0, Tokens("x", ids, np.ones(4, bool)))])
    packed = PackedModel(base.model)
    with packed.packing(), torch.no_grad():
        packed.loss_sums(batch)
    assert told == [] and base.model.config.pad_token_id == 0
