"""Files that would run code, leave their folder, or never end: each is refused with a clear error, nothing is touched.

Every pickle here creates the canary when it is loaded. A test that finds the canary has found a hole.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from forged import TASK
from shepherd.data.partition import divide, load_partition
from shepherd.data.sources import load_examples
from shepherd.errors import ShepherdError
from shepherd.experiment.rows import prepare_rows
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.types import ClientFailure
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Sealed

pytestmark = pytest.mark.timeout(60)


class Bomb:
    """A pickle of it creates a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path: Path):
    """A path that must not exist when the test is over."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of a hostile file was run"


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Bomb(canary))


def torch_zip(canary: Path) -> bytes:
    out = io.BytesIO()
    torch.save({"weight": Bomb(canary)}, out)
    return out.getvalue()


def npz(canary: Path) -> bytes:
    out = io.BytesIO()
    np.savez(out, weight=np.array([Bomb(canary)], dtype=object))
    return out.getvalue()


def zip_bomb(canary: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"../../../..{canary}", b"\0" * 10_000_000)
    return out.getvalue()


def test_the_bombs_are_live(tmp_path):
    """Without this, a canary that never could be touched would prove nothing."""
    for number, make in enumerate((pickled, torch_zip, npz)):
        canary = tmp_path / f"{number}"
        data = io.BytesIO(make(canary))
        match number:
            case 0:
                pickle.load(data)
            case 1:
                torch.load(data, weights_only=False)
            case 2:
                np.load(data, allow_pickle=True)["weight"]
        assert canary.exists()


# Adapters

CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1.0, "target_modules": ["q"]}
PAIR = {f"base_model.model.q.lora_{part}.weight": np.ones((1, 1), np.float32) for part in "AB"}


def an_adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(PAIR, folder / "adapter_model.safetensors")
    return folder


def weights_of(make: Callable[[Path], bytes]):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(make(canary))

    return spoil


def instead(name: str, make: Callable[[Path], bytes] = pickled):
    """Only weights in another format, which peft would read."""

    def spoil(folder: Path, canary: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(make(canary))

    return spoil


def linked(name: str, target: str):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        (folder.parent / "secret").write_bytes(pickled(canary))
        (folder / name).symlink_to(folder.parent / "secret" if target == "secret" else target)

    return spoil


def piped(name: str):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def named(name: str):
    def spoil(folder: Path, canary: Path) -> None:
        tensors = {key.replace(".q.", f".{name}."): array for key, array in PAIR.items()}
        save_file(tensors, folder / "adapter_model.safetensors")

    return spoil


def header(text: str, length: int | None = None):
    def spoil(folder: Path, canary: Path) -> None:
        raw = text.encode()
        (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length or len(raw)) + raw)

    return spoil


def configured(text: str):
    return lambda folder, canary: (folder / "adapter_config.json").write_text(text)


ADAPTERS = {
    "a pickle named .safetensors": weights_of(pickled),
    "a torch file named .safetensors": weights_of(torch_zip),
    "an npz named .safetensors": weights_of(npz),
    "a zip bomb named .safetensors": weights_of(zip_bomb),
    "only adapter_model.bin": instead("adapter_model.bin"),
    "only adapter_model.pt": instead("adapter_model.pt", torch_zip),
    "only adapter_model.npz": instead("adapter_model.npz", npz),
    "a link to a pickle outside": linked("adapter_model.safetensors", "secret"),
    "a link to itself": linked("adapter_model.safetensors", "adapter_model.safetensors"),
    "a link to a device without end": linked("adapter_config.json", "/dev/zero"),
    "weights that are such a link": linked("adapter_model.safetensors", "/dev/zero"),
    "a pipe that nobody writes to": piped("adapter_model.safetensors"),
    "a config that is a pipe": piped("adapter_config.json"),
    "a tensor named for a path": named("../../../tmp/x"),
    "a tensor named for an absolute path": named("/etc/passwd"),
    "a tensor with a line break in its name": named("q\nx"),
    "a header of 2⁶⁰ bytes": header("{}", 2**60),
    "a tensor of 2⁶² values": header(
        json.dumps({"q": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**63]}})
    ),
    "a config nested 100,000 deep": configured("[" * 100_000),
    "a config that is a pickle": lambda folder, canary: (folder / "adapter_config.json").write_bytes(pickled(canary)),
    "a config of another method with code": configured('{"peft_type": "CUSTOM", "auto_mapping": {"x": "evil.py"}}'),
}


def refused(call: Callable[[], object]) -> str:
    """The message of the error, which must be one of ours and must not say that it is a bug."""
    with pytest.raises(ShepherdError) as caught:
        call()
    assert caught.value.exit_code != 1 and 10 < len(caught.value.message) < 2000
    return caught.value.message


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_hostile_adapter_is_refused_and_runs_nothing(kind, tmp_path, canary):
    folder = an_adapter(tmp_path / "adapter")
    assert load_adapter(folder).r == 1
    ADAPTERS[kind](folder, canary)
    assert str(folder) in refused(lambda: load_adapter(folder))


def test_code_next_to_an_adapter_is_not_run(tmp_path, canary):
    folder = an_adapter(tmp_path / "adapter")
    (folder / "adapter_model.bin").write_bytes(pickled(canary))
    (folder / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
    assert load_adapter(folder).r == 1


# Base models


def touching(canary: Path) -> str:
    """A module that touches the canary when it is imported, and holds every class that an auto_map could name."""
    classes = "".join(f"class {name}: pass\n" for name in ("EvilConfig", "EvilModel", "EvilTokenizer"))
    return f"open({str(canary)!r}, 'w').close()\n{classes}"


def auto_map(file: str, entries: dict[str, object], **changes: object):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "evil.py").write_text(touching(canary))
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**document, "auto_map": entries, **changes}))

    return spoil


MODEL_CODE = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}


def base_weights(make: Callable[[Path], bytes], name: str = "model.safetensors"):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(make(canary))

    return spoil


def index_naming(name: str):
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "pytorch_model.bin").write_bytes(torch_zip(canary))
        target = name.replace("OUTSIDE", str(folder.parent / "outside.safetensors"))
        index = {"metadata": {}, "weight_map": {"lm_head.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


BASES = {
    "a model type with custom code": auto_map("config.json", MODEL_CODE, model_type="evil"),
    "a pickle named model.safetensors": base_weights(pickled),
    "a torch file named model.safetensors": base_weights(torch_zip),
    "a zip bomb named model.safetensors": base_weights(zip_bomb),
    "only pytorch_model.bin": base_weights(torch_zip, "pytorch_model.bin"),
    "an index that names a pickle": index_naming("pytorch_model.bin"),
    "an index that leaves the folder": index_naming("../outside.safetensors"),
    "an index that names an absolute path": index_naming("OUTSIDE"),
    "a config that is a link to a device": linked("config.json", "/dev/zero"),
    "a tokenizer that is a pickle": lambda folder, canary: (folder / "tokenizer.json").write_bytes(pickled(canary)),
    "weights that are a pipe": piped("model.safetensors"),
}


@pytest.fixture
def base_folder(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "base"))


@pytest.mark.parametrize("kind", BASES)
def test_a_hostile_base_is_refused_and_runs_nothing(kind, base_folder, canary):
    BASES[kind](base_folder, canary)
    assert str(base_folder) in refused(lambda: load_base(str(base_folder), device="cpu", dtype="float32"))


HARMLESS = {
    "code for a type that transformers knows": auto_map("config.json", MODEL_CODE),
    "code for the tokenizer": auto_map("tokenizer_config.json", {"AutoTokenizer": ["evil.EvilTokenizer", None]}),
    "a pickle beside the weights": lambda folder, canary: (folder / "pytorch_model.bin").write_bytes(pickled(canary)),
    "code for generation": lambda folder, canary: (
        (folder / "custom_generate").mkdir(),
        (folder / "custom_generate" / "generate.py").write_text(touching(canary)),
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_code_that_comes_with_a_known_model_is_not_run(kind, base_folder, canary):
    HARMLESS[kind](base_folder, canary)
    assert load_base(str(base_folder), device="cpu", dtype="float32").model.config.model_type == "llama"


def test_a_chat_template_reaches_no_python(base_folder, canary, small_config):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mknod('CANARY') }}"
    (base_folder / "chat_template.jinja").write_text(template.replace("CANARY", str(canary)))
    base = load_base(str(base_folder), device="cpu", dtype="float32")
    refused(lambda: prepare_rows(small_config("data.template=chat"), base.tokenizer))


@pytest.mark.parametrize("make", [pickled, torch_zip, zip_bomb, lambda canary: b"GGUF" + pickled(canary)])
def test_a_hostile_gguf_file_is_refused_and_runs_nothing(make, tmp_path, canary):
    path = tmp_path / "model.gguf"
    path.write_bytes(make(canary))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": MODEL_CODE}))
    (tmp_path / "evil.py").write_text(touching(canary))
    assert str(path) in refused(lambda: load_base(str(path), device="cpu", dtype="float32"))


# Data

ROW = {"instruction": "What is two and two?", "response": "Four."}


def parquet_bomb(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 10**5])
    pq.write_table(pa.table({"instruction": text, "response": text}), path, compression="zstd")
    assert path.stat().st_size < 1000


DATA: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "a pickle named .jsonl": ("rows.jsonl", lambda path, canary: path.write_bytes(pickled(canary))),
    "a pickle named .json": ("rows.json", lambda path, canary: path.write_bytes(pickled(canary))),
    "a pickle named .csv": ("rows.csv", lambda path, canary: path.write_bytes(pickled(canary))),
    "a pickle named .parquet": ("rows.parquet", lambda path, canary: path.write_bytes(pickled(canary))),
    "a zip bomb named .csv": ("rows.csv", lambda path, canary: path.write_bytes(zip_bomb(canary))),
    "an npz": ("rows.npz", lambda path, canary: path.write_bytes(npz(canary))),
    "a pickle": ("rows.pkl", lambda path, canary: path.write_bytes(pickled(canary))),
    "a torch file": ("rows.pt", lambda path, canary: path.write_bytes(torch_zip(canary))),
    "a pipe": ("rows.jsonl", lambda path, canary: os.mkfifo(path)),
    "a device": ("rows.jsonl", lambda path, canary: path.symlink_to("/dev/zero")),
    "a link to itself": ("rows.jsonl", lambda path, canary: path.symlink_to(path)),
    "JSON nested 100,000 deep": ("rows.json", lambda path, canary: path.write_text("[" * 100_000)),
    "a number of 10,000 digits": ("rows.jsonl", lambda path, canary: path.write_text('{"a": ' + "9" * 10_000 + "}")),
    "a Parquet file of 820 bytes that unpacks to 4 GB": ("rows.parquet", lambda path, canary: parquet_bomb(path)),
}


@pytest.mark.parametrize("kind", DATA)
def test_hostile_data_are_refused_and_run_nothing(kind, tmp_path, canary):
    name, write = DATA[kind]
    write(tmp_path / name, canary)
    assert name in refused(lambda: load_examples(str(tmp_path / name)))


NAMES = ("../../evil", "/etc/passwd", "..", ".hidden", "a/../b", "..\\evil", "a\nb", "\x1b[2J", "", "x" * 300, "é")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_cannot_be_named_for_a_path(name, tmp_path, monkeypatch):
    def safe(client: str) -> bool:
        return client.replace("-", "").replace(".", "").isalnum() and client.isascii() and len(client) <= 64

    rows = [ROW | {"instruction": f"{ROW['instruction']} {i}", "category": name} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    examples = load_examples(str(tmp_path / "rows.json")).examples
    (client,) = divide(examples, "by_key", {}, 0, 0).clients
    assert safe(client), "named after a category, made safe"
    (tmp_path / "evil_dealer.py").write_text(
        f"def deal(): return lambda rows, n, rng: {{{name!r}: [r.id for r in rows]}}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_dealer", raising=False)
    (client,) = divide(examples, "evil_dealer:deal", {}, 0, 0).clients
    assert safe(client), "whatever a partitioner calls it"
    saved = {"clients": {name: ["rows:1"]}, "dataset_digest": "", "held_out": [], "settings": {}}
    (tmp_path / "partition.json").write_text(json.dumps(saved))
    assert "client" in refused(lambda: load_partition(tmp_path / "partition.json"))


def test_a_partition_that_is_a_pickle_is_refused(tmp_path, canary):
    (tmp_path / "partition.json").write_bytes(pickled(canary))
    assert "partition.json" in refused(lambda: load_partition(tmp_path / "partition.json"))


# Messages


@pytest.mark.parametrize("make", [pickled, torch_zip, npz, zip_bomb])
@pytest.mark.parametrize("framed", [False, True])
def test_a_hostile_message_is_refused_and_runs_nothing(make, framed, canary):
    data = make(canary)
    answer = Gate().admit(Sealed("a", struct.pack("<Q", len(data)) + data if framed else data), TASK)
    assert isinstance(answer, ClientFailure) and answer.code in ("format", "too-large")
