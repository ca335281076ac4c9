"""Models from the hub: its local cache, and downloads into it on request."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from shepherd import network
from shepherd.errors import ModelError, NetworkError, did_you_mean
from shepherd.model import catalogue
from shepherd.model.catalogue import ModelEntry, Packaged
from shepherd.model.licence import licence_of

Progress = Callable[[str], None]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*"]
_HUB_SKIPPED = ["*/*"]


def not_here(name: str, why: str, revision: str = "", near: str | None = None) -> Path:
    """Raise ModelError with the command that downloads the model.

    `near`: a similar name, or "" without one; given where the name may also be a path.
    """
    option = f" --revision {revision}" if revision else ""
    raise ModelError(
        f"{name!r} {why}, and nothing is downloaded unasked.{near or ''}",
        ("if it is on the hub: " if near is not None else "") + f"shepherd model pull {name}{option}",
    )


def _folders_like(path: str) -> list[str]:
    """The siblings of `path`, and folders of the same name one level below the working directory."""
    given = Path(path)
    return [str(found) for found in (*given.parent.glob("*"), *Path().glob(f"*/{given.name}")) if found.is_dir()]


def hub_snapshot(hub_id: str, revision: str) -> Path:
    """The folder of a model in the hub's local cache. Raises ModelError when it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # With the patterns of the pull: without them, files that a pull skips would count as missing.
        found = snapshot_download(
            hub_id, revision=revision or None, local_files_only=True,
            allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED,
        )  # fmt: skip
    except HFValidationError as error:
        raise ModelError(f"not a hub id: {error}", hint="a hub id looks like org/name") from error
    except OSError:  # LocalEntryNotFoundError is a FileNotFoundError.
        near = did_you_mean(
            hub_id, [*_folders_like(hub_id), *catalogue.BUILTIN, *(entry.name for entry in cached_models())]
        )
        return not_here(hub_id, "is neither a folder here nor a model in the cache", revision, near)
    folder = Path(found)
    if (folder / "adapter_config.json").is_file():
        return folder  # an adapter: refused by the checks of the folder
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return not_here(hub_id, "is only partly in the cache", revision)
    return folder


def from_hub(packaged: Packaged) -> Path | None:
    """The folder of a built-in model that was pulled from the hub, else None."""
    try:
        return hub_snapshot(packaged.hub_id, "")
    except ModelError:
        return None


def pull_from_hub(hub_id: str, revision: str, report: Progress) -> Path:
    """Download a model from the hub. Raises NetworkError or ModelError."""
    with network.opened():
        return _download_from_hub(hub_id, revision, report)


def _download_from_hub(hub_id: str, revision: str, report: Progress) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise NetworkError(
            f"{hub_id} cannot be downloaded: HF_HUB_OFFLINE is set in your environment", hint="unset HF_HUB_OFFLINE"
        )
    report(f"downloading {hub_id} from the hub")
    where = f"{hub_id} at revision {revision!r}" if revision else hub_id
    try:
        found = huggingface_hub.snapshot_download(
            hub_id, revision=revision or None, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED
        )
    except errors.GatedRepoError as error:
        raise ModelError(f"{hub_id} asks you to accept its terms", f"https://huggingface.co/{hub_id}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(f"the hub has no {where}, or you may not see it", "check the name; `hf auth login`") from error
    except errors.HFValidationError as error:
        raise ModelError(f"not a hub id: {error}", hint="a hub id looks like org/name") from error
    except Exception as error:  # The HTTP library, and with it the errors, differs between versions of the hub client.
        first = str(error).strip().split("\n")[0]
        raise NetworkError(
            f"{where} cannot be downloaded: {first}",
            hint="check the network and HF_ENDPOINT; or copy the model's folder here and set model.base to its path",
        ) from error
    if not any(Path(found).glob("*.safetensors")):
        raise ModelError(f"{where} has no safetensors weights", hint="other formats can hold code, and are not loaded")
    return Path(found)


def cached_models() -> list[ModelEntry]:
    """Models with a config and safetensors in the hub's local cache, sorted by hub id."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except errors.CacheNotFound:
        return []
    found = []
    for repository in sorted(cache.repos, key=lambda repository: repository.repo_id):
        for kept in repository.revisions:
            names = {file.file_name for file in kept.files}
            if repository.repo_type == "model" and "config.json" in names and any("safetensors" in n for n in names):
                path = Path(kept.snapshot_path)
                found.append(ModelEntry(repository.repo_id, path, kept.size_on_disk, licence_of(path), "hub"))
    return found
