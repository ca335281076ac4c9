"""Device, precision and quantisation of a base."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from shepherd.errors import ModelError, ResourceError, UsageError
from shepherd.model import base as base_module
from shepherd.model.base import load_base, pick_device, pick_dtype
from tiny import tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models"))


def test_requesting_missing_cuda_is_a_resource_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="'cuda:1' was asked for") as caught:
        pick_device("cuda:1")
    assert caught.value.exit_code == 5 and "auto" in caught.value.hint


def test_a_cuda_device_beyond_the_last_is_a_resource_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match="torch finds 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("cuda", "mps", "kind"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_auto_prefers_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device("auto").type == kind


def test_missing_mps_and_an_unknown_device_are_different_errors(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="'mps' was asked for"):
        pick_device("mps")
    with pytest.raises(UsageError, match="unknown device: 'abacus'"):
        pick_device("abacus")


@pytest.mark.parametrize(("speedup", "dtype"), [(1.2, torch.float32), (1.3, torch.bfloat16), (0.2, torch.float32)])
def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_clearly_faster(monkeypatch, speedup, dtype):
    monkeypatch.setattr(base_module, "bfloat16_speedup", lambda: speedup)
    assert pick_dtype("auto", torch.device("cpu")) == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_cuda_is_bfloat16_where_the_device_supports_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_dtype("auto", torch.device("cuda")) == dtype


def test_a_named_precision_is_used_and_an_unknown_one_refused():
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UsageError, match="Did you mean 'float32'"):
        pick_dtype("float3", torch.device("cpu"))


def test_an_8bit_base_does_not_log_its_rounding_at_every_product(llama, monkeypatch):
    products = logging.getLogger("bitsandbytes.autograd._functions")
    monkeypatch.setattr(products, "level", logging.NOTSET)
    monkeypatch.setattr(base_module, "check_quantize", lambda *_: None)  # where there is CUDA

    def loaded(*_, **options):
        assert options["quantization_config"].load_in_8bit and not products.isEnabledFor(logging.WARNING)
        raise RuntimeError("seen")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    with pytest.raises(ModelError, match="seen"):
        load_base(str(llama), device="cpu", quantize="8bit")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantised_base_needs_cuda(llama, quantize):
    with pytest.raises(ResourceError, match="needs a CUDA device") as caught:
        load_base(str(llama), device="cpu", quantize=quantize)
    assert caught.value.hint == 'set model.quantize = "none"'


def test_a_quantised_base_needs_the_extra(monkeypatch):
    monkeypatch.setattr(base_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'bitsandbytes'") as caught:
        base_module.check_quantize("4bit", torch.device("cuda"))
    assert caught.value.hint == "pip install 'shepherd-fedit[quant]'"
    with pytest.raises(UsageError, match="unknown quantize: '2bit'"):
        base_module.check_quantize("2bit", torch.device("cuda"))
