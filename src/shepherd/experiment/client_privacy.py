"""Client-level differential privacy of a recipe: its numbers, found before anything is trained."""

from __future__ import annotations

from shepherd.config import Config
from shepherd.updates.privacy.accountant import least_noise


def noise_multiplier(config: Config, sampling_rate: float) -> float:
    """z of a recipe: as given, or the least for privacy.epsilon in all its rounds. Raises UsageError without one."""
    privacy = config.privacy
    if privacy.noise_multiplier != "from_epsilon":
        return privacy.noise_multiplier
    return least_noise(
        privacy.epsilon, sampling_rate=sampling_rate, rounds=config.federation.rounds, delta=privacy.delta
    )


def sampling_rate_of(config: Config, clients: int, cohort: int) -> float:
    """q: selection.q, or the share of a cohort of all clients."""
    return config.selection.options.get("q") or cohort / clients
