"""Conversion of GGUF files: equality with the original model, and files that are refused."""

from __future__ import annotations

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd.errors import ModelError
from shepherd.model import convert, digest, fetch
from shepherd.model.fetch import list_models, resolve
from tiny import CHAT_TEMPLATE, tiny_model
from tiny_gguf import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


# Refused files


def test_a_file_that_is_not_gguf_is_refused_by_its_name_and_by_its_content(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(str(tmp_path / "model.onnx"))
    (tmp_path / "model.gguf").write_bytes(b"something else")
    with pytest.raises(ModelError, match="does not start with 'GGUF'"):
        resolve(str(tmp_path / "model.gguf"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(ModelError, match="cut short or damaged"):
        resolve(str(tmp_path / "cut.gguf"))


def test_a_truncated_gguf_file_is_refused_as_cut_short(tied, tmp_path):
    whole = write_gguf(tied, tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(ModelError, match=r"cut\.gguf .* cut short or damaged") as caught:
        resolve(str(tmp_path / "cut.gguf"))
    assert caught.value.hint == "fetch the file again"


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


# Converted files


def test_a_converted_gguf_file_equals_its_original_model(tied, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(str(write_gguf(tied, tmp_path / "tiny.gguf")))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tied)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert (folder / "model.safetensors").stat().st_size < 1.05 * (tied / "model.safetensors").stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|pad|>", 512)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    text = "<|im_start|>user\nCafé, naïve 日本 \t x  y\n\n1. b<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text and tokenizer(text).input_ids[0] == 1
    assert "license: mit" in (folder / "README.md").read_text()


def test_the_end_token_is_that_of_the_gguf_file(tied, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained

    def confused(*arguments, **options):
        tokenizer = read(*arguments, **options)
        tokenizer.eos_token = "<|im_start|>"
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", confused)
    folder = resolve(str(write_gguf(tied, tmp_path / "tiny.gguf")))
    assert read(folder).eos_token == "<|im_end|>"


def test_a_gguf_file_is_converted_once_for_all_its_paths(tied, tmp_path, monkeypatch):
    first = write_gguf(tied, tmp_path / "tiny.gguf")
    folder = resolve(str(first))
    (tmp_path / "copy.GGUF").write_bytes(first.read_bytes())
    monkeypatch.setattr(fetch, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert resolve(str(tmp_path / "copy.GGUF")) == folder
    assert [(entry.name, entry.licence) for entry in list_models()][1:] == [("tiny", "mit")]


def test_converting_twice_gives_the_same_digest(tied, tmp_path):
    gguf = write_gguf(tied, tmp_path / "tiny.gguf")
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert.convert_gguf(gguf, tmp_path / name)
        found.add(digest.model_digest(tmp_path / name))
    assert len(found) == 1


def test_digits_are_split_from_preceding_blank_lines(tied, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(str(write_gguf(tied, tmp_path / "tiny.gguf"))))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3")
    assert [piece for piece, _ in pieces] == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]


def test_an_unknown_split_of_a_tokenizer_is_refused(tied, tmp_path):
    for split in ("a-new-one", None):
        with pytest.raises(ModelError, match="how its tokenizer splits text"):
            resolve(str(write_gguf(tied, tmp_path / f"{split}.gguf", split=split)))
    resolve(str(write_gguf(tied, tmp_path / "plain.gguf", split="gpt-2")))
    resolve(str(write_gguf(tied, tmp_path / "llama3.gguf", split="llama-bpe")))


def test_an_architecture_that_cannot_be_converted_is_named(tied, tmp_path):
    with pytest.raises(ModelError, match="architecture 'sheep' cannot be converted"):
        resolve(str(write_gguf(tied, tmp_path / "sheep.gguf", architecture="sheep")))


# Incomplete and unsupported models


@pytest.mark.parametrize(
    ("facts", "said", "hint"),
    [
        ({"type": "adapter"}, "is an adapter, not a base model", "the model it was made for"),
        ({"architecture": "clip", "type": "mmproj"}, "a part of one (mmproj, clip)", "of the model itself"),
        ({"parts": 3}, "is one of 3 parts", "llama-gguf-split --merge"),
    ],
)
def test_a_gguf_file_without_a_language_model_is_refused_before_pytorch_loads(tmp_path, monkeypatch, facts, said, hint):
    whole = {"type": "model", "architecture": "llama", "parts": 1, "kinds": {}}
    monkeypatch.setattr(convert, "gguf_facts", lambda path: whole | facts)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError) as caught:
        fetch.look_at(str(tmp_path / "m.gguf"))
    assert said in caught.value.message and hint in caught.value.hint


def test_a_git_lfs_pointer_to_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ModelError, match="git-lfs pointer"):
        fetch.look_at(str(tmp_path / "m.gguf"))


def test_unsupported_gguf_block_types_are_listed_with_the_supported_ones(tmp_path):
    convert._refuse_kinds(tmp_path, {0: "F32", 3: "Q4_1", 30: "BF16"})
    with pytest.raises(ModelError, match="weights are in ODD_9, which transformers does not unpack") as caught:
        convert._refuse_kinds(tmp_path, {0: "F32", 999: "ODD_9"})
    assert "Q4_1" in caught.value.hint and "safetensors" in caught.value.hint


def test_a_gguf_file_without_a_required_weight_is_refused(tmp_path):
    model = tiny_model("llama", tmp_path, tie_word_embeddings=True)
    source = write_gguf(model, tmp_path / "m.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"1 weight in no file, e\.g\. model\.layers.1.mlp.up_proj.weight"):
        resolve(str(source))
