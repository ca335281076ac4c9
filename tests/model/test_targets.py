"""Target modules of an adapter: selection by name, the covered share of the weights, and names without a match."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from shepherd.errors import ModelError, UsageError
from shepherd.model.base import load_base
from shepherd.model.targets import is_linear, linear_names, pick_targets, reach
from tiny import KINDS, tiny_model

MLP = ["gate_proj", "up_proj", "down_proj"]
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]
LINEARS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
}
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


# Selection by name


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_selects_every_linear_layer_of_the_blocks_but_not_the_head(kind, tmp_path):
    model = load_base(str(tiny_model(kind, tmp_path)), device="cpu", dtype="float32").model
    head = model.get_output_embeddings()
    everything = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    assert pick_targets(model, "all-linear") == tuple(everything) == tuple(linear_names(model))
    assert sorted({name.rsplit(".", 1)[-1] for name in everything}) == sorted(LINEARS.get(kind, SPLIT))


@pytest.fixture(scope="module")
def model(llama):
    return load_base(str(llama), device="cpu", dtype="float32").model


def test_targets_match_by_the_end_of_their_name_and_keep_the_order_of_the_model(model):
    assert pick_targets(model, ["mlp.up_proj", "q_proj"]) == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    )
    assert pick_targets(model, "layers.1.self_attn.q_proj") == ("model.layers.1.self_attn.q_proj",)
    assert pick_targets(model, ["model.layers.0.mlp.up_proj"] * 2) == ("model.layers.0.mlp.up_proj",)


@pytest.mark.parametrize("target", ["query_proj", "proj", "lm_head", "embed_tokens", "mlp", "xq_proj"])
def test_an_unknown_target_lists_the_linear_names(model, target):
    with pytest.raises(ModelError, match=f"no linear layer '{target}'") as caught:
        pick_targets(model, ["q_proj", target])
    assert caught.value.hint == f"its linear layers: {', '.join(SPLIT)}" and caught.value.exit_code == 4


def test_a_misspelt_target_gets_a_suggestion_and_an_empty_list_is_refused(model):
    with pytest.raises(ModelError, match="Did you mean 'q_proj'"):
        pick_targets(model, ["qproj"])
    with pytest.raises(UsageError, match="empty"):
        pick_targets(model, [])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
        self.q = nn.Linear(2, 2)


class Seeing(nn.Module):
    """A vision tower with more blocks than the decoder, whose blocks hold more experts than there are blocks."""

    def __init__(self):
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
        self.text = nn.Module()
        self.text.norms = nn.ModuleList([nn.LayerNorm(2)])
        self.text.layers = nn.ModuleList(Block() for _ in range(3))

    def get_decoder(self):
        return self.text


def test_blocks_are_those_of_the_decoder_not_of_a_vision_tower_or_a_list_of_experts():
    names = linear_names(Seeing())
    assert len(names) == 30 and names[0] == "text.layers.0.experts.0" and names[-1] == "text.layers.2.q"


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="Linear has no list of blocks"):
        linear_names(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="has no linear layer"):
        pick_targets(nn.Sequential(nn.ModuleList([nn.ReLU()])), "all-linear")


# Covered share


def made(kind):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(MODELS[kind]())


def reached(kind, targets="all-linear"):
    model = made(kind)
    return reach(model, targets, pick_targets(model, targets))


def test_all_linear_covers_the_blocks_of_a_dense_model_except_norms_without_a_note():
    found = reached("llama")
    # Of a block: q, o 2 × 32·32, k, v 2 × 32·16, three matrices of the MLP 3 × 32·48 = 7,680, and two norms of 32.
    assert found.share == 7680 / (7680 + 64) and found.notes == ()


def test_the_covered_share_of_a_mixture_of_experts_is_a_note():
    found = reached("mixtral")
    # Of a block: q, k, v, o 3,072. Not: 4 experts of 3 · 32 · 64 = 24,576, the router 4 · 32 and two norms of 32.
    assert found.share == pytest.approx(3072 / (3072 + 24576 + 128 + 64))
    (note,) = found.notes
    assert "all-linear adapts 11 % of the weights of the model's blocks" in note
    assert "mlp.experts.gate_up_proj, mlp.experts.down_proj (88 % are experts'" in note


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_experts_of_every_family_are_excluded_and_named(kind):
    (note,) = reached(kind).notes
    assert "mlp.experts.gate_up_proj" in note and "mlp.experts.down_proj" in note
    assert not [name for name in linear_names(made(kind)) if ".experts." in name]


@pytest.mark.parametrize("target", ["experts.gate_up_proj", "gate_up_proj", "experts", "mlp.experts.down_proj"])
def test_experts_matrices_as_targets_are_refused_by_name(target):
    with pytest.raises(ModelError, match=r"experts' matrices of that name \(model\.layers\.0\.mlp\.experts") as caught:
        pick_targets(made("mixtral"), ["q_proj", target])
    assert repr(target) in caught.value.message and "routed" in caught.value.message
    assert caught.value.hint == "its linear layers: q_proj, k_proj, v_proj, o_proj"


def test_a_target_shared_by_experts_and_a_layer_has_a_note_on_what_is_adapted():
    notes = reached("qwen2_moe", ["down_proj"]).notes
    assert notes == (
        "lora.targets: 'down_proj' adapts mlp.shared_expert.down_proj, not the experts' matrices of that name "
        "(mlp.experts.down_proj)",
    )
    assert reached("qwen2_moe", ["shared_expert.down_proj"]).notes == ()


def test_a_target_found_in_only_some_blocks_has_a_note_with_their_number():
    # The first block of DeepSeek is dense: mlp.up_proj is there alone.
    assert "lora.targets: 'mlp.up_proj' is in 1 of the 2 blocks" in reached("deepseek_v3", ["mlp.up_proj"]).notes
    assert reached("llama", ["up_proj", "q_proj"]).notes == ()
    assert reached("llama", ["layers.1.mlp.up_proj"]).notes == ()  # selected by number


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("lm_head", "lm_head lies outside of them"),
        ("embed_tokens", "model.embed_tokens lies outside of them"),
        ("mlp", "a group of layers of that name"),
        ("qproj", "Did you mean 'q_proj'"),
    ],
)
def test_a_target_that_is_not_a_linear_layer_is_refused_with_what_it_is(target, what):
    with pytest.raises(ModelError) as caught:
        pick_targets(made("llama"), ["q_proj", target])
    assert f"no linear layer {target!r}" in caught.value.message and what in caught.value.message
