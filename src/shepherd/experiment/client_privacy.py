"""Client-level differential privacy of a recipe: its numbers, found before anything is trained."""

from __future__ import annotations

from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.types import ClientId
from shepherd.updates.privacy.accountant import least_noise
from shepherd.updates.privacy.client_level import ClientLevel

FEWEST = 0.01
"""qN, the clients expected in a round, below which a recipe is refused: the noise of the mean is z/(qN) clips."""


def noise_multiplier(config: Config, sampling_rate: float) -> float:
    """z of a recipe: as given, or the least for privacy.epsilon in all its rounds. Raises UsageError without one."""
    privacy = config.privacy
    if privacy.noise_multiplier != "from_epsilon":
        return privacy.noise_multiplier
    return least_noise(
        privacy.epsilon, sampling_rate=sampling_rate, rounds=config.federation.rounds, delta=privacy.delta
    )


def sampling_rate_of(config: Config, clients: int, cohort: int) -> float:
    """q: selection.q, or the share of a cohort of all clients. Raises UsageError where hardly one is expected."""
    q = config.selection.options.get("q") or cohort / clients
    if q * clients < FEWEST:
        raise UsageError(
            f"selection.q = {q:g} of {clients:,} clients samples {q * clients:g} clients in a round: below {FEWEST:g} "
            "nothing is left beside the noise; leave selection.q out, and set federation.clients_per_round"
        )
    return q


def client_level(config: Config, clients: tuple[ClientId, ...], cohort: int) -> ClientLevel | None:
    """The mechanism of a recipe for these clients, with an empty ledger in memory; None without privacy.

    cohort: clients expected in a round. Raises UsageError where no noise gives privacy.epsilon.
    """
    privacy = config.privacy
    if privacy.unit != "client":
        return None
    q = sampling_rate_of(config, len(clients), cohort)
    return ClientLevel(
        clients=clients,
        sampling_rate=q,
        noise_multiplier=noise_multiplier(config, q),
        clip=privacy.clip,
        delta=privacy.delta,
        adaptive=privacy.adaptive_clip,
        epsilon=privacy.epsilon,
        repeatable=config.run.seed if privacy.repeatable_noise else None,
    )
