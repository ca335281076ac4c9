"""How much and how fast clients train: rows, optimizer steps and learning rates of a round, in every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shepherd.clients.learning_rates import learning_rates
from shepherd.clients.local_work import local_work
from shepherd.clients.personal.methods import Personalization
from shepherd.config import Config
from shepherd.types import ClientId, Work


@dataclass(frozen=True)
class Schedule:
    """Local training over the rounds of a run.

    measured_every: rounds between two measurements on the held-out rows; 0 measures after the last one alone.
    local_steps: optimizer steps of a round, or 0 where local_epochs counts. own_rates: the peak learning rates of arms
    whose rate is set.
    """

    rounds: int
    measured_every: int
    batch_size: int
    local_steps: int
    local_epochs: float
    learning_rate: float
    min_learning_rate: float
    shape: str
    over: str
    warmup_steps: int
    warmup_rounds: int
    own_rates: Mapping[str, float] = field(default_factory=dict)

    def share(self, rows: int) -> tuple[int, int]:
        """(rows, optimizer steps) in one round of a client that holds `rows`; a batch is never larger than that."""
        return local_work(rows, self.batch_size, self.local_steps, self.local_epochs)

    def peak(self, arm: str = "federated") -> float:
        """The peak learning rate of an arm: the one that is set for it, or that of the federated arm."""
        return self.own_rates.get(arm, self.learning_rate)

    def rates(self, steps: int, round_number: int, arm: str = "federated") -> tuple[float, ...]:
        """The learning rates of a client's steps in a round (from 1)."""
        return learning_rates(
            self.peak(arm),
            steps,
            least=self.min_learning_rate,
            schedule=self.shape,
            over=self.over,
            round_index=round_number - 1,
            rounds=self.rounds,
            warmup_steps=self.warmup_steps,
            warmup_rounds=self.warmup_rounds,
        )

    def tuning(self, client: ClientId, first_row: int, rows: int, personal: Personalization) -> Work:
        """The steps of a personal model after the last round, of a client that holds `rows`."""
        rate = personal.learning_rate or self.learning_rate
        used = personal.steps * min(self.batch_size, rows)
        return Work(client, first_row, used, (rate,) * personal.steps)

    def measured_after(self, round_number: int) -> bool:
        """Whether the federated model is measured on the held-out rows after a round."""
        if round_number == self.rounds:
            return True
        return bool(self.measured_every) and round_number % self.measured_every == 0


def prepare_schedule(config: Config) -> Schedule:
    """The schedule of a recipe."""
    table = config.training
    return Schedule(
        rounds=config.federation.rounds,
        measured_every=config.evaluation.every,
        batch_size=table.batch_size,
        local_steps=table.local_steps,
        local_epochs=table.local_epochs,
        learning_rate=table.learning_rate,
        min_learning_rate=table.min_learning_rate,
        shape=table.schedule,
        over=table.schedule_over,
        warmup_steps=table.warmup_steps,
        warmup_rounds=table.warmup_rounds,
        own_rates=dict(config.evaluation.own_rates),
    )
