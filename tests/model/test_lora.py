"""Adapters of a cohort: slots, segments, remainders and dropout."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from shepherd.errors import ModelError
from shepherd.lowrank import LowRank
from shepherd.model.lora import CohortLora
from shepherd.model.slots import PADDING, Segment
from shepherd.types import Adapter, Factors, GlobalModel
from some_adapters import SIZES, same_bytes, some_adapter


def layers(sizes=SIZES) -> dict[str, torch.nn.Module]:
    return {name: torch.nn.Linear(*size) for name, size in sizes.items()}


def test_a_slot_returns_the_loaded_adapter_for_any_ranks_and_scales_of_other_slots():
    adapters = [some_adapter(r=r, alpha=alpha, seed=seed) for seed, (r, alpha) in enumerate([(2, 3), (1, 8), (4, 1)])]
    lora = CohortLora(layers()).hold(adapters)
    for slot, adapter in enumerate(adapters):
        assert same_bytes(replace(adapter, factors=lora.read(slot)), adapter)


def test_factors_read_from_a_slot_are_copies():
    lora = CohortLora(layers()).hold([some_adapter(seed=1)])
    before = lora.read(0)
    lora.held[0].vector.zero_()
    assert same_bytes(Adapter(before, 2, 3.0), some_adapter(seed=1))


def test_the_vector_of_a_slot_holds_all_A_before_all_B_and_nothing_else():
    adapter = some_adapter()
    (slot,) = CohortLora(layers()).hold([adapter]).held
    numbers = sum(pair.A.size for pair in adapter.factors.values())
    assert len(slot.vector) == adapter.num_parameters
    assert [len(slot.flat(part)[0]) for part in "AB"] == [numbers, adapter.num_parameters - numbers]
    expected = np.concatenate([pair.A.ravel() for pair in adapter.factors.values()])
    assert (slot.flat("A")[0].numpy() == expected).all()
    backwards = Adapter(dict(reversed(adapter.factors.items())), adapter.r, adapter.alpha)
    assert torch.equal(CohortLora(layers()).hold([backwards]).held[0].vector, slot.vector)


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda f: {n: p for n, p in f.items() if n != "h.1.mlp"}, ["1 missing ['h.1.mlp']", "0 unknown"]),
        (lambda f: f | {"h.9": f["h.1.mlp"]}, ["0 missing", "1 unknown ['h.9']"]),
        (lambda f: f | {"h.1.mlp": f["h.0.attn"]}, ["h.1.mlp", "A[2, 5], B[7, 2]", "expected A[2, 4], B[3, 2]"]),
        (lambda f: f | {"h.1.mlp": Factors(f["h.1.mlp"].A, f["h.1.mlp"].B.T)}, ["h.1.mlp", "B[2, 3]"]),
    ],
)
def test_an_adapter_of_another_model_or_rank_is_refused_with_the_name_of_the_module(change, parts):
    lora = CohortLora(layers())
    with pytest.raises(ModelError) as caught:
        lora.load(GlobalModel(Adapter(change(dict(some_adapter().factors)), 2, 3.0)))
    assert [part for part in parts if part not in caught.value.message] == [], caught.value.message
    assert caught.value.hint


def test_a_detached_model_computes_as_the_base_even_after_an_error():
    layer = torch.nn.Linear(5, 7)
    lora = CohortLora({"m": layer}).hold([some_adapter({"m": (5, 7)})])
    x = torch.randn(4, 5)
    plain = layer(x)
    with pytest.raises(RuntimeError, match="mine"), lora.attached():
        assert not torch.equal(layer(x), plain)
        raise RuntimeError("mine")
    assert torch.equal(layer(x), plain)


def test_each_segment_uses_the_rank_and_scale_of_its_slot_and_padding_uses_none():
    layer = torch.nn.Linear(5, 7)
    adapters = [some_adapter({"m": (5, 7)}, r=r, alpha=3.0, seed=r) for r in (2, 1, 4)]
    lora = CohortLora({"m": layer}).hold(adapters)
    x = torch.randn(8, 5)
    expected = layer(x).detach().numpy()
    owners = [2, 2, 0, 1, 1, 1, PADDING, PADDING]
    for row, slot in enumerate(owners[:6]):  # y = Wx + b + s · B A x
        A, B = adapters[slot].factors["m"]
        expected[row] += 3.0 / adapters[slot].r * (B @ (A @ x[row].numpy()))
    lora.segments = (Segment(2, 0, 2), Segment(0, 2, 3), Segment(1, 3, 6), Segment(PADDING, 6, 8))
    with lora.attached():
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("q", [0, 1, 2, 3, 9])  # 5·7 / (5 + 7) = 2.9: from 3 columns on the dense one is smaller
def test_a_remainder_equals_a_merged_base_for_every_slot_and_in_the_input_gradient(q):
    layer = torch.nn.Linear(5, 7).requires_grad_(False)
    rng = np.random.default_rng(q)
    term = LowRank(rng.normal(size=(7, q)).astype(np.float32), rng.normal(size=(q, 5)).astype(np.float32))
    adapters = [some_adapter({"m": (5, 7)}, r=r) for r in (2, 4)]
    merged = copy.deepcopy(layer)
    merged.weight += torch.from_numpy(term.L @ term.R)
    x, seen = torch.randn(6, 5), []
    for module, remainder in ((layer, {"m": term}), (merged, {})):
        lora = CohortLora({"m": module}).lay(remainder).hold(adapters, trainable=True)
        lora.segments = (Segment(1, 0, 2), Segment(0, 2, 6))
        leaf = x.clone().requires_grad_()
        with lora.attached():
            y = module(leaf)
        y.square().sum().backward()
        seen.append((y.detach(), leaf.grad, *(slot.gradient for slot in lora.held)))
    for frozen, dense in zip(*seen, strict=True):
        torch.testing.assert_close(frozen, dense, rtol=1e-4, atol=1e-4)


def test_a_remainder_of_a_bfloat16_base_is_multiplied_in_float32_on_a_cpu():
    # (1 + 2⁻¹⁰) − 1 = 2⁻¹⁰, of which nothing is left where 1 + 2⁻¹⁰ is rounded to 8 bits first.
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.zeros_(layer.weight)
    adapter = some_adapter({"m": (1, 1)}, r=1)
    adapter = replace(adapter, factors={"m": adapter.factors["m"]._replace(B=np.zeros((1, 1), np.float32))})
    term = LowRank(np.float32([[1 + 2**-10, -1]]), np.ones((2, 1), np.float32))
    for apart in (0, 1):
        lora = CohortLora({"m": layer}).lay({"m": replace(term, apart=apart)}).hold([adapter])
        with lora.attached(), torch.no_grad():
            y = layer(torch.ones(1, 1, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16 and y.item() == 2**-10


def test_a_large_term_is_kept_separate_from_the_merged_matrix():
    # 5·7 / (5 + 7) = 2.9: 4 columns become one matrix, and the two that are apart stay low-rank, rounded apart.
    rng = np.random.default_rng(0)
    term = LowRank(rng.normal(size=(7, 6)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32), apart=2)
    lora = CohortLora({"m": torch.nn.Linear(5, 7)}).lay({"m": term})
    assert [[tuple(w.shape) for w in part] for part in lora._frozen["m"]] == [[(2, 5), (7, 2)], [(7, 5)]]


def test_a_remainder_of_another_model_is_refused_with_the_name_of_the_module():
    lora = CohortLora({"m": torch.nn.Linear(5, 7)})
    for name, shape, words in (("n", (7, 5), "no such adapted layer"), ("m", (5, 7), "other sizes")):
        term = LowRank(np.ones((shape[0], 1), np.float32), np.ones((1, shape[1]), np.float32))
        with pytest.raises(ModelError, match=f"the remainder of {name} is .*{words}"):
            lora.lay({name: term})


def test_dropout_uses_an_inverted_mask_per_sequence_and_module_and_matches_autograd():
    n, p = 40, 0.25
    pair = {"A": np.eye(n, dtype=np.float32), "B": np.eye(n, dtype=np.float32)}  # so that y − Wx is what is left of x
    names = ("m", "n")
    modules = {name: torch.nn.Linear(n, n).requires_grad_(False) for name in names}
    lora = CohortLora(modules, dropout=p).hold([Adapter(dict.fromkeys(names, Factors(**pair)), n, n)], trainable=True)
    lora.segments, lora.dropout_seeds = (Segment(0, 0, 50),), [(0, 25, 8), (25, 50, 9)]
    x = torch.rand(50, n) + 0.5
    masks = {}
    for name, layer in modules.items():
        leaf = x.clone().requires_grad_()
        lora.held[0].gradient.zero_()
        with lora.attached():
            y = layer(leaf)
        y.square().sum().backward()
        mask = masks[name] = ((y - layer(x)) / x).detach().round(decimals=3)
        assert sorted(mask.unique().tolist()) == [0.0, pytest.approx(1 / (1 - p), abs=1e-3)]
        assert (mask == 0).float().mean() == pytest.approx(p, abs=0.05)
        leaf2, A, B = x.clone().requires_grad_(), torch.eye(n).requires_grad_(), torch.eye(n).requires_grad_()
        (layer(leaf2) + (leaf2 * (mask > 0) / (1 - p)) @ A.T @ B.T).square().sum().backward()
        got_A, got_Bt = lora.held[0].gradients[name]
        for got, expected in ((leaf.grad, leaf2.grad), (got_A, A.grad), (got_Bt.T, B.grad)):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert not torch.equal(masks["m"], masks["n"]) and not torch.equal(masks["m"][:25], masks["m"][25:])


def test_a_layer_called_with_only_some_tokens_of_the_pass_is_refused():
    layer = torch.nn.Linear(5, 7)
    lora = CohortLora({"experts.0": layer}).hold([some_adapter({"experts.0": (5, 7)})])
    lora.segments = (Segment(0, 0, 6),)
    with lora.attached(), pytest.raises(ModelError, match=r"experts\.0 saw 4 of the pass's 6 tokens"):
        layer(torch.randn(4, 5))
