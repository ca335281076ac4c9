"""The arms that a report compares: their names on a page, their order, and whether an arm is one model per client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ArmNames:
    """How a page names one arm: `title` on its card, `label` in sentences and pictures, `spent` in the budget.

    per_client: the arm is one model per client, and its figures are means over those clients.
    """

    title: str
    label: str
    spent: str
    per_client: bool = False

    @property
    def column(self) -> str:
        """The heading of a column of its losses."""
        return self.label.capitalize()


ARMS: Mapping[str, ArmNames] = {
    "base": ArmNames("Base model", "base", "Base model"),
    "local": ArmNames("Each client alone", "mean alone", "Clients alone, together", per_client=True),
    "federated": ArmNames("Federated", "federated", "Federated"),
    "centralised": ArmNames("Centralised", "centralised", "Centralised"),
}
"""The arms in the order in which every table and picture shows them. A key is also a style of the charts."""

RIVALS = tuple(arm for arm in ARMS if arm != "federated")
"""The arms that the federated one is compared with."""
