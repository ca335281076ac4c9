"""Sites as an engine: the protocol of clients in this process, behind a coordinator and what carries its bytes.

    engine = Remote(coordinator, here=LocalEngine(…))
    run_round(state, plan, engine)

Sites keep their rows and their private state: none of either is here. `here` has the base for rows that the server
holds; a coordinator without such rows needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from shepherd.clients.progress import Observe, ignore
from shepherd.errors import UsageError
from shepherd.federation.coordinator import Coordinator
from shepherd.types import ClientId, GlobalModel, SiteFacts, Stat, Tensors, Tokens, TrainTask
from shepherd.updates.replies import Reply

if TYPE_CHECKING:  # torch is for rows that the server holds
    from shepherd.engines.local import LocalEngine
    from shepherd.evaluation.losses import RowLosses


class Remote:
    """The engine of a federation of sites. sent: called with each task, before it goes to the sites."""

    def __init__(
        self,
        coordinator: Coordinator,
        here: LocalEngine | None = None,
        patience: float = math.inf,
        sent: Callable[[TrainTask], None] = lambda task: None,
    ) -> None:
        self.coordinator, self.here, self.patience, self.sent = coordinator, here, patience, sent

    def describe(self) -> Mapping[ClientId, SiteFacts]:
        """What the admitted sites stated: rows, at least as many as they have, and a digest with the site's salt."""
        return self.coordinator.facts()

    def restore(self, private: Mapping[ClientId, Tensors]) -> None:
        """Check that no private state is here: sites have theirs. Raises UsageError."""
        if private:
            raise UsageError(
                f"the state has private tensors of {min(private)}, and sites keep their own",
                hint="a run that was begun as a simulation is resumed as one",
            )

    def train(
        self,
        task: TrainTask,
        deadline: float = math.inf,
        enough: Callable[[], bool] = lambda: False,
        observe: Observe = ignore,
    ) -> Iterable[Reply]:
        """A reply for every client of the task, as they come. Raises what the transport raises."""
        self.sent(task)
        return self.coordinator.train(task, deadline, enough, observe)

    def measure(self, model: GlobalModel | None, cohort: Iterable[ClientId]) -> Mapping[ClientId, Stat]:
        """The loss of the rows that each site trains on, in nats per target token; a site without an answer is left
        out."""
        measured = self.coordinator.measure(model, cohort, "training", self.patience)
        return {client: answer.stat for client, answer in measured.items()}

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of rows that the server holds. Raises UsageError where it has no base."""
        if self.here is None:
            raise UsageError("the coordinator has no base model, so it measures no rows", hint="measure at the sites")
        return self.here.evaluate(model, rows)
