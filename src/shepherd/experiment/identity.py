"""The identity of a run: it is resumed only with the same settings, data, base, tokenizer, code and machine.

identity.json is written when a run starts. What differs when it is resumed is shown key by key, then and now. Its "run"
is the random id that messages of the run carry: two runs may have one name.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shepherd import _version
from shepherd._version import __version__
from shepherd.arms import arms
from shepherd.clients.personal.methods import personalizations
from shepherd.clients.selection import selections
from shepherd.config import Config
from shepherd.data.partition import partition_digest
from shepherd.data.partitioners import partitioners
from shepherd.data.sources import digest
from shepherd.evaluation.text import metrics
from shepherd.experiment.audit_canaries import canaries_digest
from shepherd.experiment.rows import FederatedData
from shepherd.model.base import Base
from shepherd.registry import Registry
from shepherd.server.aggregators import aggregators
from shepherd.server.composition import REGISTRIES
from shepherd.server.methods import build_method, methods
from shepherd.server.optimizer import optimizers

FILE = "identity.json"
_FREE = {
    "run", "config.run.out", "config.run.name", "config.checkpoints.keep", "config.run.patience",
    "config.federation.updates_in_memory_mib",
}  # fmt: skip
"""What may differ when a run goes on: its id, which is its own, and settings that move no number."""


def identity(config: Config, base: Base, rows: FederatedData) -> dict[str, Any]:
    """All that the numbers of a run depend on: settings, digests, versions, threads, device and processor."""
    import numpy
    import peft
    import safetensors
    import tokenizers
    import transformers

    return {
        "config": config.model_dump(mode="json"),
        "base": base.digest,
        "tokenizer": base.tokenizer_digest,
        "data": rows.dataset.digest,
        "held_out": held_out_digest(rows),
        "partition": partition_digest(rows.partition),
        **({"day": rows.day} if rows.day else {}),
        **({"canaries": canaries_digest(rows.canaries)} if rows.canaries else {}),
        "trace": _trace_digest(config),
        "shepherd": __version__,
        "code": code_digest(),
        "plugins": plugin_digests(config),
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (numpy, torch, transformers, peft, tokenizers, safetensors)},
        "threads": torch.get_num_threads(),
        "device": str(base.device),
        "processor": processor_of(base.device),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each key that differs: `config.training.learning_rate: 0.0005 then, 0.001 now`."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{key}: {_shown(before.get(key))} then, {_shown(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _FREE
    ]


def held_out_digest(rows: FederatedData) -> str:
    """sha256 over the contents of the rows that every arm is measured on."""
    return digest(rows.examples[row.id] for row in rows.held_out)


@functools.cache
def code_digest() -> str:
    """sha256 over the sources of this package, names and contents: a version alone does not distinguish two builds."""
    root = Path(_version.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def plugin_digests(config: Config) -> dict[str, str]:
    """{module: sha256 of its file} of what the recipe names from outside this package; what they import is left out.

    Those are a `module:function`, and a name that a plug-in or a module of the user has registered.
    """
    tables = config.model_dump(mode="json", include={"partition", "selection", "federation", "method", "server",
                                                     "personalization"})  # fmt: skip
    named = list(_names(config))
    values = [*(value for _, value in _flat(tables)), *(name for _, name in named)]
    modules = {value.partition(":")[0] for value in values if isinstance(value, str) and ":" in value}
    modules |= {registry.get(name).__module__ for registry, name in named if ":" not in name}
    outside = sorted(module for module in modules if module.partition(".")[0] != __name__.partition(".")[0])
    files = {module: getattr(sys.modules.get(module), "__file__", None) for module in outside}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


def _names(config: Config) -> Iterator[tuple[Registry, str]]:
    """(registry, name in it, or module:function) of what the recipe chooses, but for rows, which have a digest."""
    pieces = build_method(config.federation.method, config.method.options).specs
    chosen: list[tuple[Registry, Any]] = [
        (partitioners, config.partition.name),
        (selections, config.selection.name),
        (selections, config.selection.options.get("then")),
        (methods, config.federation.method),
        (aggregators, config.federation.aggregator),
        (optimizers, config.server.optimizer),
        (personalizations, config.personalization.name),
        *((metrics, entry) for entry in config.evaluation.metrics),
        *((arms, name) for name in config.evaluation.arms),
        *((REGISTRIES[kind], spec) for kind, spec in pieces.items()),
    ]
    for registry, spec in chosen:
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        if isinstance(name, str) and name:
            yield registry, name


def processor_of(device: torch.device) -> str:
    """The name of a GPU, or the instruction set that PyTorch uses of a CPU."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()  # torch names no other


def _trace_digest(config: Config) -> str | None:
    """sha256 of the file of selection.trace; None without one."""
    trace = config.selection.options.get("trace")
    return hashlib.sha256(Path(trace).read_bytes()).hexdigest() if trace and Path(trace).is_file() else None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text  # digests
