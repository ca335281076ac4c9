"""The arms that a report compares, each with a style of the charts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle

from shepherd.arms import Arm, registered, shown

FREE_STYLES = ("s4", "s5", "s6")
"""Styles of the charts that look like none of the arms with a style."""


def every_arm(names: Iterable[str] = ()) -> dict[str, Arm]:
    """All registered arms, and those of `names` that are not, in the order of every table and picture.

    An arm without a style takes the next free one.
    """
    free = cycle(FREE_STYLES)
    found = shown({*registered(), *names})
    return {name: arm if arm.style else replace(arm, style=next(free)) for name, arm in found.items()}


def rivals(names: Iterable[str] = ()) -> dict[str, Arm]:
    """The same without the federated arm, which is compared with them."""
    return {name: arm for name, arm in every_arm(names).items() if name != "federated"}
