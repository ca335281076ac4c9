"""Models of the hub: its local cache, downloads, and names that may be paths."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd import network
from shepherd.errors import ModelError, NetworkError
from shepherd.model import fetch
from shepherd.model import hub as hub_module
from shepherd.model.fetch import list_models, pull, resolve
from tiny import tiny_model
from tiny_gguf import write_gguf
from toy_model import hub_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


# Cache and downloads


def test_a_hub_model_in_the_cache_resolves_without_the_network_and_is_listed(tmp_path):
    card = "---\nlicense: apache-2.0\n---\n"
    snapshot = hub_cache(tmp_path, {"config.json": "{}", "model.safetensors": "x", "README.md": card})
    assert resolve("lab/toy") == snapshot
    assert [(entry.name, entry.licence, entry.source) for entry in list_models()[1:]] == [
        ("lab/toy", "apache-2.0", "hub")
    ]


def test_an_incomplete_hub_model_names_the_pull_command(tmp_path):
    hub_cache(tmp_path, {"config.json": "{}"})
    with pytest.raises(ModelError, match="only partly") as caught:
        resolve("lab/toy")
    assert caught.value.hint == "shepherd model pull lab/toy"


@pytest.fixture
def hub(monkeypatch):
    """A fake hub, offline by default, that returns `answer`; `asked` holds the requests."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network, "_ours", True)
    hub = SimpleNamespace(asked=[], answer=None)

    def download(hub_id, revision, **options):
        hub.asked.append((hub_id, revision, os.environ["HF_HUB_OFFLINE"]))
        if isinstance(hub.answer, Exception):
            raise hub.answer
        return str(hub.answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def test_a_pull_from_the_hub_lifts_the_default_offline_mode_and_restores_it(hub, tmp_path):
    hub.answer = tmp_path
    (tmp_path / "model.safetensors").write_text("x")
    assert pull("smollm2-135m", origin="hub") == tmp_path
    assert pull("lab/toy", revision="v2") == tmp_path
    assert hub.asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", None, "0"), ("lab/toy", "v2", "0")]
    assert huggingface_hub.constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_pull_from_the_hub_respects_offline_mode_set_by_the_user(hub, monkeypatch):
    monkeypatch.setattr(network, "_ours", False)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set in your environment"):
        pull("lab/toy")
    assert hub.asked == []


def hub_error(kind: str) -> Exception:
    error = getattr(huggingface_hub.errors, kind)
    return error.__new__(error)  # Their constructors want a response, and have changed.


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (hub_error("GatedRepoError"), ModelError, "asks you to accept its terms"),
        (hub_error("RepositoryNotFoundError"), ModelError, "the hub has no lab/toy"),
        (hub_error("RevisionNotFoundError"), ModelError, "the hub has no lab/toy"),
        (ConnectionError("no route to host\nmore"), NetworkError, "cannot be downloaded: no route to host$"),
    ],
)
def test_errors_of_the_hub_have_different_messages(hub, answer, kind, message):
    hub.answer = answer
    with pytest.raises(kind, match=message):
        pull("lab/toy")


def test_a_hub_model_without_safetensors_is_refused(hub, tmp_path):
    hub.answer = tmp_path
    with pytest.raises(ModelError, match="has no safetensors"):
        pull("lab/toy")


# Names that could be a path or a hub id


@pytest.mark.parametrize("origin", ["package", "hub"])
def test_a_local_path_is_not_taken_for_a_hub_id(tied, tmp_path, monkeypatch, origin):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copytree(tied, "models/llama")
    write_gguf(tied, tmp_path / "models" / "tiny.gguf")
    monkeypatch.setattr(fetch, "pull_from_hub", lambda *_: pytest.fail("went to the hub"))
    for name in ("models/llama", "models/tiny.gguf"):
        told = []
        assert pull(name, told.append, origin=origin) == resolve(name)
        assert told == [f"{name} is on this machine; a local model needs no pull"]


@pytest.mark.parametrize("name", ["models/lama", "model/llama"])
def test_a_misspelt_path_like_a_hub_id_gets_both_hints_and_a_suggestion(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert "is neither a folder here nor a model" in caught.value.message and "in the cache" in caught.value.message
    assert "Did you mean 'models/llama'?" in caught.value.message
    assert caught.value.hint == f"if it is on the hub: shepherd model pull {name}"


def test_a_misspelt_hub_id_gets_a_suggestion_from_the_cache(tmp_path, monkeypatch):
    here = SimpleNamespace(name="lab/sheep-1b")
    monkeypatch.setattr(hub_module, "cached_models", lambda: [here])
    with pytest.raises(ModelError, match="Did you mean 'lab/sheep-1b'"):
        resolve("lab/shep-1b")
