"""Adapters in memory and on disk: the folder is PEFT's, and PEFT computes from it what a cohort computes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shepherd.errors import ModelError
from shepherd.lowrank import LowRank
from shepherd.model.adapter import CONFIG, WEIGHTS, digest, fresh_adapter, load_adapter, save_adapter
from shepherd.model.base import load_base
from shepherd.model.lora import CohortLora
from shepherd.model.slots import NOBODY, Segment, features
from shepherd.model.targets import pick_targets
from shepherd.types import Adapter, Factors, GlobalModel
from tiny import KINDS

SIZES = {"h.0.attn": (5, 7), "h.1.attn": (5, 7), "h.1.mlp": (4, 3)}


def some_adapter(sizes=SIZES, r: int = 2, alpha: float = 3.0, seed: int = 1, rslora: bool = False) -> Adapter:
    """An adapter that changes something: B is not zero."""
    adapter = fresh_adapter(sizes, r, alpha, seed, rslora=rslora, base_digest="abc")
    rng = np.random.default_rng(seed)
    factors = {n: Factors(A, rng.normal(0, 0.3, B.shape).astype(np.float32)) for n, (A, B) in adapter.factors.items()}
    return Adapter(factors, r, alpha, rslora, "abc")


def same_bytes(a: Adapter, b: Adapter) -> bool:
    return a.factors.keys() == b.factors.keys() and all(
        x.tobytes() == y.tobytes() and x.shape == y.shape and x.dtype == y.dtype == np.float32
        for name in a.factors
        for x, y in zip(a.factors[name], b.factors[name], strict=True)
    )


# In memory


def test_a_fresh_adapter_changes_nothing_and_its_A_is_uniform_within_one_over_root_in():
    adapter = fresh_adapter({"m": (400, 6)}, 50, 8.0, seed=3)
    A, B = adapter.factors["m"]
    assert (A.shape, B.shape, A.dtype, B.dtype) == ((50, 400), (6, 50), np.float32, np.float32)
    assert not B.any()
    assert np.abs(A).max() <= 400**-0.5 and np.abs(A).max() > 0.99 * 400**-0.5
    assert A.std() == pytest.approx(400**-0.5 / 3**0.5, rel=0.02)  # of a uniform on [-b, b]: b / √3


def test_a_fresh_adapter_depends_on_the_seed_and_each_module_only_on_its_own_name():
    whole, part = fresh_adapter(SIZES, 2, 4.0, 1), fresh_adapter({"h.1.attn": (5, 7)}, 2, 4.0, 1)
    assert (whole.factors["h.1.attn"].A == part.factors["h.1.attn"].A).all()
    assert (whole.factors["h.0.attn"].A != whole.factors["h.1.attn"].A).any()
    assert (whole.factors["h.1.attn"].A != fresh_adapter(SIZES, 2, 4.0, 2).factors["h.1.attn"].A).any()


def test_the_scale_is_alpha_over_r_or_over_its_root():
    assert some_adapter(r=4, alpha=6.0).scale == 1.5
    assert some_adapter(r=4, alpha=6.0, rslora=True).scale == 3.0


def test_an_adapter_has_four_bytes_for_each_parameter():
    adapter = some_adapter()  # 2 · (5 + 7) twice, 2 · (4 + 3) once
    assert adapter.num_parameters == 62 and adapter.nbytes == 248


def test_the_digest_sees_every_value_and_not_the_order_of_modules():
    adapter = some_adapter()
    backwards = Adapter(dict(reversed(adapter.factors.items())), 2, 3.0)
    assert digest(adapter) == digest(backwards)
    for name in SIZES:
        for part in (0, 1):
            pair = [m.copy() for m in adapter.factors[name]]
            pair[part][-1, -1] = np.nextafter(pair[part][-1, -1], np.float32(9))
            assert digest(Adapter({**adapter.factors, name: Factors(*pair)}, 2, 3.0)) != digest(adapter)
    renamed = {("other" if n == "h.1.mlp" else n): f for n, f in adapter.factors.items()}
    assert digest(Adapter(renamed, 2, 3.0)) != digest(adapter)


# On disk


def test_a_folder_gives_back_the_same_bytes_rank_scale_and_base(tmp_path):
    for rslora in (False, True):
        adapter = some_adapter(rslora=rslora)
        save_adapter(tmp_path / "a", adapter, base_name="some/base")
        back = load_adapter(tmp_path / "a")
        assert same_bytes(back, adapter)
        assert (back.r, back.alpha, back.rslora, back.base_digest) == (2, 3.0, rslora, "abc")
        assert back.scale == adapter.scale and digest(back) == digest(adapter)


def test_a_folder_holds_the_names_that_peft_reads_and_nothing_else(tmp_path):
    save_adapter(tmp_path, some_adapter(), base_name="some/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS])
    assert sorted(load_file(tmp_path / WEIGHTS)) == sorted(
        f"base_model.model.{name}.lora_{x}.weight" for name in SIZES for x in "AB"
    )
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 3.0, "some/base")
    assert peft.PeftConfig.from_pretrained(tmp_path).target_modules == set(SIZES)


def test_the_same_adapter_makes_the_same_file_every_time_whatever_the_order_of_its_modules(tmp_path):
    forward = some_adapter()
    backward = Adapter(dict(reversed(forward.factors.items())), 2, 3.0, False, "abc")
    files = set()
    for number in range(12):  # the order that the library gives metadata is a coin's
        save_adapter(tmp_path / str(number), (forward, backward)[number % 2], base_name="x")
        files.add((tmp_path / str(number) / WEIGHTS).read_bytes() + (tmp_path / str(number) / CONFIG).read_bytes())
    assert len(files) == 1


def test_sliced_and_transposed_factors_are_saved_as_they_look(tmp_path):
    wide = np.arange(40, dtype=np.float32).reshape(4, 10)
    adapter = Adapter({"m": Factors(wide[::2, ::2], wide[:, :2].T[:, :3].T)}, 2, 1.0)
    save_adapter(tmp_path, adapter, base_name="x")
    assert same_bytes(load_adapter(tmp_path), adapter)


def test_what_peft_saves_can_be_read(tmp_path, model_folder):
    model = load_base(str(model_folder("llama")), device="cpu", dtype="float32").model
    options = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, options)
    tuned.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    assert (adapter.r, adapter.alpha, adapter.rslora) == (3, 5.0, True)
    name = "model.layers.1.self_attn.q_proj"
    layer = tuned.get_submodule(f"base_model.model.{name}")
    assert np.array_equal(adapter.factors[name].B, layer.lora_B["default"].weight.detach().numpy())


P = "base_model.model."


def _edit(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not ...}))

    return edit


def _tensors(change):
    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return edit


def _without(name: str):
    return _tensors(lambda tensors: {k: v for k, v in tensors.items() if k != P + name})


def _half_precision(folder: Path) -> None:
    import safetensors.torch

    tensors = {name: torch.from_numpy(t).bfloat16() for name, t in load_file(folder / WEIGHTS).items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


DAMAGES = {
    "no config": (lambda f: (f / CONFIG).unlink(), ["has no adapter_config.json"]),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ["has no adapter_model.safetensors"]),
    "config is not JSON": (lambda f: (f / CONFIG).write_text("{"), ["cannot be read"]),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), ["adapter_config.json", "not a JSON object"]),
    "config is binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), ["cannot be read"]),
    "weights cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), ["cannot be read"]),
    "bfloat16": (_half_precision, ["cannot be read", "bfloat16"]),
    "other kind": (_edit(peft_type="IA3"), ["peft_type is 'IA3'", "only LORA"]),
    "no rank": (_edit(r=...), ["lacks 'r'"]),
    "rank is text": (_edit(r="two"), ["not a number", "two"]),
    "alpha is null": (_edit(lora_alpha=None), ["not a number"]),
    "other rank": (_edit(r=3), ["h.0.attn", "A[2, 5], B[7, 2]", "r = 3"]),
    "DoRA": (_edit(use_dora=True), ["not plain LoRA", "use_dora"]),
    "own alphas": (_edit(alpha_pattern={"h.0": 7}), ["not plain LoRA", "alpha_pattern"]),
    "bias": (_tensors(lambda t: t | {f"{P}h.0.attn.bias": np.ones(7, np.float32)}), ["plain LoRA", "h.0.attn.bias"]),
    "no B": (_without("h.1.mlp.lora_B.weight"), ["lacks", "h.1.mlp.lora_B"]),
    "no A": (_without("h.1.mlp.lora_A.weight"), ["3 B for 2 A"]),
    "flat A": (_tensors(lambda t: t | {f"{P}h.1.mlp.lora_A.weight": np.ones(8, np.float32)}), ["h.1.mlp", "A[8]"]),
    "nothing": (_tensors(lambda t: {}), ["holds no LoRA factors"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_folder_is_refused_with_what_is_wrong(damage, tmp_path):
    save_adapter(tmp_path, some_adapter(), base_name="x")
    harm, parts = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_adapter(tmp_path)
    assert [part for part in [str(tmp_path), *parts] if part not in caught.value.message] == [], caught.value.message


# In a cohort


def layers(sizes=SIZES) -> dict[str, torch.nn.Module]:
    return {name: torch.nn.Linear(*size) for name, size in sizes.items()}


def test_a_slot_gives_back_what_was_loaded_into_it_whatever_its_neighbours_ranks_and_scales():
    adapters = [some_adapter(r=r, alpha=alpha, seed=seed) for seed, (r, alpha) in enumerate([(2, 3), (1, 8), (4, 1)])]
    lora = CohortLora(layers()).hold(adapters)
    for slot, adapter in enumerate(adapters):
        assert same_bytes(replace(adapter, factors=lora.read(slot)), adapter)


def test_what_was_read_from_a_slot_does_not_change_with_it():
    lora = CohortLora(layers()).hold([some_adapter(seed=1)])
    before = lora.read(0)
    lora.held[0].vector.zero_()
    assert same_bytes(Adapter(before, 2, 3.0), some_adapter(seed=1))


def test_all_A_lie_before_all_B_and_no_number_is_left_over():
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
def test_an_adapter_of_another_model_or_rank_is_refused_with_the_module(change, parts):
    lora = CohortLora(layers())
    with pytest.raises(ModelError) as caught:
        lora.load(GlobalModel(Adapter(change(dict(some_adapter().factors)), 2, 3.0)))
    assert [part for part in parts if part not in caught.value.message] == [], caught.value.message
    assert caught.value.hint


def test_outside_of_attached_the_model_is_the_base_also_after_an_error():
    layer = torch.nn.Linear(5, 7)
    lora = CohortLora({"m": layer}).hold([some_adapter({"m": (5, 7)})])
    x = torch.randn(4, 5)
    plain = layer(x)
    with pytest.raises(RuntimeError, match="mine"), lora.attached():
        assert not torch.equal(layer(x), plain)
        raise RuntimeError("mine")
    assert torch.equal(layer(x), plain)


def test_each_segment_meets_its_own_slot_at_its_own_rank_and_scale_and_filling_meets_none():
    layer = torch.nn.Linear(5, 7)
    adapters = [some_adapter({"m": (5, 7)}, r=r, alpha=3.0, seed=r) for r in (2, 1, 4)]
    lora = CohortLora({"m": layer}).hold(adapters)
    x = torch.randn(8, 5)
    expected = layer(x).detach().numpy()
    owners = [2, 2, 0, 1, 1, 1, NOBODY, NOBODY]
    for row, slot in enumerate(owners[:6]):  # y = Wx + b + s · B A x
        A, B = adapters[slot].factors["m"]
        expected[row] += 3.0 / adapters[slot].r * (B @ (A @ x[row].numpy()))
    lora.segments = (Segment(2, 0, 2), Segment(0, 2, 3), Segment(1, 3, 6), Segment(NOBODY, 6, 8))
    with lora.attached():
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("q", [0, 1, 2, 3, 9])  # 5·7 / (5 + 7) = 2.9: from 3 columns on the dense one is smaller
def test_a_remainder_is_a_merged_base_for_every_slot_and_for_the_gradient_of_the_input(q):
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


def test_the_products_of_a_remainder_beside_a_bfloat16_base_are_those_of_float32_on_a_cpu():
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


def test_a_large_term_is_held_apart_from_what_becomes_one_matrix():
    # 5·7 / (5 + 7) = 2.9: 4 columns become one matrix, and the two that are apart stay low-rank, rounded apart.
    rng = np.random.default_rng(0)
    term = LowRank(rng.normal(size=(7, 6)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32), apart=2)
    lora = CohortLora({"m": torch.nn.Linear(5, 7)}).lay({"m": term})
    assert [[tuple(w.shape) for w in part] for part in lora._frozen["m"]] == [[(2, 5), (7, 2)], [(7, 5)]]


def test_a_remainder_of_another_model_is_refused_with_the_module():
    lora = CohortLora({"m": torch.nn.Linear(5, 7)})
    for name, shape, words in (("n", (7, 5), "no such adapted layer"), ("m", (5, 7), "other sizes")):
        term = LowRank(np.ones((shape[0], 1), np.float32), np.ones((1, shape[1]), np.float32))
        with pytest.raises(ModelError, match=f"the remainder of {name} is .*{words}"):
            lora.lay({name: term})


def test_dropout_is_a_mask_of_zeros_and_1_over_1_minus_p_for_each_sequence_and_module_and_autograd_agrees():
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


def test_a_layer_that_sees_only_some_tokens_of_the_pass_is_refused():
    layer = torch.nn.Linear(5, 7)
    lora = CohortLora({"experts.0": layer}).hold([some_adapter({"experts.0": (5, 7)})])
    lora.segments = (Segment(0, 0, 6),)
    with lora.attached(), pytest.raises(ModelError, match=r"experts\.0 saw 4 of the pass's 6 tokens"):
        layer(torch.randn(4, 5))


# PEFT computes what we compute


@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_peft_loads_our_folder_and_gives_our_logits(kind, rslora, model_folder, tmp_path):
    base = load_base(str(model_folder(kind)), device="cpu", dtype="float32")
    modules = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    conv1d = any(type(module).__name__ == "Conv1D" for module in modules.values())
    assert conv1d == (kind == "gpt2")
    adapter = some_adapter({n: features(m) for n, m in modules.items()}, r=3, alpha=5.0, rslora=rslora)
    save_adapter(tmp_path, adapter, base_name=str(model_folder(kind)), conv1d=conv1d)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 300, (2, 19)))
    lora = CohortLora(modules).hold([load_adapter(tmp_path)])
    with torch.no_grad():
        plain = base.model(ids).logits
        with lora.attached():
            ours = base.model(ids).logits
        # Warnings are errors: of keys that were missing, or of a fan_in_fan_out that PEFT had to set right.
        theirs = peft.PeftModel.from_pretrained(base.model, tmp_path).eval()(ids).logits
    assert (ours - plain).abs().max() > 0.1  # the adapter does something
    assert (ours - theirs).abs().max() <= 1e-4
