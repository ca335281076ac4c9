"""The promises of the product's parts, as functions that anyone can call on a part of their own.

    from shepherd.testing import check_aggregator
    check_aggregator(median)           # raises AssertionError with the promise that is broken

Each takes the registered factory (or the value that it makes), builds small inputs from a fixed seed and raises
AssertionError with the promise in words. The product's own tests call them for every name in the registries. Add a
promise in the file of its part.
"""

from __future__ import annotations

from shepherd.testing.aggregators import check_aggregator

__all__ = ["check_aggregator"]
