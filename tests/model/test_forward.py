"""A packed pass is what each sequence gives alone; a model that cannot do that is refused by name."""

from __future__ import annotations

import contextlib
import re
import types

import numpy as np
import pytest
import torch
import transformers

from shepherd.errors import ModelError
from shepherd.model.base import Base, load_base
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import HEAD_ROWS, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack
from shepherd.model.slots import NOBODY, Segment
from shepherd.model.targets import pick_targets
from shepherd.types import Tokens
from tiny import KINDS, random_adapters, tiny_model

LENGTHS = (23, 2, 9, 17, 40)  # the windows of gemma2, gemma3 and mistral here are 8 tokens
FUSED_HEADS = sorted(set(KINDS) - {"gemma2"})  # gemma2 caps its logits, so its head is more than a product


@pytest.fixture(scope="module")
def bases(model_folder):
    loaded: dict[str, Base] = {}

    def base(kind: str) -> Base:
        if kind not in loaded:
            loaded[kind] = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
        return loaded[kind]

    return base


def some_rows(lengths=LENGTHS, slots=None, targets=0.6, seed=0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(lengths):
        mask = rng.random(n) < targets
        mask[-1] = True
        ids = rng.integers(3, 380, n).astype(np.int32)
        rows.append(Row(slots[i] if slots else 0, Tokens(str(i), ids, mask)))
    return rows


def reference(model, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The losses of a row's targets and whether each was the likeliest, by the model as its authors meant it."""
    ids = torch.from_numpy(row.tokens.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    targets = np.flatnonzero(row.tokens.loss_mask[1:]) + 1
    losses = -torch.log_softmax(logits, -1)[targets - 1, ids[0, targets]]
    return losses.numpy(), (logits[targets - 1].argmax(-1) == ids[0, targets]).numpy()


# Laying out


def test_rows_are_laid_end_to_end_and_only_targets_are_predicted():
    a = Tokens("a", np.array([5, 6, 7], np.int32), np.array([True, False, True]))  # position 0 is never a target
    b = Tokens("b", np.array([8, 9], np.int32), np.array([False, True]))
    c = Tokens("c", np.array([4, 4, 3, 2], np.int32), np.array([False, False, True, True]))
    batch = pack([Row(2, a, 11), Row(2, b, 12), Row(0, c, 13)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 4, 3, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch.bounds == (0, 3, 5, 9)
    assert batch.predictors.tolist() == [1, 3, 6, 7] and batch.labels.tolist() == [7, 9, 3, 2]
    assert batch.sequence_of.tolist() == [0, 1, 2, 2]
    assert batch.segments == (Segment(2, 0, 5), Segment(0, 5, 9))
    assert batch.target_segments == (Segment(2, 0, 2), Segment(0, 2, 4))
    assert batch.seeds == (11, 12, 13)


def test_a_sequence_without_targets_has_no_target_segment_and_moves_no_other():
    mute = Tokens("m", np.array([5, 6, 7], np.int32), np.zeros(3, bool))
    heard = Tokens("h", np.array([8, 9], np.int32), np.array([False, True]))
    batch = pack([Row(0, mute), Row(1, heard)])
    assert batch.target_segments == (Segment(1, 0, 1),) and batch.sequence_of.tolist() == [1]


@pytest.mark.parametrize("limit", [1, 10, 40, 41, 91, 1000])
def test_a_cut_keeps_every_row_in_order_and_no_pass_is_longer_than_asked_unless_one_row_is(limit):
    rows = some_rows()
    parts = list(cut(rows, limit))
    assert [row for part in parts for row in part] == rows
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        total = sum(len(row.tokens.input_ids) for row in part)
        assert total <= limit or len(part) == 1
        if following:  # not shorter than needed either
            assert total + len(following[0].tokens.input_ids) > limit


def test_a_cut_never_divides_a_slots_block_so_a_block_depends_on_its_own_slot_alone():
    lengths = (6, 6, 6, 3, 3, 8, 2)
    rows = some_rows(lengths, slots=(0, 0, 0, 1, 1, 2, 2))
    parts = [[len(r.tokens.input_ids) for r in part] for part in cut(rows, 14)]
    assert parts == [[6, 6], [6, 3, 3], [8, 2]]
    assert [[len(r.tokens.input_ids) for r in part] for part in cut(rows, 11)] == [[6], [6], [6], [3, 3], [8, 2]]
    for limit in (1, 9, 14, 30, 100):
        together = list(cut(rows, limit))
        for slot in range(3):
            alone = list(cut([row for row in rows if row.slot == slot], limit))
            assert [b for p in together if (b := [row for row in p if row.slot == slot])] == alone


def test_filling_belongs_to_nobody_and_changes_no_loss(bases):
    rows = some_rows()
    plain, filled = pack(rows), pack(rows, 64)
    assert (plain.bounds[-1], filled.bounds[-1], filled.input_ids.shape[1]) == (91, 128, 128)
    assert filled.segments == (*plain.segments, Segment(NOBODY, 91, 128))
    assert filled.target_segments == plain.target_segments and filled.seeds == plain.seeds
    assert pack(rows[:1], 23).segments == pack(rows[:1]).segments  # nothing to fill
    packed = PackedModel(bases("llama").model)
    with packed.packing():
        torch.testing.assert_close(packed.token_losses(filled), packed.token_losses(plain))


# Equal to each alone


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_packed_sequences_have_the_losses_that_each_has_alone(kind, bases):
    model = bases(kind).model
    rows = some_rows()
    alone = [reference(model, row) for row in rows]
    packed = PackedModel(model)
    with packed.packing():
        losses, hits = packed.token_losses(pack(rows))
        shuffled, _ = packed.token_losses(pack(rows[::-1]))
    np.testing.assert_allclose(losses.numpy(), np.concatenate([a[0] for a in alone]), rtol=1e-4, atol=1e-4)
    assert (hits.numpy() == np.concatenate([a[1] for a in alone])).mean() >= 0.99  # ties within rounding
    np.testing.assert_allclose(
        shuffled.numpy(), np.concatenate([a[0] for a in alone[::-1]]), rtol=1e-4, atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "mistral"])
def test_the_window_is_in_force_inside_a_packed_sequence(kind, bases):
    # A token out of reach of every window and of every layer's reach changes nothing; in full attention it does.
    model = bases(kind).model
    row = some_rows((40,))[0]
    other = Tokens("x", row.tokens.input_ids.copy(), row.tokens.loss_mask)
    other.input_ids[0] = (other.input_ids[0] + 1) % 380
    packed = PackedModel(model)
    with packed.packing():
        a, b = (packed.token_losses(pack([Row(0, t)]))[0][-1].item() for t in (row.tokens, other))
    reaches = "full_attention" in (getattr(model.config, "layer_types", None) or ())
    assert (a != b) == reaches


def test_capped_scores_are_capped_in_a_packed_sequence(tmp_path):
    rows, losses = some_rows(), []
    for cap in (0.05, 50.0):  # scores of the tiny model lie below 50
        folder = tiny_model("gemma2", tmp_path / str(cap), attn_logit_softcapping=cap)
        model = load_base(str(folder), device="cpu", dtype="float32").model
        model.set_attn_implementation("eager")  # the only one of the library's own that caps
        packed = PackedModel(model)
        with packed.packing():
            got, _ = packed.token_losses(pack(rows))
        expected = np.concatenate([reference(model, row)[0] for row in rows])
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)
        losses.append(expected)
    assert np.abs(losses[0] - losses[1]).max() > 0.01


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3"])
def test_every_client_in_a_pass_meets_its_own_adapter_only(kind, bases):
    base = bases(kind)
    modules = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    adapters = random_adapters(modules, 3)
    lora = CohortLora(modules).hold(adapters)
    rows = some_rows(slots=(0, 0, 1, 2, 2))
    packed = PackedModel(base.model)
    with packed.packing(), lora.attached():
        batch = pack(rows)
        lora.segments = batch.segments
        together = packed.loss_sums(batch)
    for slot, total in zip(range(3), together.tolist(), strict=True):
        with CohortLora(modules).hold(adapters[slot : slot + 1]).attached():
            expected = sum(reference(base.model, row)[0].sum() for row in rows if row.slot == slot)
        assert total == pytest.approx(expected, rel=1e-4)
    assert len({round(t, 3) for t in together.tolist()}) == 3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_token_losses_add_up_to_loss_sums(kind, bases):
    packed = PackedModel(bases(kind).model)
    batch = pack(some_rows(slots=(0, 0, 1, 1, 2)))
    with packed.packing(), torch.no_grad():
        sums = packed.loss_sums(batch)
        losses, _ = packed.token_losses(batch)
    parts = [losses[s.start : s.end].sum().item() for s in batch.target_segments]
    np.testing.assert_allclose(sums.numpy(), parts, rtol=1e-5)


def test_a_bfloat16_heads_losses_are_not_rounded_to_bfloat16_when_they_are_summed(model_folder):
    packed = PackedModel(load_base(str(model_folder("llama")), device="cpu", dtype="bfloat16").model)
    batch = pack(some_rows((100,) * 8, targets=1.0))  # about 5,000 nats, where bfloat16 numbers are 32 apart
    with packed.packing(), torch.no_grad():
        exact = packed.token_losses(batch)[0].double().sum().item()
        assert packed.plain_head and packed.loss_sums(batch).item() == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", FUSED_HEADS)
def test_a_plain_head_is_recognised_with_any_number_of_threads(kind, threads, bases):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert PackedModel(bases(kind).model).plain_head
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", FUSED_HEADS)
def test_the_fused_head_gives_the_losses_and_gradients_of_the_models_own_head(kind, bases):
    base = bases(kind)
    name = pick_targets(base.model, "all-linear")[0]
    modules = {name: base.model.get_submodule(name)}
    lora = CohortLora(modules).hold(random_adapters(modules, 2), trainable=True)
    packed = PackedModel(base.model)
    assert packed.plain_head
    batch = pack(some_rows(slots=(0, 0, 1, 1, 1)))
    lora.segments = batch.segments
    seen = []
    for packed.plain_head in (True, False):
        for slot in lora.held:
            slot.gradient.zero_()
        with packed.packing(), lora.attached():
            sums = packed.loss_sums(batch)
            sums.sum().backward()
            losses, hits = packed.token_losses(batch)
        seen.append((sums.detach(), torch.stack([slot.gradient.clone() for slot in lora.held]), losses, hits.float()))
    assert seen[0][1].abs().max() > 0.01
    for fused, plain in zip(*seen, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_a_head_that_does_more_than_a_product_is_not_taken_for_one(bases):
    assert not PackedModel(bases("gemma2").model).plain_head  # final_logit_softcapping
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.CohereConfig(
            vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=24, logit_scale=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    assert not PackedModel(model).plain_head  # logits are scaled


def test_more_targets_than_one_block_of_logits_are_all_measured(bases):
    model = bases("llama").model
    rows = some_rows((HEAD_ROWS // 2,) * 3, targets=1.0)
    packed = PackedModel(model)
    for packed.plain_head in (True, False):
        with packed.packing():
            losses, hits = packed.token_losses(pack(rows))
        assert len(losses) == len(hits) == 3 * (HEAD_ROWS // 2 - 1) > HEAD_ROWS
        np.testing.assert_allclose(
            losses.numpy(), np.concatenate([reference(model, r)[0] for r in rows]), rtol=1e-4, atol=1e-4
        )


def test_outside_of_packing_the_model_attends_as_before_also_after_an_error(bases):
    model = bases("llama").model
    before = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(ids).logits
    packed = PackedModel(model)
    with pytest.raises(RuntimeError, match="mine"), packed.packing():
        raise RuntimeError("mine")
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, expected)


def test_a_pass_that_was_not_packed_is_refused_instead_of_being_attended_wrongly(bases):
    model = bases("llama").model
    packed = PackedModel(model)
    with packed.packing(), torch.no_grad():
        packed.token_losses(pack(some_rows((6,))))
        with pytest.raises(ModelError, match="outside a packed pass"):
            model(torch.tensor([[5, 6, 7, 8]]))


class Rounding(torch.nn.Linear):
    """As bitsandbytes' 8-bit layer, with 4 bits, so that it shows: columns in which any row is large are exact."""

    def __init__(self, layer: torch.nn.Linear, threshold: float) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.state = types.SimpleNamespace(threshold=threshold)

    def forward(self, x):
        large = x.abs() > self.state.threshold if self.state.threshold else torch.zeros_like(x, dtype=torch.bool)
        exact = large.flatten(0, -2).any(0)
        rest = x.masked_fill(exact, 0.0)
        unit = rest.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 7
        return super().forward(torch.where(exact, x, (rest / unit).round() * unit))


def with_rounding(model, threshold: float = 1.0):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Rounding(layer, threshold))
    return model


def test_an_8bit_base_whose_sequences_share_their_rounding_is_not_mistaken_for_one_that_leaks(model_folder):
    model = with_rounding(load_base(str(model_folder("llama")), device="cpu", dtype="float32").model)
    thresholds = [m.state.threshold for m in model.modules() if isinstance(m, Rounding)]
    packed = PackedModel(model)
    assert packed.plain_head and thresholds == [m.state.threshold for m in model.modules() if isinstance(m, Rounding)]


def test_a_bfloat16_base_is_not_mistaken_for_one_that_leaks(bases, model_folder):
    model = load_base(str(model_folder("gemma2")), device="cpu", dtype="bfloat16").model
    rows = some_rows()
    packed = PackedModel(model)
    with packed.packing():
        losses, _ = packed.token_losses(pack(rows))
    assert losses.dtype == torch.float32
    exact = np.concatenate([reference(bases("gemma2").model, row)[0] for row in rows])
    assert losses.numpy().mean() == pytest.approx(exact.mean(), rel=0.02)


# Models that would mix sequences

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
    """A random model of this config, no weight of which is zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.data.add_(0.1 * noise)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_of_other_families_the_losses_are_the_models_own_too(family):
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
def test_checkpointing_wakes_no_noise_of_the_frozen_base(kind, monkeypatch):
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
    # that only the mask knows, a convolution over the border, a state.
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
def test_a_model_whose_own_ways_a_packed_pass_would_leave_out_is_refused_by_them(reason):
    model = made(OWN_WAYS[reason]())
    with pytest.raises(ModelError, match=reason) as caught:
        PackedModel(model)
    assert type(model).__name__ in caught.value.message and "Llama" in caught.value.hint


def test_a_window_that_no_sequence_reaches_is_none():
    PackedModel(
        made(transformers.PhimoeConfig(**FAMILY, num_local_experts=4, num_experts_per_tok=2, sliding_window=128))
    )


def test_a_layer_that_no_text_goes_through_or_a_part_of_it_carries_no_adapter(bases):
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
def test_a_model_that_lets_sequences_see_each_other_is_refused_by_name(name):
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
def test_a_pass_that_begins_or_ends_with_the_pad_token_is_no_reason_for_a_warning_since_nothing_is_padded(
    bases, kind, monkeypatch
):
    base, told = bases(kind), []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning_once", told.append)
    ids = np.array([0, 5, 6, 0], np.int32)
    batch = pack([Row(0, Tokens("x", ids, np.ones(4, bool)))])
    packed = PackedModel(base.model)
    with packed.packing(), torch.no_grad():
        packed.loss_sums(batch)
    assert told == [] and base.model.config.pad_token_id == 0
