"""A lower bound of the ε of one release, measured through the run's own clip and noise: a smoke alarm, not a proof.

The canary is a client that sends a random direction, ten times as long as the clip. Releases with and without it are
drawn as a round draws its noise; the noise on each number is independent, so a model of few numbers shows as much as a
large one. That the canary takes part is known to the attacker: sampling is not audited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.errors import UsageError
from shepherd.evaluation.attacks.release import fitted, gaussian_epsilon, lower_bound
from shepherd.rng import stream
from shepherd.types import Adapter, ClientModel, ClientUpdate, Factors
from shepherd.updates.clipping import clipped
from shepherd.updates.privacy.client_level import ClientLevel
from shepherd.updates.privacy.ledger import Ledger
from shepherd.updates.transforms import Contributions

RELEASES = 20_000
"""Releases with the canary, and as many without."""
_CANARY, _WIDTH = "canary", 32


def attack_release(
    mechanism: ClientLevel | None, seed: int, note: Callable[[str], None], releases: int = RELEASES
) -> dict[str, Any]:
    """The lower bound beside the ε of one release that the noise multiplier stands for, at the run's δ.

    Nothing is entered in the ledger of the run. Raises UsageError for a run without client-level differential privacy,
    and for one whose noise is 0.
    """
    if mechanism is None or not mechanism.noise_multiplier:
        raise UsageError(
            "the run has no client-level differential privacy with noise, so there is no release to attack",
            hint='privacy.unit = "client" in a recipe adds it (docs/privacy.md)',
        )
    note(f"release: {releases:,} releases with a canary and {releases:,} without")
    found = {inside: scores(mechanism, seed, releases, inside) for inside in (True, False)}
    claimed = gaussian_epsilon(1 / mechanism.noise_multiplier, mechanism.delta)
    bound = lower_bound(found[True], found[False], mechanism.delta)
    return {
        "releases": releases,
        "delta": mechanism.delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "claimed": claimed,
        "lower_bound": bound["epsilon"],
        "estimate": fitted(found[True], found[False], mechanism.delta),
        "alarm": bound["epsilon"] > claimed,
    }


def scores(mechanism: ClientLevel, seed: int, releases: int, inside: bool) -> np.ndarray:
    """The dot product of each noised sum with the canary's direction, over the clip: float64[releases]."""
    start = ClientModel(
        Adapter({_CANARY: Factors(np.zeros((1, _WIDTH), np.float32), np.zeros((_WIDTH, 1), np.float32))}, 1, 1.0)
    )
    drawn = stream(seed, "audit", "release").normal(size=2 * _WIDTH)
    direction = drawn / np.linalg.norm(drawn)
    long = np.float32(10 * mechanism.clip * direction)
    tensors = start.tensors()
    parts = np.split(long, np.cumsum([tensor.size for tensor in tensors.values()])[:-1])
    delta = {name: part.reshape(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
    found = np.zeros(releases)
    for number in range(releases):
        given = Contributions(number + 1)
        if inside:
            update = ClientUpdate(_CANARY, number + 1, delta, num_examples=1, num_tokens=1, steps=1)
            sent = clipped(update, mechanism.clip)
            weight = mechanism.weight
            given = replace(given, updates=(sent,), views={_CANARY: start}, weights={_CANARY: weight})
        merged, _ = mechanism.with_ledger(Ledger()).release(given, start, mechanism.clip, [])
        mean = sum((merged.weights[one.client] * _flat(one, tensors) for one in merged.updates), np.zeros(2 * _WIDTH))
        found[number] = mean @ direction / (mechanism.weight * mechanism.clip)
    return found


def _flat(update: ClientUpdate, names: Any) -> np.ndarray:
    return np.concatenate([np.asarray(update.delta[name], np.float64).ravel() for name in names])
