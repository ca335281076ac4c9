"""Digests of model and tokenizer, and the cache of hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd.model import digest
from tiny import tiny_model
from toy_model import flip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def test_the_model_digest_covers_weights_tokenizer_template_and_config_but_no_incidental_entries(tied, tmp_path):
    def changed(name, old, new):
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tied, folder)
        content = (folder / name).read_bytes()
        assert old.encode() in content
        (folder / name).write_bytes(content.replace(old.encode(), new.encode(), 1))
        return digest.model_digest(folder)

    same = digest.model_digest(tied)
    version = json.loads((tied / "config.json").read_text())["transformers_version"]
    assert changed("config.json", f'"{version}"', '"9.9"') == same
    assert changed("config.json", '"model_type"', '"_name_or_path": "lab/x", "model_type"') == same
    others = [
        changed("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        changed("chat_template.jinja", "assistant", "robot"),
        changed("tokenizer.json", '"a": ', '"a":'),
    ]
    weights = tmp_path / "weights"
    shutil.copytree(tied, weights)
    flip(weights / "model.safetensors")
    assert len({same, *others, digest.model_digest(weights)}) == 5


def test_the_tokenizer_digest_covers_all_files_that_map_text_to_ids_and_nothing_else(tied, tmp_path):
    count = iter(range(99))

    def after(change):
        folder = shutil.copytree(tied, tmp_path / f"copy-{next(count)}")
        change(folder)
        return digest.tokenizer_digest(folder)

    def edited(name, **changes):
        def edit(folder):
            there = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            (folder / name).write_text(json.dumps({**there, **changes}, indent=7))

        return after(edit)

    def inlined(folder):
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        edit = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(edit))

    same = digest.tokenizer_digest(tied)
    notes = {"transformers_version": "9.9", "name_or_path": "lab/x", "is_local": False, "_commit": "abc"}
    assert edited("tokenizer_config.json", **notes) == same == edited("config.json", rope_theta=7.0)
    assert after(inlined) == same == after(lambda folder: flip(folder / "model.safetensors"))
    others = [
        edited("tokenizer.json", truncation={"max_length": 8}),
        edited("tokenizer_config.json", eos_token="<|endoftext|>"),
        edited("tokenizer_config.json", add_bos_token=True),
        edited("special_tokens_map.json", eos_token="<|endoftext|>"),
        edited("added_tokens.json", **{"<|more|>": 384}),
        after(lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")),
        after(lambda folder: (folder / "vocab.txt").write_text("a")),
    ]
    assert len({same, *others}) == 8


def test_a_cached_hash_is_not_used_for_a_modified_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = digest.sha256_all([path])[path]
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert digest.sha256_all([path])[path] == hashlib.sha256(b"two").hexdigest() != before


def test_a_broken_cache_of_hashes_is_rebuilt(tmp_path, cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache.mkdir()
    for broken in ("{", "[]", json.dumps({str(path): 3})):
        (cache / "hashes.json").write_text(broken)
        assert digest.sha256_all([path])[path] == hashlib.sha256(b"one").hexdigest()
