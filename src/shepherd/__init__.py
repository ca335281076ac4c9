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
    from shepherd.clients.personal.methods import personalizations
    from shepherd.clients.selection import selections
    from shepherd.config import Config
    from shepherd.data.builtins import datasets
    from shepherd.data.formats import formats
    from shepherd.data.loading import load_dataset, partition
    from shepherd.data.partitioners import partitioners
    from shepherd.errors import ShepherdError, ShepherdWarning
    from shepherd.evaluation.metrics import Answer, Metric
    from shepherd.evaluation.text import metrics
    from shepherd.experiment.opened_run import Run, evaluate, load_tuned, open_run
    from shepherd.experiment.run import resume, run
    from shepherd.experiment.simulate import simulate
    from shepherd.experiment.simulation import Round, Simulation
    from shepherd.recipe import load as load_config
    from shepherd.report import Comparison, compare
    from shepherd.round import Engine
    from shepherd.server.aggregators import aggregators
    from shepherd.server.methods import methods
    from shepherd.server.optimizer import optimizers as server_optimizers
    from shepherd.store.records import RoundRecord
    from shepherd.types import Adapter, ClientFailure, ClientUpdate, Example, Partition
    from shepherd.updates.transforms import transforms

_HOMES = {
    "Adapter": ("shepherd.types", "Adapter"),
    "Answer": ("shepherd.evaluation.metrics", "Answer"),
    "ClientFailure": ("shepherd.types", "ClientFailure"),
    "ClientUpdate": ("shepherd.types", "ClientUpdate"),
    "Comparison": ("shepherd.report", "Comparison"),
    "Config": ("shepherd.config", "Config"),
    "Engine": ("shepherd.round", "Engine"),
    "Example": ("shepherd.types", "Example"),
    "Metric": ("shepherd.evaluation.metrics", "Metric"),
    "Partition": ("shepherd.types", "Partition"),
    "Round": ("shepherd.experiment.simulation", "Round"),
    "RoundRecord": ("shepherd.store.records", "RoundRecord"),
    "Run": ("shepherd.experiment.opened_run", "Run"),
    "ShepherdError": ("shepherd.errors", "ShepherdError"),
    "ShepherdWarning": ("shepherd.errors", "ShepherdWarning"),
    "Simulation": ("shepherd.experiment.simulation", "Simulation"),
    "aggregators": ("shepherd.server.aggregators", "aggregators"),
    "compare": ("shepherd.report", "compare"),
    "datasets": ("shepherd.data.builtins", "datasets"),
    "evaluate": ("shepherd.experiment.opened_run", "evaluate"),
    "formats": ("shepherd.data.formats", "formats"),
    "load_config": ("shepherd.recipe", "load"),
    "load_dataset": ("shepherd.data.loading", "load_dataset"),
    "load_tuned": ("shepherd.experiment.opened_run", "load_tuned"),
    "methods": ("shepherd.server.methods", "methods"),
    "metrics": ("shepherd.evaluation.text", "metrics"),
    "open_run": ("shepherd.experiment.opened_run", "open_run"),
    "partition": ("shepherd.data.loading", "partition"),
    "partitioners": ("shepherd.data.partitioners", "partitioners"),
    "personalizations": ("shepherd.clients.personal.methods", "personalizations"),
    "resume": ("shepherd.experiment.run", "resume"),
    "run": ("shepherd.experiment.run", "run"),
    "selections": ("shepherd.clients.selection", "selections"),
    "server_optimizers": ("shepherd.server.optimizer", "optimizers"),
    "simulate": ("shepherd.experiment.simulate", "simulate"),
    "transforms": ("shepherd.updates.transforms", "transforms"),
}
"""Public name -> (the module that defines it, its name there)."""

__all__ = [
    "Adapter",
    "Answer",
    "ClientFailure",
    "ClientUpdate",
    "Comparison",
    "Config",
    "Engine",
    "Example",
    "Metric",
    "Partition",
    "Round",
    "RoundRecord",
    "Run",
    "ShepherdError",
    "ShepherdWarning",
    "Simulation",
    "aggregators",
    "compare",
    "datasets",
    "evaluate",
    "formats",
    "load_config",
    "load_dataset",
    "load_tuned",
    "methods",
    "metrics",
    "open_run",
    "partition",
    "partitioners",
    "personalizations",
    "resume",
    "run",
    "selections",
    "server_optimizers",
    "simulate",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shepherd' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names: those that are imported at their first use, too, and none of the package's modules."""
    return sorted([*__all__, "__doc__", "__version__"])
