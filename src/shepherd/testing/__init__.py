"""The promises of the product's parts, as functions that anyone can call on a part of their own.

    from shepherd.testing import check_aggregator
    check_aggregator(median)           # raises AssertionError with the promise that is broken

Each takes a registered name, a factory or the value that it makes, and options; builds small inputs from a fixed seed
and raises AssertionError with the promise in words, the name and the sizes. The product's own tests call them for every
name in the registries. Add a promise in the file of its part. Only `check_engine` loads PyTorch, when it is called.
"""

from __future__ import annotations

from shepherd.testing.aggregators import check_aggregator
from shepherd.testing.engines import check_engine
from shepherd.testing.methods import check_method
from shepherd.testing.metrics import check_metric
from shepherd.testing.partitioners import check_partitioner
from shepherd.testing.selections import check_selection

__all__ = [
    "check_aggregator",
    "check_engine",
    "check_method",
    "check_metric",
    "check_partitioner",
    "check_selection",
]
