"""Which share of a model an adapter reaches, and what names that reach nothing, or a part, mean instead."""

from __future__ import annotations

import pytest
import torch
import transformers

from shepherd.errors import ModelError
from shepherd.model.targets import linear_names, pick_targets, reach

SMALL = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, intermediate_size=48),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **SMALL, **MOE, intermediate_size=48, shared_expert_intermediate_size=24
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **MOE, intermediate_size=48, head_dim=8),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SMALL, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4}, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip


def made(kind):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(MODELS[kind]())


def reached(kind, targets="all-linear"):
    model = made(kind)
    return reach(model, targets, pick_targets(model, targets))


def test_all_linear_reaches_all_of_a_dense_models_blocks_but_its_norms_and_says_nothing():
    found = reached("llama")
    # Of a block: q, o 2 × 32·32, k, v 2 × 32·16, three matrices of the MLP 3 × 32·48 = 7,680, and two norms of 32.
    assert found.share == 7680 / (7680 + 64) and found.notes == ()


def test_of_a_mixture_of_experts_the_share_that_is_reached_is_said():
    found = reached("mixtral")
    # Of a block: q, k, v, o 3,072. Not: 4 experts of 3 · 32 · 64 = 24,576, the router 4 · 32 and two norms of 32.
    assert found.share == pytest.approx(3072 / (3072 + 24576 + 128 + 64))
    (note,) = found.notes
    assert "all-linear adapts 11 % of the weights of the model's blocks" in note
    assert "mlp.experts.gate_up_proj, mlp.experts.down_proj (88 % are experts'" in note


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_experts_of_every_family_are_left_out_and_named(kind):
    (note,) = reached(kind).notes
    assert "mlp.experts.gate_up_proj" in note and "mlp.experts.down_proj" in note
    assert not [name for name in linear_names(made(kind)) if ".experts." in name]


@pytest.mark.parametrize("target", ["experts.gate_up_proj", "gate_up_proj", "experts", "mlp.experts.down_proj"])
def test_experts_matrices_as_targets_are_refused_by_name(target):
    with pytest.raises(ModelError, match=r"experts' matrices of that name \(model\.layers\.0\.mlp\.experts") as caught:
        pick_targets(made("mixtral"), ["q_proj", target])
    assert repr(target) in caught.value.message and "routed" in caught.value.message
    assert caught.value.hint == "its linear layers: q_proj, k_proj, v_proj, o_proj"


def test_a_name_that_experts_share_with_a_layer_says_which_of_them_it_adapts():
    notes = reached("qwen2_moe", ["down_proj"]).notes
    assert notes == (
        "lora.targets: 'down_proj' adapts mlp.shared_expert.down_proj, not the experts' matrices of that name "
        "(mlp.experts.down_proj)",
    )
    assert reached("qwen2_moe", ["shared_expert.down_proj"]).notes == ()


def test_a_name_that_is_only_in_some_blocks_says_in_how_many():
    # The first block of DeepSeek is dense: mlp.up_proj is there alone.
    assert "lora.targets: 'mlp.up_proj' is in 1 of the 2 blocks" in reached("deepseek_v3", ["mlp.up_proj"]).notes
    assert reached("llama", ["up_proj", "q_proj"]).notes == ()
    assert reached("llama", ["layers.1.mlp.up_proj"]).notes == ()  # asked for by number


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("lm_head", "lm_head lies outside of them"),
        ("embed_tokens", "model.embed_tokens lies outside of them"),
        ("mlp", "a group of layers of that name"),
        ("qproj", "Did you mean 'q_proj'"),
    ],
)
def test_a_name_of_something_else_says_what_that_is(target, what):
    with pytest.raises(ModelError) as caught:
        pick_targets(made("llama"), ["q_proj", target])
    assert f"no linear layer {target!r}" in caught.value.message and what in caught.value.message
