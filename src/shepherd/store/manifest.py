"""Manifests: the files of a folder by name, size and sha256; any deviation is damage, with the name of the file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.store.disk import Disk

MANIFEST, SCHEMA = "MANIFEST.json", 1
_LARGEST_MANIFEST = 16 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*")  # left by desktops that displayed the folder


def seal_folder(disk: Disk, folder: Path) -> None:
    """Write the manifest of a folder other than a round: all files below it, with sha256 and size."""
    files = {
        path.relative_to(folder).as_posix(): entry_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    disk.write(folder / MANIFEST, encode({"schema": SCHEMA, "files": files}))


def check_sealed(folder: Path, below: str = "") -> None:
    """Verify a folder sealed by `seal_folder`, or of its files those below one of its folders.

    Raises ValueError that names the first damaged file.
    """
    if plain_file(folder / MANIFEST).st_size > _LARGEST_MANIFEST:
        raise Damage(f"{MANIFEST} is too large")
    data = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(data)
        whole = encode({key: value for key, value in manifest.items() if key != "sha256"}) == data
        files = {
            name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in manifest["files"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        whole = False
    if not whole:
        raise Damage(f"{MANIFEST} is not what was written")
    for name, entry in files.items():
        if not below or name.startswith(f"{below}/"):
            check_file(folder, name, entry)


class Damage(ValueError):
    """The reason why a round or a sealed folder is not valid."""


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest, which ends with the sha256 of everything before it."""
    return _json({**manifest, "sha256": hashlib.sha256(_json(manifest)).hexdigest()})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Read a round's manifest, checked in itself, and its sha256."""
    mode = os.lstat(folder).st_mode
    if not stat.S_ISDIR(mode):
        raise Damage("is a symbolic link" if stat.S_ISLNK(mode) else "is not a folder")
    if plain_file(folder / MANIFEST).st_size > _LARGEST_MANIFEST:
        raise Damage(f"{MANIFEST} is too large")
    data = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise Damage(f"{MANIFEST} is not JSON") from None
    if isinstance(manifest, dict) and isinstance(manifest.get("schema"), int) and manifest["schema"] > SCHEMA:
        raise Damage(f"was written by a newer version (schema {manifest['schema']}, this one knows {SCHEMA})")
    try:
        whole = encode({key: value for key, value in manifest.items() if key != "sha256"}) == data
        known = manifest["schema"] == SCHEMA and isinstance(manifest["facts"], dict)
        known &= _is_count(manifest["round"]) and _is_count(manifest["after"]) and isinstance(manifest["prev"], str)
        for name, entry in manifest["files"].items():
            known &= _is_count(entry["bytes"]) and isinstance(entry["sha256"], str)
            if not FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise Damage(f"{MANIFEST} names a file that no round has: {name!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, Damage):
            raise
        whole = known = False
    if not whole or not known:
        raise Damage(f"{MANIFEST} is not what was written")
    return manifest, hashlib.sha256(data).hexdigest()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def plain_file(file: Path, name: str = "") -> os.stat_result:
    """The status of a regular file. Raises Damage for links, folders, devices and missing files."""
    name = name or file.name
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        raise Damage(f"{name} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise Damage(f"{name} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'not a plain file'}")
    return found


def entry_of(file: Path) -> dict[str, Any]:
    """The entry of a file in a manifest."""
    return {"sha256": _digest(file), "bytes": file.stat().st_size}


def check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Raise Damage where the file is not the one of its entry."""
    size = plain_file(folder / name, name).st_size
    if size != entry["bytes"]:
        raise Damage(f"{name} has {size} bytes, not {entry['bytes']}")
    if _digest(folder / name) != entry["sha256"]:
        raise Damage(f"{name} is not what was written (sha256)")


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
