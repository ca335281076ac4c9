"""A federation in Python, round by round: nothing is written, and every number is that of `shepherd run`.

for r in shepherd.simulate("my.jsonl", base="smollm2-135m", clients=8, rounds=5, learning_rate=5e-4):
    print(r.number, r.train_loss, r.evaluate().loss)
r.save("adapter")                                        # a PEFT folder
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd.config import Config
from shepherd.errors import UsageError, plural
from shepherd.experiment.run import warn
from shepherd.outcomes import OUTCOMES, outcomes_of
from shepherd.store.records import RoundRecord, notes
from shepherd.types import Adapter, ClientId, ServerState

if TYPE_CHECKING:
    from shepherd.evaluation.row_losses import RowLosses
    from shepherd.experiment.inputs import Inputs
    from shepherd.round import Engine, Plan


@dataclass(frozen=True)
class Evaluation:
    """Losses on the held-out rows, in nats per target token. rows: that of each row, with its number of targets."""

    loss: float
    token_accuracy: float
    per_category: Mapping[str, float]
    per_client: Mapping[ClientId, float]
    rows: RowLosses


@dataclass(frozen=True, eq=False)
class Round:
    """A round of a simulation: its record, and the model after it."""

    record: RoundRecord
    state: ServerState
    simulation: Simulation

    @property
    def number(self) -> int:
        """The number of the round, from 1."""
        return self.record.round

    @property
    def losses(self) -> Mapping[ClientId, float]:
        """The mean training loss of each client whose update counted, in nats per target token."""
        return self.record.train_loss

    @property
    def train_loss(self) -> float:
        """The mean of `losses` by the weights of the round; NaN where no update counted, or none has a loss."""
        total = sum(self.record.weights.values())
        weighted = sum(self.record.weights[client] * loss for client, loss in self.losses.items())
        return weighted / total if total and self.losses else float("nan")

    @cached_property
    def adapter(self) -> Adapter:
        """The global adapter after the round, with the remainder inside."""
        from shepherd.server.merged_adapter import merged_adapter

        return merged_adapter(self.state.model)

    def evaluate(self) -> Evaluation:
        """Measure the model after this round on the held-out rows, once."""
        return self._evaluation

    @cached_property
    def _evaluation(self) -> Evaluation:
        return self.simulation.measure(self.state)

    def save(self, folder: Path | str) -> Path:
        """Write the adapter as a PEFT folder, with the tokenizer. Raises UsageError where `folder` holds something."""
        from shepherd.model.adapter import save_adapter
        from shepherd.store import commit_folder

        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} exists already; nothing is overwritten", hint="choose another folder")
        trainer = self.simulation.inputs.trainer
        with commit_folder(target) as pending:
            save_adapter(pending, self.adapter, base_name=trainer.base_name, conv1d=trainer.conv1d)
            self.simulation.inputs.base.tokenizer.save_pretrained(pending)
        return target


class Simulation(Iterator[Round]):
    """The rounds of a federation, each carried out when it is asked for. Made by `simulate`."""

    def __init__(self, inputs: Inputs, engine: Engine, close: Callable[[], None]) -> None:
        self.inputs = inputs
        self._engine, self._close = engine, close
        self._rounds = self._carry_out(inputs.plan)

    @property
    def clients(self) -> dict[ClientId, int]:
        """The training rows of each client."""
        return self.inputs.data.sizes

    @property
    def config(self) -> Config:
        """All settings, as a recipe would have them."""
        return self.inputs.resolved

    @cached_property
    def base(self) -> Evaluation:
        """The bare base on the held-out rows."""
        return self.measure(None)

    def measure(self, state: ServerState | None) -> Evaluation:
        """The held-out losses of a state's model; None: of the bare base."""
        from shepherd.experiment.summary import arm_metrics

        losses = self._engine.evaluate(state.model if state else None, self.inputs.data.held_out)
        found = arm_metrics(losses, self.inputs.data)
        categories, clients = (
            {name: part["loss"] for name, part in found[key].items()} for key in ("per_category", "per_client")
        )
        return Evaluation(found["loss"], found["token_accuracy"], categories, clients, losses)

    def __next__(self) -> Round:
        return next(self._rounds)

    def _carry_out(self, plan: Plan) -> Iterator[Round]:
        from shepherd.experiment.federated import ended_early, federated_rounds

        state = self.inputs.start
        try:
            rounds = federated_rounds(
                state, plan, self._engine, self.inputs.schedule.rounds, lambda _number, _report: None
            )
            for state, record in rounds:
                label = self.inputs.data.partition.label
                for line in (*_did_not_count(record, label), *notes(record, label)):
                    warn({"event": "warning", "message": line})
                yield Round(record, state, self)
            if early := ended_early(state, plan, self.inputs.schedule.rounds):
                warn({"event": "warning", "message": early})
        finally:
            self._close()


def _did_not_count(record: RoundRecord, label: Callable[[ClientId], str]) -> Iterator[str]:
    """A line for each outcome of clients whose updates did not count: failed, lost, late, rejected."""
    outcomes = outcomes_of(vars(record))
    for outcome in (outcome for outcome in OUTCOMES if outcome != "trained"):
        clients = sorted(label(client) for client, found in outcomes.items() if found == outcome)
        if clients:
            yield f"round {record.round}: {plural(len(clients), 'client')} {outcome}: {', '.join(clients)}"
