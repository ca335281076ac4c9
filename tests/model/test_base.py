"""Loading and freezing a base, refusing what is none, and naming the layers that adapters sit on."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
import transformers
from torch import nn

from shepherd.errors import ModelError, ResourceError, UsageError
from shepherd.model import base as base_module
from shepherd.model.base import load_base, pick_device, pick_dtype
from shepherd.model.digest import model_digest
from shepherd.model.outline import outline
from shepherd.model.targets import is_linear, linear_names, pick_targets
from tiny import KINDS, tiny_model, tiny_tokenizer

MLP = ["gate_proj", "up_proj", "down_proj"]
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]
LINEARS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


# What comes out


def test_a_base_is_frozen_in_evaluation_mode_and_says_what_it_is(llama):
    base = load_base(str(llama), device="cpu", dtype="float32")
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert {p.dtype for p in base.model.parameters()} == {torch.float32} == {base.dtype}
    assert (base.name, base.path, base.device) == (str(llama), llama, torch.device("cpu"))
    assert base.digest == model_digest(llama) and base.licence == "unknown"
    assert base.num_parameters == sum(p.numel() for p in base.model.parameters())
    assert base.tokenizer.eos_token == "<|im_end|>"


def test_a_base_can_be_loaded_in_bfloat16_and_keeps_its_digest(llama):
    base = load_base(str(llama), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16} == {base.dtype}
    assert base.digest == model_digest(llama)


def test_a_missing_pad_token_is_the_end_token_and_adds_no_row(copy):
    edit(copy / "tokenizer_config.json", pad_token=None)
    base = load_base(str(copy), device="cpu", dtype="float32")
    assert base.tokenizer.pad_token == "<|im_end|>"
    assert base.model.get_input_embeddings().weight.shape[0] == len(base.tokenizer) == 384


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: other\nlicense_name: sheep-1\n---\n", "sheep-1"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\n: {\n---\n", "unknown"),
        ("license: mit", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_cards_front_matter(copy, card, licence):
    (copy / "README.md").write_text(card)
    assert base_module.licence_of(copy) == licence


def test_a_licence_file_is_named_when_the_card_says_nothing(copy):
    (copy / "LICENSE.txt").write_text("...")
    assert base_module.licence_of(copy) == "see LICENSE.txt"


# Not a model


def refuses(folder, message, hint=""):
    with pytest.raises(ModelError, match=message) as caught:
        load_base(str(folder), device="cpu", dtype="float32")
    assert hint in caught.value.hint and str(folder) in caught.value.message and caught.value.exit_code == 4


def test_a_folder_without_a_config_is_not_a_model(tmp_path):
    refuses(tmp_path, "not a model: it has no config.json", "holds config.json")


def test_an_adapter_is_not_a_base_and_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/base"}')
    refuses(tmp_path, "is an adapter", "lab/base")


def test_a_folder_without_weights_says_so(copy):
    (copy / "model.safetensors").unlink()
    refuses(copy, "has no weights: no ")


def test_pickled_weights_are_refused_by_name(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refuses(copy, "only pytorch_model.bin, which can hold code", "save_pretrained")


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(copy, "1 of 2 weight files are missing, e.g. model-00002")


def test_a_missing_tokenizer_is_named(copy):
    (copy / "tokenizer.json").unlink()
    refuses(copy, "has no tokenizer", "tokenizer files")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_broken_file_is_a_model_error(copy, name):
    if name.endswith("index.json"):  # it is read where there is no single file
        (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / name).write_bytes(b"{ not what it was")
    refuses(copy, "cannot be (read|loaded)", "again")


def test_weights_that_are_in_no_file_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refuses(copy, "1 weight in no file, e.g. model.layers.1.mlp.up_proj.weight")


def lacking(folder, *lost, rename=lambda name: name, **extra):
    """What headers tell of the model in `folder` after some tensors left its file: the names, as transformers counts
    them when it loads the rest, and what `outline` says."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    weights = {rename(name): array for name, array in load_file(folder / "model.safetensors").items()}
    left = {name: array for name, array in weights.items() if name not in lost}
    assert len(left) == len(weights) - len(lost)
    save_file(left | extra, folder / "model.safetensors", metadata={"format": "pt"})
    _, loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    try:
        outline(folder)
    except ModelError as error:
        return sorted(loaded["missing_keys"]), error.message
    return sorted(loaded["missing_keys"]), ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_in_no_file_is_found_in_the_headers(kind, tmp_path):
    folder = tiny_model(kind, tmp_path)
    assert lacking(folder) == ([], "")
    name = {"gpt2": "transformer.h.1.ln_2.bias", "gpt_neox": "gpt_neox.layers.1.input_layernorm.weight"}.get(
        kind, "model.layers.1.input_layernorm.weight"
    )
    assert lacking(folder, name) == ([name], f"{folder} is not whole: 1 weight in no file, e.g. {name}")


def test_a_tied_head_and_a_checkpoint_without_prefix_or_with_old_buffers_lack_nothing(tmp_path):
    tied = tiny_model("llama", tmp_path, tie_word_embeddings=True)
    assert lacking(tied, **{f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.zeros(2) for n in (0, 1)}) == (
        [],
        "",
    )
    assert "2 weights in no file" in lacking(tied, "model.embed_tokens.weight", "model.norm.weight")[1]
    twice = tiny_model("llama", tmp_path / "twice", tie_word_embeddings=True)
    head = {"lm_head.weight": torch.zeros(len(tiny_tokenizer()), 32)}  # in the file as well, as some are saved
    missing, said = lacking(twice, "model.norm.weight", **head)
    assert missing == ["model.norm.weight"] and said.endswith(missing[0])
    bare = tiny_model("gpt2", tmp_path)
    without = lambda name: name.removeprefix("transformer.")  # noqa: E731, as the first GPT-2 was saved
    assert lacking(bare, rename=without) == ([], "")
    missing, said = lacking(bare, "h.0.mlp.c_fc.weight")
    assert missing == ["transformer.h.0.mlp.c_fc.weight"] and said.endswith(missing[0])


def test_names_that_transformers_changes_when_it_loads_are_changed_before_they_are_compared(tmp_path):
    folder = tiny_model("gpt_neox", tmp_path)  # its head is saved as embed_out and is lm_head in memory
    assert lacking(folder) == ([], "")
    name = "gpt_neox.final_layer_norm.weight"
    missing, said = lacking(folder, name)
    assert missing == [name] and said.endswith(f"1 weight in no file, e.g. {name}")
    refuses(folder, f"1 weight in no file, e.g. {name}")


def test_weights_of_another_shape_are_refused(copy):
    edit(copy / "config.json", intermediate_size=40)
    refuses(copy, "cannot be loaded")


def test_a_model_that_brings_code_is_refused_and_the_code_not_run(copy):
    edit(copy / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (copy / "mine.py").write_text("raise SystemExit('ran')")
    refuses(copy, "code of its own, which is never run")
    edit(copy / "config.json", auto_map=None)
    refuses(copy, "transformers has no such")


def test_a_model_that_brings_code_for_a_known_type_is_loaded_without_it(copy):
    edit(copy / "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (copy / "mine.py").write_text("raise SystemExit('ran')")
    assert type(load_base(str(copy), device="cpu", dtype="float32").model).__name__ == "LlamaForCausalLM"


def test_a_model_that_does_not_continue_text_is_refused(copy):
    edit(copy / "config.json", model_type="t5")
    refuses(copy, "'t5' is not a causal language model")


def test_a_tokenizer_without_an_end_token_is_refused(copy):
    edit(copy / "tokenizer_config.json", eos_token=None)
    refuses(copy, "no end token", "eos_token")


def test_a_tokenizer_of_another_model_is_refused(copy):
    edit(copy / "tokenizer_config.json", eos_token="<|the end|>")
    refuses(copy, "has id 384, but the model has 384 embeddings")


def test_a_token_without_an_embedding_is_refused_unless_it_is_a_control_token_that_is_never_written(copy):
    # The model has 384 embeddings, for ids 0 to 383; the next token gets 384.
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|picture|>"]})
    tokenizer.save_pretrained(copy)
    assert len(load_base(str(copy), device="cpu", dtype="float32").tokenizer) == 385
    tokenizer.chat_template += "<|picture|>"
    tokenizer.save_pretrained(copy)
    refuses(
        copy, r"1 of the tokenizer's tokens, such as '<\|picture\|>', are beyond the 384 embeddings", "another model"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["baa"])
    tokenizer.save_pretrained(copy)
    refuses(copy, "such as 'baa'")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_model_that_does_not_fit_is_a_resource_error_with_its_size(llama, monkeypatch, error):
    from transformers import AutoModelForCausalLM

    def from_pretrained(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(ResourceError, match=r"not enough memory on cpu .* 0\.0 GiB") as caught:
        load_base(str(llama), device="cpu", dtype="float32")
    assert "smaller model" in caught.value.hint


# Device and precision


def test_cuda_that_was_asked_for_and_is_not_there_is_a_resource_error(monkeypatch):
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


def test_mps_that_is_not_there_and_a_device_that_does_not_exist_are_told_apart(monkeypatch):
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
def test_auto_on_cuda_is_bfloat16_where_the_device_computes_in_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_dtype("auto", torch.device("cuda")) == dtype


def test_a_named_precision_is_taken_and_an_unknown_one_refused():
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UsageError, match="Did you mean 'float32'"):
        pick_dtype("float3", torch.device("cpu"))


def test_an_8bit_base_does_not_say_at_each_of_its_products_that_it_rounds(llama, monkeypatch):
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


# Targets


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_means_every_linear_layer_of_the_blocks_and_not_the_head(kind, tmp_path):
    model = load_base(str(tiny_model(kind, tmp_path)), device="cpu", dtype="float32").model
    head = model.get_output_embeddings()
    everything = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    assert pick_targets(model, "all-linear") == tuple(everything) == tuple(linear_names(model))
    assert sorted({name.rsplit(".", 1)[-1] for name in everything}) == sorted(LINEARS.get(kind, SPLIT))


@pytest.fixture(scope="module")
def model(llama):
    return load_base(str(llama), device="cpu", dtype="float32").model


def test_targets_can_be_named_by_any_end_of_their_name_and_keep_the_models_order(model):
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


def test_a_misspelt_target_gets_the_nearest_and_none_at_all_is_refused(model):
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
    """A picture tower with more blocks than the decoder, whose blocks hold more experts than there are blocks."""

    def __init__(self):
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
        self.text = nn.Module()
        self.text.norms = nn.ModuleList([nn.LayerNorm(2)])
        self.text.layers = nn.ModuleList(Block() for _ in range(3))

    def get_decoder(self):
        return self.text


def test_blocks_are_those_of_the_decoder_not_a_tower_and_not_a_list_of_experts():
    names = linear_names(Seeing())
    assert len(names) == 30 and names[0] == "text.layers.0.experts.0" and names[-1] == "text.layers.2.q"


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="Linear has no list of blocks"):
        linear_names(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="has no linear layer"):
        pick_targets(nn.Sequential(nn.ModuleList([nn.ReLU()])), "all-linear")


def test_the_tiny_tokenizer_gives_back_any_text():
    text = "<|im_start|>user\nÄ 日本 🐑\t12  x<|im_end|>\n"
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text
