"""Loading and freezing a base, and folders that are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from shepherd.errors import ModelError, ResourceError
from shepherd.model import base as base_module
from shepherd.model.base import load_base
from shepherd.model.digest import model_digest
from shepherd.model.outline import outline
from tiny import KINDS, tiny_model, tiny_tokenizer


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


# Properties of a loaded base


def test_a_base_is_frozen_in_evaluation_mode_with_its_digests_and_licence(llama):
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


def test_a_licence_file_is_named_when_the_card_has_no_licence(copy):
    (copy / "LICENSE.txt").write_text("...")
    assert base_module.licence_of(copy) == "see LICENSE.txt"


def refuses(folder, message, hint=""):
    with pytest.raises(ModelError, match=message) as caught:
        load_base(str(folder), device="cpu", dtype="float32")
    assert hint in caught.value.hint and str(folder) in caught.value.message and caught.value.exit_code == 4


# Refused folders


def test_a_folder_without_a_config_is_not_a_model(tmp_path):
    refuses(tmp_path, "not a model: it has no config.json", "holds config.json")


def test_an_adapter_is_not_a_base_and_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/base"}')
    refuses(tmp_path, "is an adapter", "lab/base")


def test_a_folder_without_weights_is_refused(copy):
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
    if name.endswith("index.json"):  # it is read without a single file
        (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / name).write_bytes(b"{ not what it was")
    refuses(copy, "cannot be (read|loaded)", "again")


def test_missing_weights_are_not_randomly_initialised(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refuses(copy, "1 weight in no file, e.g. model.layers.1.mlp.up_proj.weight")


def lacking(folder, *lost, rename=lambda name: name, **extra):
    """Without some tensors of the file: the names that transformers reports missing on a load, and the error of
    `outline`."""
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
def test_a_missing_weight_is_detected_from_the_headers(kind, tmp_path):
    folder = tiny_model(kind, tmp_path)
    assert lacking(folder) == ([], "")
    name = {"gpt2": "transformer.h.1.ln_2.bias", "gpt_neox": "gpt_neox.layers.1.input_layernorm.weight"}.get(
        kind, "model.layers.1.input_layernorm.weight"
    )
    assert lacking(folder, name) == ([name], f"{folder} is not whole: 1 weight in no file, e.g. {name}")


def test_tied_heads_missing_prefixes_and_old_buffers_are_not_missing_weights(tmp_path):
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


def test_tensor_names_are_compared_after_the_renaming_of_transformers(tmp_path):
    folder = tiny_model("gpt_neox", tmp_path)  # its head is saved as embed_out and is lm_head in memory
    assert lacking(folder) == ([], "")
    name = "gpt_neox.final_layer_norm.weight"
    missing, said = lacking(folder, name)
    assert missing == [name] and said.endswith(f"1 weight in no file, e.g. {name}")
    refuses(folder, f"1 weight in no file, e.g. {name}")


def test_weights_of_another_shape_are_refused(copy):
    edit(copy / "config.json", intermediate_size=40)
    refuses(copy, "cannot be loaded")


def test_a_model_that_needs_remote_code_is_refused_and_the_code_is_not_run(copy):
    edit(copy / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (copy / "mine.py").write_text("raise SystemExit('ran')")
    refuses(copy, "code of its own, which is never run")
    edit(copy / "config.json", auto_map=None)
    refuses(copy, "transformers has no such")


def test_a_model_of_a_known_type_is_loaded_without_its_remote_code(copy):
    edit(copy / "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (copy / "mine.py").write_text("raise SystemExit('ran')")
    assert type(load_base(str(copy), device="cpu", dtype="float32").model).__name__ == "LlamaForCausalLM"


def test_a_model_that_is_not_a_causal_language_model_is_refused(copy):
    edit(copy / "config.json", model_type="t5")
    refuses(copy, "'t5' is not a causal language model")


def test_a_tokenizer_without_an_end_token_is_refused(copy):
    edit(copy / "tokenizer_config.json", eos_token=None)
    refuses(copy, "no end token", "eos_token")


def test_a_tokenizer_of_another_model_is_refused(copy):
    edit(copy / "tokenizer_config.json", eos_token="<|the end|>")
    refuses(copy, "has id 384, but the model has 384 embeddings")


def test_a_token_without_an_embedding_is_refused_unless_it_is_an_unused_control_token(copy):
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
def test_a_model_that_exceeds_the_memory_is_a_resource_error_with_its_size(llama, monkeypatch, error):
    from transformers import AutoModelForCausalLM

    def from_pretrained(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(ResourceError, match=r"not enough memory on cpu .* 0\.0 GiB") as caught:
        load_base(str(llama), device="cpu", dtype="float32")
    assert "smaller model" in caught.value.hint


def test_the_tiny_tokenizer_round_trips_any_text():
    text = "<|im_start|>user\nÄ 日本 🐑\t12  x<|im_end|>\n"
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text
