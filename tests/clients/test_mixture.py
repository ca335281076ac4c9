"""Inference with the mixture of FedDPA: weights λ of inputs, losses and generation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from feddpa_models import DATA, LOCAL, SHARED, another, put_into_base
from plain_client import low_rank
from shepherd.clients.personal.mixture import Mixture, hidden_states, load_mixture, prompt_of, save_mixture
from shepherd.errors import ModelError
from shepherd.evaluation.losses import row_losses, row_losses_each
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.types import GlobalModel
from tiny_training import ALPHA, adapter_for, base_model, targets_of


def mixture(weight=0.5, anchors=None, shared=SHARED, local=LOCAL) -> Mixture:
    anchors = np.random.default_rng(2).normal(size=(5, 24)).astype(np.float32) if anchors is None else anchors
    return Mixture(shared, local, anchors, weight)


# The weight λ of an input


def test_lambda_is_the_weight_times_the_mean_cosine_of_the_prompt_state_under_the_local_adapter():
    model = base_model()
    modules, rows = targets_of(model), DATA["client-0"]
    prompts = [list(row.input_ids[: int(np.argmax(row.loss_mask))]) for row in rows]
    tensors = {name: tuple(map(torch.from_numpy, pair)) for name, pair in LOCAL.factors.items()}
    with torch.no_grad(), low_rank(modules, tensors.__getitem__, ALPHA / 4):
        states = [
            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].double() for ids in prompts
        ]
    expected = [
        0.3 * np.mean([torch.cosine_similarity(state, anchor, dim=0).item() for anchor in states[:2]])
        for state in states[2:]
    ]
    packed, lora = PackedModel(model), CohortLora(modules)
    anchors = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in rows[:2]])
    got = mixture(0.3, anchors).measure(packed, lora, [prompt_of(row) for row in rows[2:]])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_lambda_is_the_weight_at_an_anchor_and_its_negative_at_the_opposite_state():
    state = np.arange(1.0, 25.0, dtype=np.float32)[None]
    np.testing.assert_allclose(mixture(0.5, state).shares(np.concatenate([3 * state, -state])), [0.5, -0.5])


def test_lambda_depends_on_neither_the_response_nor_other_prompts():
    model = base_model()
    packed, lora = PackedModel(model), CohortLora(targets_of(model))
    rows = DATA["client-1"]
    changed = [replace(r, input_ids=np.where(r.loss_mask, 5, r.input_ids).astype(np.int32)) for r in rows]
    together = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in rows])
    alone = [hidden_states(packed, lora, LOCAL, [prompt_of(row)], 8) for row in changed]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    backwards = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in reversed(rows)], 16)
    assert together.tobytes() == np.ascontiguousarray(backwards[::-1]).tobytes()


# Losses and generation


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("r, alpha", [(4, ALPHA), (2, 7.0)])
def test_each_row_is_computed_with_its_lambda(kind, r, alpha):
    shares = [0.0, 0.25, -0.1, 0.5, 1.0, 0.4]
    model = base_model(kind)
    shared = adapter_for(targets_of(model, kind))
    local = another(shared, r, alpha)
    lora = mixture(shared=shared, local=local).hold(CohortLora(targets_of(model, kind)), shares)
    rows = DATA["client-2"]
    got = row_losses_each(PackedModel(model), rows, lora, tokens_per_pass=24)
    for share, row, nll, count, hits in zip(shares, rows, got.nll, got.tokens, got.hits, strict=True):
        plain = base_model(kind)
        put_into_base(targets_of(plain, kind), [(shared, 1 - share), (local, share)])
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        with torch.no_grad():
            logits = plain(ids[None]).logits[0, :-1][torch.from_numpy(row.loss_mask[1:])]
        targets = ids[1:][torch.from_numpy(row.loss_mask[1:])]
        assert nll == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=2e-5)
        assert (count, hits) == (len(targets), int((logits.argmax(-1) == targets).sum()))


def test_a_mixture_of_weight_zero_is_the_global_model():
    model = base_model()
    packed, lora, rows = PackedModel(model), CohortLora(targets_of(model)), DATA["client-0"]
    none = mixture(weight=0.0)
    shares = none.measure(packed, lora, [prompt_of(row) for row in rows])
    assert not shares.any()
    got = row_losses_each(packed, rows, none.hold(lora, shares))
    (expected,) = row_losses(packed, rows, lora.load(GlobalModel(SHARED)))
    np.testing.assert_allclose(got.nll, expected.nll, rtol=1e-6)


def test_a_mixture_generates_as_the_base_with_both_increments_merged(model_folder):
    def answer(model, lora=None):
        return generate(model.model, model.tokenizer, [[5, 80, 120, 200]], lora=lora, max_new_tokens=6)

    base = load_base(str(model_folder()), device="cpu", dtype="float32")
    modules = {n: m for n, m in base.model.named_modules() if n.endswith(("q_proj", "v_proj", "down_proj"))}
    like = adapter_for(modules)
    shared, local = another(like, 2, 4.0, 1), another(like, 3, 9.0, 2)
    lora = mixture(shared=shared, local=local).hold(CohortLora(modules), [0.4])
    mixed, before = answer(base, lora), answer(base)
    put_into_base(modules, [(shared, 0.6), (local, 0.4)])
    assert mixed == answer(base) != before


# Refused settings


def test_a_damaged_mixture_folder_is_refused_with_the_defect(tmp_path):
    save_mixture(tmp_path, mixture(0.25), base_name="tiny")
    assert load_mixture(tmp_path, SHARED).weight == 0.25
    with pytest.raises(ModelError, match="belong to different bases: unknown and abc"):
        load_mixture(tmp_path, replace(SHARED, base_digest="abc"))
    save_mixture(tmp_path, mixture(anchors=np.full((5, 24), np.nan, np.float32)), base_name="tiny")
    with pytest.raises(ModelError, match="not finite"):
        load_mixture(tmp_path, SHARED)
    (tmp_path / "mixture.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"mixture\.safetensors cannot be read"):
        load_mixture(tmp_path, SHARED)
    (tmp_path / "mixture.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no mixture\.safetensors"):
        load_mixture(tmp_path, SHARED)
