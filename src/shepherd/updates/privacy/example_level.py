"""Example-level differential privacy of a run: the numbers of its mechanism, fixed beforehand, and its accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shepherd.types import ClientId, ExamplePrivacy
from shepherd.updates.privacy.accountant import Rounds
from shepherd.updates.privacy.example_account import ExampleAccounts


@dataclass(frozen=True)
class ExampleLevel:
    """DP-SGD in the clients' local training (Abadi et al., 2016, 1607.00133).

    clip: C, of one row's gradient. noise_multiplier: z. epsilon: the budget of each client at `delta`, 0 for none.
    planned: all steps of each client in the run, where every client that is drawn replies. repeatable: rows and noise
    follow from the seed, which leaves no privacy. accounts: those of this process.
    """

    clip: float
    noise_multiplier: float
    delta: float
    planned: Mapping[ClientId, Rounds]
    epsilon: float = 0.0
    repeatable: bool = False
    accounts: ExampleAccounts = field(default_factory=lambda: ExampleAccounts(0.5), compare=False)

    @property
    def task(self) -> ExamplePrivacy:
        """What a task says of it."""
        return ExamplePrivacy(self.clip, self.noise_multiplier, self.repeatable)

    def with_accounts(self, accounts: ExampleAccounts) -> ExampleLevel:
        """The mechanism with the accounts of a run."""
        return replace(self, accounts=accounts)
