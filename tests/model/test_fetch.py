"""Resolution of model names, and the cache folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd.errors import ModelError
from shepherd.model import catalogue, digest, fetch
from shepherd.model.fetch import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


# Names


def test_fetching_does_not_import_torch():
    code = "import sys, shepherd.model.fetch; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_resolves_to_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_missing_builtin_model_names_the_pull_command():
    with pytest.raises(ModelError, match="not on this machine") as caught:
        resolve("smollm2-135m")
    assert caught.value.hint == "shepherd model pull smollm2-135m" and caught.value.exit_code == 4


@pytest.mark.parametrize(("revision", "option"), [("", ""), ("v2", " --revision v2")])
def test_a_missing_hub_model_names_the_pull_command(revision, option):
    with pytest.raises(ModelError, match="in the cache") as caught:
        resolve("lab/absent", revision)
    assert caught.value.hint == "if it is on the hub: shepherd model pull lab/absent" + option


def test_a_misspelt_builtin_name_gets_a_suggestion():
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        resolve("smollm-135m")


def test_a_misspelt_gguf_file_gets_a_suggestion(tmp_path):
    (tmp_path / "sheep.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"Did you mean 'sheep.gguf'"):
        resolve(str(tmp_path / "shep.gguf"))


def test_only_hub_models_have_revisions(tmp_path):
    for name in ("smollm2-135m", str(tmp_path)):
        with pytest.raises(ModelError, match="no revisions"):
            resolve(name, "main")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert digest.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("SHEPHERD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert digest.cache_root() == tmp_path / "xdg" / "shepherd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert digest.cache_root() == Path.home() / ".cache" / "shepherd"


# The built-in model


@pytest.mark.slow
def test_the_builtin_model_has_the_chatml_template(monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.delenv("SHEPHERD_CACHE")
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    except ModelError as error:
        pytest.skip(f"{error}: {error.hint}")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    chat = [{"role": "user", "content": "Name three.\n\n1. x  22"}, {"role": "assistant", "content": "Äpfel"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (ids.count(1), ids.count(2)) == (3, 3)  # <|im_start|> and <|im_end|>; the template adds a system turn.
    assert tokenizer.tokenize("three.\n\n1. x  22") == ["three", ".", "ĊĊ", "1", ".", "Ġx", "ĠĠ", "2", "2"]


# Public names


def test_the_public_name_of_a_builtin_model_is_its_converted_folder_or_its_hub_id(tmp_path):
    packaged = catalogue.BUILTIN["smollm2-135m"]
    made = fetch._entry(packaged.sha256)
    assert fetch.public_name("smollm2-135m", "", made) == str(made) and made.is_absolute()
    assert fetch.public_name("smollm2-135m", "", tmp_path / "snapshot") == packaged.hub_id
    assert fetch.public_name("lab/base", "v2", tmp_path) == "lab/base@v2"
    assert fetch.public_name(str(tmp_path), "", tmp_path) == str(tmp_path)
