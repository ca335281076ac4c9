"""Adapters in memory and on disk: the folder is that of PEFT, with equal logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shepherd.errors import ModelError
from shepherd.model.adapter import CONFIG, WEIGHTS, digest, fresh_adapter, load_adapter, save_adapter
from shepherd.model.base import load_base
from shepherd.model.lora import CohortLora
from shepherd.model.slots import features
from shepherd.model.targets import pick_targets
from shepherd.types import Adapter, Factors
from some_adapters import SIZES, same_bytes, some_adapter
from tiny import KINDS

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


def test_the_digest_depends_on_every_value_and_not_on_the_order_of_modules():
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


def test_a_saved_adapter_is_loaded_with_the_same_bytes_rank_scale_and_base(tmp_path):
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


def test_equal_adapters_are_saved_as_equal_files_for_any_order_of_modules(tmp_path):
    forward = some_adapter()
    backward = Adapter(dict(reversed(forward.factors.items())), 2, 3.0, False, "abc")
    files = set()
    for number in range(12):  # the library writes metadata in random order
        save_adapter(tmp_path / str(number), (forward, backward)[number % 2], base_name="x")
        files.add((tmp_path / str(number) / WEIGHTS).read_bytes() + (tmp_path / str(number) / CONFIG).read_bytes())
    assert len(files) == 1


def test_sliced_and_transposed_factors_are_saved_with_their_shape_and_values(tmp_path):
    wide = np.arange(40, dtype=np.float32).reshape(4, 10)
    adapter = Adapter({"m": Factors(wide[::2, ::2], wide[:, :2].T[:, :3].T)}, 2, 1.0)
    save_adapter(tmp_path, adapter, base_name="x")
    assert same_bytes(load_adapter(tmp_path), adapter)


def test_an_adapter_saved_by_peft_can_be_loaded(tmp_path, model_folder):
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
def test_a_damaged_or_foreign_adapter_folder_is_refused_with_the_reason(damage, tmp_path):
    save_adapter(tmp_path, some_adapter(), base_name="x")
    harm, parts = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_adapter(tmp_path)
    assert [part for part in [str(tmp_path), *parts] if part not in caught.value.message] == [], caught.value.message


# Equality with PEFT


@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_peft_loads_a_saved_adapter_and_computes_the_same_logits(kind, rslora, model_folder, tmp_path):
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
        # Warnings are errors: of missing keys, or of a fan_in_fan_out that PEFT had to correct.
        theirs = peft.PeftModel.from_pretrained(base.model, tmp_path).eval()(ids).logits
    assert (ours - plain).abs().max() > 0.1  # the adapter does something
    assert (ours - theirs).abs().max() <= 1e-4
