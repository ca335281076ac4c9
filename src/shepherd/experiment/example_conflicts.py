"""Refusals of settings that void the privacy of examples: what travels beside an update, or follows from rows.

Everything that is computed from updates is computed after the noise, so every method, merge and server optimizer keeps
the guarantee, and so do SCAFFOLD's control variates, which follow from the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shepherd.clients.personal.methods import Personalization
from shepherd.clients.selection import build_selection
from shepherd.config import Config
from shepherd.server.method import Method


def example_conflicts(config: Config, method: Method, personal: Personalization) -> Iterator[tuple[str, str, str]]:
    """(setting, why, alternative) for every setting that lets rows pass the noise."""
    federation, ranks = config.federation, config.lora.ranks
    if federation.weights == "tokens":
        why = "the tokens of a round depend on the rows that were drawn"
        yield 'federation.weights = "tokens"', why, 'set federation.weights = "examples" or "uniform"'
    if federation.clip_update_norm == "median":
        why = "clients would report norms beside their updates"
        yield 'federation.clip_update_norm = "median"', why, "set federation.clip_update_norm to a number"
    if build_selection(config.selection.name, config.selection.options).learns:
        why = "it draws clients by the losses of their rows"
        yield f'selection.name = "{config.selection.name}"', why, 'use "uniform" or "poisson"'
    if personal.clusters:
        why = "a client chooses its cluster by the losses of its rows"
        yield f'personalization.name = "{personal.name}"', why, 'set personalization.name = "none"'
    mixed = any(rank != config.lora.r for rank in (ranks.values() if isinstance(ranks, Mapping) else ranks))
    if mixed and method.pieces.view.probe is not None:
        why = "which slots a client sends follows from its rows"
        yield f'federation.method = "{config.federation.method}" with lora.ranks', why, "give all one rank"
    if config.privacy.adaptive_clip:
        why = "it follows the norms of updates, and the clip is that of one row's gradient"
        yield "privacy.adaptive_clip = true", why, "leave privacy.adaptive_clip out"
