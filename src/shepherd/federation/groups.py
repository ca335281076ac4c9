"""Measures of a site's rows by category, as they may leave the site: sums and weights, of no small group.

>>> groups = {"flu": Group(Stat(90.0, 30.0), rows=12), "rare": Group(Stat(8.0, 2.0), rows=1)}
>>> shown(groups, least=10, names=True)  # the rare one is the difference of the total and "flu": both are in ""
(('', 98.0, 32.0, 13),)
>>> shown(groups, least=20, names=True)
()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from shepherd.types import Stat


class Group(NamedTuple):
    """The loss of some rows, and how many they are."""

    stat: Stat
    rows: int


def are_finite(groups: Mapping[str, Group]) -> bool:
    """Whether all losses are: a model can make them overflow."""
    return all(math.isfinite(group.stat.total) and math.isfinite(group.stat.weight) for group in groups.values())


def shown(
    groups: Mapping[str, Group], least: int, *, names: bool, instead: int = 0
) -> tuple[tuple[str, float, float, int], ...]:
    """(category, total, weight, rows) of what may leave the site, sorted; the group "" has the rows without a name.

    No group has fewer than `least` rows, "" included: else the smallest named one joins it. Nothing where all rows
    together are fewer. instead: stated in place of the number of rows, all in one group, whose sizes would add up to
    it.
    """
    names = names and not instead
    named = {name: group for name, group in sorted(groups.items()) if names and name and group.rows >= least}
    rest = [group for name, group in sorted(groups.items()) if name not in named]
    while named and 0 < sum(group.rows for group in rest) < least:
        rest.append(named.pop(min(named, key=lambda name: (named[name].rows, name))))
    found = [(name, float(g.stat.total), float(g.stat.weight), g.rows) for name, g in named.items()]
    if rest:
        total = sum((group.stat for group in rest), Stat())
        found.insert(0, ("", float(total.total), float(total.weight), sum(group.rows for group in rest)))
    if sum(rows for *_, rows in found) < least:
        return ()
    return tuple((*group[:3], instead or group[3]) for group in found)
