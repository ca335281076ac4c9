"""Unusable model folders are refused before PyTorch loads, with an alternative and without output of libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shepherd.errors import ModelError
from shepherd.model.digest import weight_files
from shepherd.model.folder import inspect_folder

FULL = 'model.quantize = "4bit"'


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder("llama"), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def refused(folder) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        inspect_folder(folder)
    assert caught.value.exit_code == 4 and str(folder) in caught.value.message and caught.value.hint
    return caught.value.message, caught.value.hint


def test_a_whole_model_in_full_precision_passes_without_a_note(folder):
    assert inspect_folder(folder) == ()


@pytest.mark.parametrize(
    ("settings", "called"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "GPTQ (4-bit)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ (4-bit)"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}, "compressed-tens"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes (4-bit)"),
        ({"quantization_config": {"quant_method": "hqq"}}, "HQQ"),
        ({"quantization_config": {"quant_method": "eetq"}}, "EETQ"),
        ({"quantization_config": {"quant_method": "a_later_one"}}, "a_later_one"),
        ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX (4-bit)"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 8}}}, "GPTQ (8-bit)"),
    ],
)
def test_quantised_weights_are_named_by_their_method(folder, settings, called):
    edit(folder, **settings)
    (folder / "README.md").write_text("---\nbase_model:\n- lab/full\n---\n", encoding="utf-8")
    message, hint = refused(folder)
    assert f"holds {called}" in message and "(lab/full)" in hint and FULL in hint


def test_an_empty_quantisation_entry_is_accepted(folder):
    edit(folder, quantization_config=None)
    assert inspect_folder(folder) == ()


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_settings_files_of_quantisers_are_read(folder, name):
    (folder / name).write_text("{}")
    assert "full precision" in refused(folder)[0]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", np.zeros((2, 2), np.int32)),
        ("model.layers.0.self_attn.q_proj.weight_packed", np.zeros((2, 2), np.int32)),
        ("model.layers.0.self_attn.q_proj.weight", np.zeros((32, 32), np.int8)),
    ],
)
def test_quantised_weights_are_detected_from_the_tensors_without_a_config_entry(folder, name, array):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: array}, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in refused(folder)[0]


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("LlamaForSequenceClassification", "a classifier or reward model"),
        ("Qwen2ForRewardModel", "a classifier or reward model"),
        ("LlamaForTokenClassification", "a tagger"),
        ("BertForMaskedLM", "fills gaps in"),
        ("BertForPreTraining", "fills gaps in"),
        ("LlamaForQuestionAnswering", "to choose answers"),
        ("ViTForImageClassification", "pictures or sound"),
    ],
)
def test_a_model_with_another_head_is_refused_with_its_purpose(folder, architecture, what):
    edit(folder, architectures=[architecture], tie_word_embeddings=True)  # tied, nothing would be missing
    message, hint = refused(folder)
    assert architecture in message and what in message and "continues text" in hint
    edit(folder, _name_or_path="lab/language-model")
    assert "lab/language-model" in refused(folder)[1]


def test_an_encoder_decoder_is_refused(folder):
    edit(folder, model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    assert "encoder-decoder (T5ForConditionalGeneration)" in refused(folder)[0]


def test_a_missing_head_and_unused_remote_code_are_notes(folder):
    edit(folder, architectures=["LlamaModel"], auto_map={"AutoModel": "mine.Model"})
    body, code = inspect_folder(folder)
    assert "LlamaModel" in body and "auto_map" in code and "not run" in code


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "MyDiffusionForCausalLM", "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"]
)
def test_a_causal_language_model_is_not_refused_for_its_name(folder, name):
    edit(folder, architectures=[name], num_labels=3)
    assert inspect_folder(folder) == ()


def test_a_model_folder_with_an_adapter_is_refused_because_transformers_would_apply_it(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/base"}')
    assert "a model and an adapter" in refused(folder)[0]


def test_folders_of_gguf_files_or_of_the_original_format_are_refused_with_a_hint(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    assert "authors' own format" in refused(tmp_path)[0]
    (tmp_path / "m.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert refused(tmp_path)[1].endswith("m.Q4_K_M.gguf")


def test_a_run_and_the_parent_folder_of_a_model_are_refused_with_a_hint(folder, tmp_path):
    assert refused(tmp_path)[1].endswith(f"model.base to {folder}")
    (tmp_path / "identity.json").write_text("{}")
    message, hint = refused(tmp_path)
    assert "is a run, not a model" in message and "--to merged" in hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_in_a_folder_is_refused(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    message, hint = refused(folder)
    assert f"{name} is a git-lfs pointer" in message and "git lfs pull" in hint


def test_shards_without_their_index_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    message, hint = refused(folder)
    assert "no index" in message and "model.safetensors.index.json" in hint


def test_a_tensor_that_is_not_in_the_file_of_its_index_is_named(folder):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = [*load_file(folder / "part.safetensors"), "model.layers.9.norm"]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    assert "1 of the tensors in its index are not in their files, e.g. model.layers.9.norm" in refused(folder)[0]


def test_with_two_sets_of_weights_the_digest_covers_the_loaded_one(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]  # as transformers looks for them


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_tokenizer_that_needs_a_missing_package_is_refused_with_both_remedies(folder, name, monkeypatch):
    (folder / "tokenizer.json").rename(folder / name)
    monkeypatch.setattr("shepherd.model.folder._all_installed", lambda modules: False)
    message, hint = refused(folder)
    assert f"only {name}" in message and "copy tokenizer.json" in hint and "pip install sentencepiece" in hint


def test_a_tekken_file_alone_is_not_a_tokenizer(folder):
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    assert "only tekken.json" in refused(folder)[0]


PROGRAM = """
import sys
from shepherd.model.fetch import look_at
try:
    look_at(sys.argv[1])
except Exception as error:
    print(type(error).__name__, "torch" in sys.modules, "transformers" in sys.modules)
"""


def test_inspecting_a_folder_does_not_import_pytorch(folder):
    edit(folder, quantization_config={"quant_method": "gptq"})
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True)
    assert done.stdout.split() == ["ModelError", "False", "False"], done.stderr
