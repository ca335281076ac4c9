"""Reading of run directories: the folder of an existing run, and JSON objects in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import DataError, UsageError, did_you_mean


def open_run(path: str | Path, needs: str = "config.toml") -> Path:
    """The folder of an existing run. Raises UsageError, with the nearest name, when `needs` is not in it."""
    folder = Path(path)
    if not folder.is_dir():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
        raise UsageError(f"no run directory at {folder}.{near}", hint="give the folder that `shepherd run` printed")
    if not (folder / needs).exists():
        hint = f"shepherd resume {folder} continues a stopped run" if needs != "identity.json" else ""
        raise UsageError(f"{folder} has no {needs}: it is not a run directory, or the run did not get that far", hint)
    return folder


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file. Raises DataError, which names the file, where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint=_RESTORE) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_RESTORE) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint=_RESTORE) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a table, found {type(value).__name__}", hint=_RESTORE)
    return value


_RESTORE = "restore the file from a copy, or repeat the run"
