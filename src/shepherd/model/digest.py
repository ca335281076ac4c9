"""Digests of model folders: sha256 of the files, and one digest that identifies the base.

Half a gigabyte takes seconds to hash, so hashes are cached by path, size and modification time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import ModelError

MANIFEST = "MANIFEST.json"
SMALL = 2**28

# Written by the library that saved the file, not a property of the model.
_INCIDENTAL = ("transformers_version", "dtype", "torch_dtype", "name_or_path", "is_local")


def cache_root() -> Path:
    """The cache folder: $SHEPHERD_CACHE, $XDG_CACHE_HOME/shepherd or ~/.cache/shepherd."""
    if own := os.environ.get("SHEPHERD_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "shepherd"
    return Path.home() / ".cache" / "shepherd"


def write_atomic(path: Path, text: str) -> None:
    """Write `text` atomically: a reader sees the old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Hex sha256 of a file, not cached."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_all(paths: Iterable[Path]) -> dict[Path, str]:
    """{path: hex sha256}, cached by path, size and modification time."""
    memory_path = cache_root() / "hashes.json"
    try:
        memory = json.loads(memory_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        memory = {}
    if not isinstance(memory, dict):
        memory = {}
    found: dict[Path, str] = {}
    fresh: dict[str, list[int | str]] = {}
    for path in paths:
        key, status = str(path.resolve()), path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = memory.get(key)
        if isinstance(known, list) and len(known) == 3 and known[:2] == stamp:
            found[path] = known[2]
        else:
            found[path] = sha256(path)
            fresh[key] = [*stamp, found[path]]
    if fresh:
        kept = {key: value for key, value in memory.items() if os.path.exists(key)}
        with contextlib.suppress(OSError):  # A cache that cannot be written costs time, not correctness.
            write_atomic(memory_path, json.dumps(kept | fresh, indent=0))
    return found


def read_small(path: Path) -> str:
    """The text of a small file of a model or an adapter. Raises ModelError above 256 MiB or when it is unreadable.

    Callers check that it is a file, not an endless pipe or device. Links are followed: the hub's cache is made of them.
    """
    try:
        if path.stat().st_size > SMALL:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes, more than such a file can need")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="copy or pull the model again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises ModelError when it holds anything else."""
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="copy or pull the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} cannot be read: it is not a JSON object", hint="copy or pull the model again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that transformers loads, sorted by name.

    model.safetensors if it exists, else the files of the index, else all. Raises ModelError for an index that names
    anything but safetensors files of that folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        named = read_json(index).get("weight_map")
        names = list(named.values()) if isinstance(named, dict) else [None]
        safe: set[str] = set()
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"{index} names weights that are not safetensors files of its own folder",
                    hint="save the model with save_pretrained, which writes safetensors and their index",
                )
            safe.add(name)
        return [folder / name for name in sorted(safe)]
    return sorted(folder.glob("*.safetensors"))


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder that define its tokenizer, in a fixed order."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
    return [folder / name for name in names if (folder / name).is_file()]


def chat_template(folder: Path) -> str:
    """The chat template as text: its own file, or the entry in tokenizer_config.json, or an empty string."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return read_small(own)
    if config.is_file():
        template = read_json(config).get("chat_template")
        return template if isinstance(template, str) else json.dumps(template) if template else ""
    return ""


def model_digest(folder: Path) -> str:
    """Hex sha256 that identifies a base: weights, tokenizer, chat template and config.

    Incidental entries of the config (library version, default dtype) are excluded, so that two sites with different
    versions of transformers get the same digest.
    """
    parts = _parts(folder, [*weight_files(folder), *tokenizer_files(folder)])
    return _digest({**parts, "config": _digest(_settings(folder / "config.json"))})


def tokenizer_digest(folder: Path) -> str:
    """Hex sha256 of everything that maps text to token ids, including settings and special tokens in separate files.

    Incidental entries are excluded as in `model_digest`.
    """
    parts = _parts(folder, tokenizer_files(folder))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            settings = _settings(folder / name)
            settings.pop("chat_template", None)  # already covered by `_parts`
            parts[name] = _digest(settings)
    return _digest(parts)


def _parts(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """{name: sha256} of files and of the chat template."""
    template = hashlib.sha256(chat_template(folder).encode()).hexdigest()
    return {**{path.name: hash for path, hash in sha256_all(files).items()}, "chat template": template}


def _settings(path: Path) -> dict[str, Any]:
    """The content of a JSON file without incidental entries."""
    return {key: value for key, value in read_json(path).items() if key not in _INCIDENTAL and key[:1] != "_"}


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, facts: Mapping[str, str]) -> None:
    """Write MANIFEST.json: size in bytes and sha256 of every file of `folder`, and `facts` about it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    hashes = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    write_atomic(folder / MANIFEST, json.dumps({**facts, "files": hashes}, indent=1))


def read_manifest(folder: Path) -> dict:
    """The manifest of a cache entry, or {} when it is missing or unreadable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else {}


def damage(folder: Path) -> str:
    """The first difference of a cache entry from its manifest, e.g. "model.safetensors is missing"; "" without one."""
    manifest = read_manifest(folder)
    if not manifest:
        return f"{MANIFEST} is missing or cannot be read"
    for name, noted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != noted["bytes"]:
            return f"{name} has {path.stat().st_size} bytes where {noted['bytes']} were written"
    hashes = sha256_all(folder / name for name in manifest["files"])
    changed = [path.name for path, hash in hashes.items() if hash != manifest["files"][path.name]["sha256"]]
    return f"{', '.join(changed)} changed since it was written" if changed else ""
