"""Shepherd: federated instruction tuning of language models.

    import shepherd
    run = shepherd.run(shepherd.load_config("demo"))
    print(run.summary["arms"])

Importing this package does not import torch; the first function that needs it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shepherd._version import __version__ as __version__

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.errors import ShepherdError
    from shepherd.experiment.pipeline import Run
    from shepherd.experiment.run import resume, run
    from shepherd.recipe import load as load_config
    from shepherd.server.aggregators import aggregators


__all__ = ["Config", "Run", "ShepherdError", "aggregators", "load_config", "resume", "run"]

_HOMES = {
    "Config": ("shepherd.config", "Config"),
    "load_config": ("shepherd.recipe", "load"),
    "ShepherdError": ("shepherd.errors", "ShepherdError"),
    "Run": ("shepherd.experiment.pipeline", "Run"),
    "run": ("shepherd.experiment.run", "run"),
    "aggregators": ("shepherd.server.aggregators", "aggregators"),
    "resume": ("shepherd.experiment.run", "resume"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shepherd' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names: those that are imported at their first use, too, and none of the package's modules."""
    return sorted([*__all__, "__doc__", "__version__"])
