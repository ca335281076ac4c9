"""An arm: one of the models that a run compares on the same held-out rows, as in a clinical trial.

    @arms
    def first_client() -> Arm:
        \"\"\"One model on the rows of the first client.\"\"\"

        def train(setup: Setup) -> Any:
            rows = setup.clients[min(setup.clients)]
            return setup.train_one(rows, *setup.share(len(rows)))

        return Arm(train=train)

The name of the factory is that of the arm: in evaluation.arms, in summary.json and the journal, and of its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shepherd.registry import Registry

COMPARED = ("base", "federated")
"""The arms that every run has: all others are compared with them."""

Row = Any
"""A tokenized row; an arm chooses among rows and does not look into them."""


class Setup(Protocol):
    """What a baseline trains with: the rows and the budget of a run, and its local training.

    A model starts from the adapter of round 0 and keeps its optimizer over all rounds, as in training alone.
    """

    @property
    def clients(self) -> Mapping[str, Sequence[Row]]:
        """The training rows of each client."""

    @property
    def alone(self) -> Sequence[str]:
        """The clients that evaluation.local_clients names."""

    @property
    def cohort_size(self) -> int:
        """Clients in a round, on average."""

    def share(self, rows: int) -> tuple[int, int]:
        """(rows, optimizer steps) in one round of a client that holds `rows`."""

    def train_one(self, rows: Sequence[Row], count: int, steps: int) -> Any:
        """One model on `rows`, of which each round takes the next `count`, in `steps` optimizer steps.

        Raises ClientError where its training fails: nothing can stand in for it.
        """

    def train_each(self, rows: Mapping[str, Sequence[Row]]) -> Any:
        """One model per client on its rows, each with the share of a client that holds as many."""


@dataclass(frozen=True)
class Arm:
    """The words, the place and the training of one arm.

    title: on its card and in tables; label: in sentences and pictures; spent: in the table of budgets; rival: in the
    verdict, after "better than"; gain: of what the verdict gives the federated arm's share, "" for no such sentence;
    phase: in the table of times. What is empty follows from the name.
    order: arms are shown from the lowest on. style: a style of the charts; "" takes the next free one.
    per_client: the arm is one model per client, and its figures are means over those clients.
    train: how a baseline is trained; None for the base, and for the federated arm, whose training is the run itself.
    budget: rows that it trains on, as a share of those of the federated arm (one model) or of a client alone (one per
    client). Estimate and progress count with it.
    """

    name: str = ""
    title: str = ""
    label: str = ""
    order: float = 100.0
    style: str = ""
    spent: str = ""
    rival: str = ""
    gain: str = ""
    phase: str = ""
    per_client: bool = False
    train: Callable[[Setup], Any] | None = None
    budget: float = 1.0

    @property
    def column(self) -> str:
        """The heading of a column of its losses."""
        return self.label[:1].upper() + self.label[1:]


arms = Registry("arm")
"""Arms by name. A factory returns an `Arm`; the first line of its docstring describes it."""


def arm_named(name: str) -> Arm:
    """The arm of a name in evaluation.arms, "module:function" included. Raises UsageError with the nearest name."""
    return _worded(replace(arms.build(name), name=name.rpartition(":")[2]))


def parts_of(text: str) -> tuple[str, str, str]:
    """(arm, pick, client) of `NAME`, `NAME:pick` as local:best, or `NAME/CLIENT`; what is not there is ""."""
    name, _, client = text.partition("/")
    return (name, "", client) if client else (*name.partition(":")[::2], "")


def registered(names: Iterable[str] = arms) -> dict[str, Arm]:
    """Every registered arm by its name, in the order in which tables and pictures show them."""
    return {arm.name: arm for arm in in_order(map(arm_named, names))}


def in_order(found: Iterable[Arm]) -> list[Arm]:
    """Arms in the order in which tables and pictures show them."""
    return sorted(found, key=lambda arm: (arm.order, arm.name))


def shown(names: Iterable[str]) -> dict[str, Arm]:
    """The arms of these names in their order.

    A run directory may hold an arm that another program has registered: it is shown by its name, after the others.
    """
    wanted, known = set(names), registered()
    if wanted - known.keys():
        known = registered(arms.known())
    found = {name: arm for name, arm in known.items() if name in wanted}
    return found | {name: _worded(Arm(name=name)) for name in sorted(wanted - known.keys())}


def _worded(arm: Arm) -> Arm:
    label = arm.label or arm.name.replace("_", " ")
    title = arm.title or label[:1].upper() + label[1:]
    return replace(
        arm,
        label=label,
        title=title,
        spent=arm.spent or title,
        rival=arm.rival or label,
        phase=arm.phase or f"training, {label}",
    )
