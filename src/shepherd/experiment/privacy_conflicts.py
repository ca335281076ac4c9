"""Refusals of settings that void the guarantee of `[privacy]`, found before anything loads.

A guarantee by noise on the sum holds where the next model depends on the updates through their sum alone, and where one
client's data cannot change what the others count for.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from shepherd.arms import Arm
from shepherd.clients.personal.methods import Personalization
from shepherd.config import Config
from shepherd.errors import UsageError, missing_extra
from shepherd.experiment.client_privacy import noise_multiplier, sampling_rate_of
from shepherd.experiment.example_conflicts import example_conflicts
from shepherd.server.composition import from_outside
from shepherd.server.method import Method
from shepherd.updates.privacy.adaptive_clip import count_noise, update_noise

PACKAGES = {"cryptography": "cryptography", "dp_accounting": "dp-accounting"}
"""Module -> package of what a private run needs, both of the extra `dp`."""


def check_privacy(config: Config, method: Method, personal: Personalization, arms: tuple[Arm, ...]) -> None:
    """Raise UsageError, for all settings at once, where they void the guarantee, or where the extra `dp` is missing."""
    if config.privacy.unit == "none":
        return
    if problems := "\n".join(privacy_conflicts(config, method, personal, arms)):
        raise UsageError(problems)
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise missing_extra(package, "dp")


def privacy_conflicts(
    config: Config, method: Method, personal: Personalization, arms: tuple[Arm, ...]
) -> Iterator[str]:
    """A sentence for every setting that voids the guarantee: which, why, and an alternative."""
    unit = f'privacy.unit = "{config.privacy.unit}"'
    found = (
        example_conflicts(config, method, personal)
        if config.privacy.unit == "example"
        else (
            *_of_the_method(config, method),
            *_of_who_counts(config),
            *_of_norms(config),
            *_past_the_noise(config, method, personal),
        )
    )
    for setting, why, instead in found:
        yield f"{unit} and {setting} do not fit: {why}; {instead}"
    yield from _without_noise(config, arms)


def _of_the_method(config: Config, method: Method) -> Iterator[tuple[str, str, str]]:
    """A next model that is not a function of the sum, by the pieces of the method."""
    named, pieces = f'federation.method = "{config.federation.method}"', method.pieces
    if config.federation.aggregator:
        why = "its rule takes each client's own update, and a sum with noise is all that may leave"
        yield f'federation.aggregator = "{pieces.merge.name}"', why, "leave federation.aggregator out"
    elif not pieces.merge.linear:
        why = "its merge needs every client's own factors, and a sum with noise is all that may leave"
        yield named, why, 'use "ffa_lora" or "fed_sb"'
    if pieces.weigh.own:
        yield named, "a client's weight is computed from its update", 'use "fedit"'
    if pieces.payload.name != "plain":
        yield named, "the rotation of a client's factors is computed from its update, after the clip", 'use "fedit"'
    for setting, name in from_outside(pieces, method.optimizer):
        why = "a plug-in sees single updates, and nobody has shown what it makes of them"
        yield f'{setting} = "{name}"', why, "use one of `shepherd list` that no package added"
    ranks = config.lora.ranks.values() if hasattr(config.lora.ranks, "values") else config.lora.ranks
    if any(rank != config.lora.r for rank in ranks):
        why = "a slot that few clients own is divided by few, so one client moves it more than the clip allows"
        yield "lora.ranks", why, "give all one rank"


def _of_who_counts(config: Config) -> Iterator[tuple[str, str, str]]:
    """Settings by which one client's data change the weight or the participation of others, or its own bound."""
    federation = config.federation
    if federation.weights != "uniform":
        why = "a client's size would change its bound"
        yield f'federation.weights = "{federation.weights}"', why, 'set federation.weights = "uniform"'
    if config.selection.name != "poisson":
        why = "epsilon is computed for a draw of each client independently of the others"
        yield f'selection.name = "{config.selection.name}"', why, 'use "poisson"'
    why = "one client's failure would change what the others count for"
    if federation.on_too_few != "skip":
        setting = f'federation.on_too_few = "{federation.on_too_few}"'
        yield setting, why, 'set federation.on_too_few = "skip"; an empty round releases noise'
    if federation.min_updates > 1:
        yield f"federation.min_updates = {federation.min_updates}", why, "set federation.min_updates = 1"
    if federation.quarantine_after:
        setting = f"federation.quarantine_after = {federation.quarantine_after}"
        yield setting, why, "set federation.quarantine_after = 0"
    if federation.over_select:
        yield f"federation.over_select = {federation.over_select:g}", why, "leave federation.over_select at 0"
    if federation.deadline:
        why = "who is late depends on the rows of a client, and changes what it counts for"
        yield f"federation.deadline = {federation.deadline:g}", why, "leave federation.deadline at 0"
    if config.run.workers:
        why = "one client that ends or stalls a process would take the updates of all others in it along"
        yield f"run.workers = {config.run.workers}", why, "set run.workers = 0"


def _of_norms(config: Config) -> Iterator[tuple[str, str, str]]:
    """Limits of the norm beside the clip."""
    federation = config.federation
    if 0 < federation.max_update_norm < config.privacy.clip:
        setting = f"federation.max_update_norm = {federation.max_update_norm:g}"
        why = f"longer updates would be rejected, and count as zero, before privacy.clip = {config.privacy.clip:g}"
        yield setting, why, "set federation.max_update_norm above privacy.clip"
    if federation.clip_update_norm:
        yield (
            f"federation.clip_update_norm = {_shown(federation.clip_update_norm)}",
            "the noise is a multiple of privacy.clip",
            "leave federation.clip_update_norm out",
        )


def _past_the_noise(config: Config, method: Method, personal: Personalization) -> Iterator[tuple[str, str, str]]:
    """State of clients that reaches the server beside the sum."""
    why = "it carries what a client learned past the noise"
    if config.objective.scaffold:
        yield "objective.scaffold = true", why, "set objective.scaffold = false"
    if method.optimizer.by_steps:
        yield f'server.optimizer = "{method.optimizer.name}"', why, 'use server.optimizer = "fedavg" or "fedadam"'
    if personal.clusters:
        yield f'personalization.name = "{personal.name}"', why, 'set personalization.name = "none"'


def _without_noise(config: Config, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Arms that would be trained without noise. Personal models stay with their clients, and in a run in private/."""
    if config.privacy.publish_nothing:
        return
    trained = [f'"{arm.name}"' for arm in arms if arm.train]
    instead = "or set privacy.publish_nothing = true for a study"
    if trained:
        yield (
            f'privacy.unit = "{config.privacy.unit}" and the arms {", ".join(trained)} do not fit: their adapters are '
            f"trained without noise in the folder you publish; leave them out of evaluation.arms, {instead}"
        )


def _shown(value: float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


# With the number of clients


def check_private_clients(config: Config, clients: int, cohort: int) -> None:
    """Raise UsageError where delta is too large for this number of clients, or a cohort too small.

    cohort: clients expected in a round.
    """
    privacy = config.privacy
    if privacy.unit != "client":
        return
    if privacy.delta > 1 / clients:
        raise UsageError(
            f"privacy.delta = {privacy.delta:g} for {clients:,} clients: at most 1/N, better 1/(10N); set "
            f"{0.1 / clients:.2g}"
        )
    q = sampling_rate_of(config, clients, cohort)
    if privacy.adaptive_clip:
        z = noise_multiplier(config, q)
        try:
            update_noise(z, count_noise(q * clients))
        except ValueError:
            raise UsageError(
                f"privacy.adaptive_clip with {q * clients:g} clients a round: counting who was clipped would need more "
                f"noise than z = {z:g} leaves; set privacy.adaptive_clip = false, and privacy.clip",
                hint=f"more than {10 * z:g} clients a round can be counted",
            ) from None
