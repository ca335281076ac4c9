"""What a run was made with: a run goes on only with the same settings, data, base, code and machine.

identity.json is written when a run starts. What differs when it is resumed is shown key by key, then and now.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shepherd import __version__
from shepherd.config import Config

FILE = "identity.json"
_FREE = {
    "config.run.out", "config.run.name", "config.checkpoints.keep", "config.run.patience",
    "config.federation.updates_in_memory_mib",
}  # fmt: skip
"""Settings that a run may go on with changed: they move no number."""


def identity(config: Config, base_digest: str, data_digest: str, partition_digest: str, device: str) -> dict[str, Any]:
    """All that the numbers of a run depend on: settings, digests, versions, threads, device and processor."""
    import numpy
    import torch
    import transformers

    return {
        "config": config.model_dump(mode="json"),
        "base": base_digest,
        "data": data_digest,
        "partition": partition_digest,
        "shepherd": __version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
        "processor": torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each key that differs: `config.training.learning_rate: 0.0005 then, 0.001 now`."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{key}: {_shown(before.get(key))} then, {_shown(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _FREE
    ]


@functools.cache
def code_digest() -> str:
    """sha256 over the sources of this package, names and contents: a version alone does not tell two builds apart."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text  # digests
