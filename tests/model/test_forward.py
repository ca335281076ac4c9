"""Packed passes against separate passes of each sequence."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
import transformers

from packed_rows import reference, some_rows
from shepherd.errors import ModelError
from shepherd.model.base import Base, load_base
from shepherd.model.forward import HEAD_ROWS, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, pack
from shepherd.model.slots import PADDING, Segment
from shepherd.model.targets import pick_targets
from shepherd.types import Tokens
from tiny import KINDS, random_adapters, tiny_model

FUSED_HEADS = sorted(set(KINDS) - {"gemma2"})  # gemma2 caps its logits, so its head is more than a product


@pytest.fixture(scope="module")
def bases(model_folder):
    loaded: dict[str, Base] = {}

    def base(kind: str) -> Base:
        if kind not in loaded:
            loaded[kind] = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
        return loaded[kind]

    return base


# Padding


def test_padding_belongs_to_no_slot_and_changes_no_loss(bases):
    rows = some_rows()
    plain, filled = pack(rows), pack(rows, 64)
    assert (plain.bounds[-1], filled.bounds[-1], filled.input_ids.shape[1]) == (91, 128, 128)
    assert filled.segments == (*plain.segments, Segment(PADDING, 91, 128))
    assert filled.target_segments == plain.target_segments and filled.seeds == plain.seeds
    assert pack(rows[:1], 23).segments == pack(rows[:1]).segments  # nothing to fill
    packed = PackedModel(bases("llama").model)
    with packed.packing():
        torch.testing.assert_close(packed.token_losses(filled), packed.token_losses(plain))


# Equality with separate passes


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_packed_sequences_have_the_losses_of_separate_passes(kind, bases):
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
def test_sliding_windows_apply_inside_packed_sequences(kind, bases):
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


def test_attention_scores_are_capped_inside_packed_sequences(tmp_path):
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
def test_every_client_of_a_pass_uses_only_its_adapter(kind, bases):
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


def test_losses_of_a_bfloat16_head_are_summed_in_float32(model_folder):
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
def test_the_fused_head_has_the_losses_and_gradients_of_the_original_head(kind, bases):
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


def test_a_head_with_more_than_a_product_is_not_plain(bases):
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


def test_the_original_attention_is_restored_after_packing_even_after_an_error(bases):
    model = bases("llama").model
    before = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(ids).logits
    packed = PackedModel(model)
    with pytest.raises(RuntimeError, match="mine"), packed.packing():
        raise RuntimeError("mine")
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, expected)


def test_packed_attention_refuses_a_pass_that_was_not_packed(bases):
    model = bases("llama").model
    packed = PackedModel(model)
    with packed.packing(), torch.no_grad():
        packed.token_losses(pack(some_rows((6,))))
        with pytest.raises(ModelError, match="outside a packed pass"):
            model(torch.tensor([[5, 6, 7, 8]]))


class Rounding(torch.nn.Linear):
    """bitsandbytes' 8-bit layer with 4 bits, for a larger effect: columns in which any row is large are exact."""

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


def test_an_8bit_base_with_shared_rounding_is_not_mistaken_for_a_leak(model_folder):
    model = with_rounding(load_base(str(model_folder("llama")), device="cpu", dtype="float32").model)
    thresholds = [m.state.threshold for m in model.modules() if isinstance(m, Rounding)]
    packed = PackedModel(model)
    assert packed.plain_head and thresholds == [m.state.threshold for m in model.modules() if isinstance(m, Rounding)]


def test_the_rounding_of_a_bfloat16_base_is_not_mistaken_for_a_leak(bases, model_folder):
    model = load_base(str(model_folder("gemma2")), device="cpu", dtype="bfloat16").model
    rows = some_rows()
    packed = PackedModel(model)
    with packed.packing():
        losses, _ = packed.token_losses(pack(rows))
    assert losses.dtype == torch.float32
    exact = np.concatenate([reference(bases("gemma2").model, row)[0] for row in rows])
    assert losses.numpy().mean() == pytest.approx(exact.mean(), rel=0.02)
