"""Client-level differential privacy of a run: a secret cohort, clipped updates, and noise on their sum once a round.

    Δ̄ = (Σ Δ_k · min(1, C/‖Δ_k‖) + N(0, z²C²)) / (qN)        McMahan et al., 2018 (1710.06963), fixed denominator

The noise is one more update, with the weight 1/(qN) that every client has, so the aggregation stays as it is. A round
without any update releases the noise alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from shepherd.types import ClientId, ClientModel
from shepherd.updates.privacy.adaptive_clip import count_noise, next_clip, update_noise
from shepherd.updates.privacy.ledger import Ledger, Release
from shepherd.updates.privacy.noise import Noise, repeatable_key
from shepherd.updates.privacy.sampling import poisson_sample
from shepherd.updates.transforms import Contributions


@dataclass(frozen=True)
class ClientLevel:
    """The mechanism of a run, fixed before it begins.

    clients: all N, sorted, whether or not they reply. sampling_rate: q. noise_multiplier: z. clip: C, with `adaptive`
    that of the first round. epsilon: the budget at `delta`, 0 for none. repeatable: the seed of a run that repeats, and
    is not private; None for the randomness of the system.
    """

    clients: tuple[ClientId, ...]
    sampling_rate: float
    noise_multiplier: float
    clip: float
    delta: float
    adaptive: bool = False
    epsilon: float = 0.0
    repeatable: int | None = None
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def expected(self) -> float:
        """qN, the mean size of a cohort."""
        return self.sampling_rate * len(self.clients)

    @property
    def weight(self) -> float:
        """1/(qN), the weight of every update and of the noise, however many replied."""
        return 1 / self.expected

    @property
    def count_noise(self) -> float:
        """σ_b, or 0 without adaptive clipping."""
        return count_noise(self.expected) if self.adaptive else 0.0

    @property
    def update_noise(self) -> float:
        """The standard deviation of the noise on the sum, over C: z, or z_Δ beside the count of adaptive clipping."""
        return update_noise(self.noise_multiplier, self.count_noise) if self.adaptive else self.noise_multiplier

    def draw(self, round_number: int) -> tuple[ClientId, ...]:
        """A secret cohort, drawn anew at each attempt."""
        return poisson_sample(self.clients, self.sampling_rate, self._source(round_number, "cohort"))

    def affords(self, round_number: int, rounds: int) -> bool:
        """Whether the release of a round stays within the budget. rounds: how many the run has in all."""
        if not self.epsilon:
            return True
        one, left = self._release(round_number, self.clip), rounds - round_number + 1
        # ε grows with the releases: where all rounds that are left fit, this one does, at the cost of one bound a run.
        return any(self.ledger.epsilon(self.delta, [one] * count).least <= self.epsilon for count in (left, 1))

    def release(
        self, given: Contributions, start: ClientModel, clip: float, unclipped: Iterable[float]
    ) -> tuple[Contributions, float]:
        """(the contributions with the noise among them, the next clip). The ledger has its line before any is drawn.

        start: the client model of the server, whose tensors the noise covers. clip: C of this round. unclipped: the
        norms before clipping of the updates that count.
        """
        self.ledger.enter(self._release(given.round, clip))
        source = self._source(given.round, "noise")
        if deviation := self.update_noise * clip:
            noise = {
                name: (deviation * source.normal(tensor.size)).reshape(tensor.shape)
                for name, tensor in start.tensors().items()
            }
            given = given.plus("noise", start, noise, self.weight)
        if not self.adaptive:
            return given, clip
        below = sum(0.5 if norm <= clip else -0.5 for norm in unclipped)
        drawn = self.count_noise * float(source.normal(1)[0]) if self.noise_multiplier else 0.0
        return given, next_clip(clip, below, drawn, self.expected)[0]

    def with_ledger(self, ledger: Ledger) -> ClientLevel:
        """The mechanism with the releases of a run."""
        return replace(self, ledger=ledger)

    def _release(self, round_number: int, clip: float) -> Release:
        return Release(
            attempt=self.ledger.attempt(round_number),
            round=round_number,
            clients=len(self.clients),
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            clip=clip,
            count_noise=self.count_noise,
            noise="secret" if self.repeatable is None else "repeatable",
        )

    def _source(self, round_number: int, purpose: str) -> Noise:
        if self.repeatable is None:
            return Noise()
        return Noise(repeatable_key(self.repeatable, round_number, purpose))
