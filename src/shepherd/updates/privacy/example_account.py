"""The privacy accounts of clients at the level of examples: each has a ledger, a budget, and the only source of noise.

    accounts = ExampleAccounts(delta=1e-3, epsilon=8.0)
    source = accounts.enter(task, work, held=500)       # the line of the round is durable before any number is drawn
    accounts.ledger("client-1").epsilon(1e-3)

A line is entered for all steps of a client in a round, before the first: a round that is repeated after a crash draws
other rows and other noise, and both lines count. Clients hold disjoint rows, so ε of a run is the largest of a client.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from shepherd.types import ClientId, TrainTask, Work
from shepherd.updates.privacy.accountant import Epsilons, Rounds, combined, epsilons
from shepherd.updates.privacy.ledger import MECHANISM, VERSION, Ledger
from shepherd.updates.privacy.noise import Noise


@dataclass(frozen=True)
class ExampleRelease:
    """One line of a client's ledger: the noised steps of its local training in a round.

    rows: n, those that it holds. sampling_rate: q = b/n. steps: T. noise_multiplier: z. clip: C, of one row's gradient.
    noise: "secret", or "repeatable" where it follows from run.seed.
    """

    client: ClientId
    attempt: int
    round: int
    rows: int
    sampling_rate: float
    steps: int
    noise_multiplier: float
    clip: float
    noise: str = "secret"
    unit: str = "example"
    relation: str = "zero-out"
    mechanism: str = MECHANISM
    version: int = VERSION

    @property
    def rounds(self) -> Rounds:
        """The line as the accountant takes it. Raises ValueError where it is of no known mechanism."""
        known = (self.unit, self.relation, self.mechanism, self.version) == ("example", "zero-out", MECHANISM, VERSION)
        if not known or self.noise not in ("secret", "repeatable"):
            raise ValueError("another mechanism, or a newer version")
        return Rounds(self.sampling_rate, self.noise_multiplier, self.steps)


LEDGERS = "ledgers"
"""The folder of the clients' ledgers in a run directory."""


def ledger_name(client: ClientId) -> str:
    """The file of a client's ledger in a run directory, whatever characters the name of the client has."""
    return f"{LEDGERS}/{quote(client, safe=' ', errors='surrogatepass')}.jsonl"


def empty_ledger(_client: ClientId) -> Ledger:
    """A ledger in memory."""
    return Ledger()


@dataclass
class ExampleAccounts:
    """The accounts of some clients. epsilon: the budget of each at `delta`, 0 for none.

    open_ledger(client): its ledger, as far as it was written. Each client has one process that enters lines.
    """

    delta: float
    epsilon: float = 0.0
    open_ledger: Callable[[ClientId], Ledger] = empty_ledger
    _ledgers: dict[ClientId, Ledger] = field(default_factory=dict)
    _within: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)

    def ledger(self, client: ClientId) -> Ledger:
        """The ledger of a client, read anew unless its lines are entered here."""
        return self._ledgers.get(client) or self.open_ledger(client)

    def enter(self, task: TrainTask, work: Work, held: int) -> Noise | None:
        """The source of rows and noise for the steps of a client that holds `held` rows, entered in its ledger before.

        None, and no line, where the steps would exceed the budget. Raises ValueError for a task without privacy.
        """
        if task.privacy is None:
            raise ValueError("the task has no privacy")
        ledger = self._ledgers.setdefault(work.client, self.ledger(work.client))
        release = ExampleRelease(
            client=work.client,
            attempt=ledger.attempt(task.round),
            round=task.round,
            rows=held,
            sampling_rate=sampling_rate(work, held),
            steps=work.steps,
            noise_multiplier=task.privacy.noise_multiplier,
            clip=task.privacy.clip,
            noise="repeatable" if task.privacy.repeatable else "secret",
        )
        if not self._affords(ledger, release):
            return None
        ledger.enter(release)
        return Noise(_repeatable_key(task.seed, release) if task.privacy.repeatable else None)

    def _affords(self, ledger: Ledger, release: ExampleRelease) -> bool:
        """Whether the budget covers a further line."""
        if not self.epsilon:
            return True
        kinds = combined(line.rounds for line in (*ledger.releases, release))
        if len(kinds) > 1:
            return epsilons(kinds, self.delta).least <= self.epsilon
        return self._covers(kinds[0].sampling_rate, kinds[0].noise_multiplier, kinds[0].count)

    def _covers(self, rate: float, noise: float, steps: int) -> bool:
        """Whether ε of this number of equal steps is within the budget.

        ε grows with the steps, and a bound takes a second: a few are computed for all rounds and clients of one rate.
        """
        while True:
            covered, beyond = self._within.get((rate, noise), (0, math.inf))
            if steps <= covered or steps >= beyond:
                return steps <= covered
            tried = 2 * steps if beyond == math.inf else max(steps, int(covered + beyond) // 2)
            if epsilons([Rounds(rate, noise, tried)], self.delta).least <= self.epsilon:
                covered = tried
            else:
                beyond = tried
            self._within[rate, noise] = covered, beyond


def sampling_rate(work: Work, held: int) -> float:
    """q = b/n of a client that holds n = `held` rows; at most 1, where every step takes all of them."""
    return min(1.0, work.rows / (work.steps * held))


def largest_epsilon(accounts: Mapping[ClientId, Iterable[Rounds]], delta: float) -> tuple[ClientId, Epsilons]:
    """The client of the largest ε, the first among equals, and its bounds. accounts: the steps of one client or more.

    Where all steps of a client are equal, others at no lower rate with no fewer of them have no smaller ε; it is then
    not computed.
    """
    found: dict[tuple[Rounds, ...], Epsilons] = {}
    combined_of = {client: combined(parts) for client, parts in accounts.items()}
    for parts in sorted(set(combined_of.values()), key=_by_rate, reverse=True):
        if not any(_covered_by(parts, other) for other in found):
            found[parts] = epsilons(parts, delta)
    most = max(found, key=lambda parts: found[parts].least)
    return min(client for client, parts in combined_of.items() if parts == most), found[most]


def _by_rate(parts: tuple[Rounds, ...]) -> list[tuple[float, int]]:
    return [(part.sampling_rate, part.count) for part in parts]


def _covered_by(one: tuple[Rounds, ...], other: tuple[Rounds, ...]) -> bool:
    """Whether `one` has no larger ε than `other`, as far as that shows without computing either."""
    if not one:
        return True
    if len(one) > 1 or len(other) != 1:
        return False
    (a,), (b,) = one, other
    return a.sampling_rate <= b.sampling_rate and a.count <= b.count and a.noise_multiplier >= b.noise_multiplier


def _repeatable_key(seed: int, release: ExampleRelease) -> bytes:
    path = f"shepherd repeatable noise/{seed}/{release.round}/example/{release.client}"
    return hashlib.sha256(path.encode()).digest()
