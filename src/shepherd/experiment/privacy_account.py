"""The privacy account of a run: its ledger on disk, checked when the run goes on, and the statement at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from shepherd.errors import DataError
from shepherd.experiment.example_privacy import example_statement, example_warnings
from shepherd.experiment.privacy_plan import MECHANISM, NOT_COVERED, RELATION, UNIT, noise_warnings, signal_of
from shepherd.round import Plan
from shepherd.store import RunDirectory
from shepherd.updates.privacy.accountant import Epsilons, Rounds, epsilons
from shepherd.updates.privacy.client_level import ClientLevel
from shepherd.updates.privacy.ledger import CUT, FILE, Ledger, Release, noise_of, read_releases, span


def with_ledger(plan: Plan, store: RunDirectory, facts: Mapping[str, Any] | None) -> Plan:
    """The plan with the ledger of its run directory; itself without privacy.

    facts: of the last committed round, None before the first. Raises DataError, which no --force lifts, where lines of
    the ledger are missing or changed, and where some rounds of the run had privacy and others not.
    """
    path = store.path / FILE
    mark = facts.get("privacy") if facts is not None else None
    if plan.privacy is None:
        if mark is not None or path.exists():
            raise DataError(f"{store.path} was begun with privacy, and its recipe has none: {CUT}")
        return plan
    if facts is not None and mark is None:
        raise DataError(f"the rounds of {store.path} had no privacy, so no later one can give it: begin a new run")
    ledger = Ledger(read_releases(path), lambda line: store.append(FILE, line))
    ledger.check(mark)
    return replace(plan, privacy=plan.privacy.with_ledger(ledger))


def statement_of(plan: Plan, publish_nothing: bool = False) -> dict[str, Any] | None:
    """The block `privacy` of a run with privacy of either unit, from the lines of its ledgers; None without."""
    if plan.examples is not None:
        return example_statement(plan.examples, publish_nothing)
    return statement(plan.privacy, publish_nothing) if plan.privacy is not None else None


def statement(privacy: ClientLevel, publish_nothing: bool = False) -> dict[str, Any]:
    """The block `privacy` of metrics.json and summary.json, from the lines of the ledger; an infinite ε is null.

    N, q and z are [the least, the most] where a run was forced to go on with another recipe.
    """
    ledger = privacy.ledger
    spent = ledger.epsilon(privacy.delta)
    return {
        "private": ledger.private and math.isfinite(spent.least),
        **_guarantee(privacy, spent),
        **_of_lines(ledger),
        "clip": [ledger.releases[0].clip, ledger.releases[-1].clip] if ledger.releases else None,
        "releases": len(ledger.releases),
        "publish_nothing": publish_nothing,
    }


def forecast(privacy: ClientLevel, rounds: int, values: float) -> dict[str, Any]:
    """The same before a run of `rounds` rounds, with the noise in a round's mean over the clip, z·√p/(qN).

    values: p, the numbers that a client sends in a round, on average.
    """
    ratio = privacy.update_noise * math.sqrt(values) / privacy.expected
    planned = _planned(privacy, rounds)
    return {
        "private": privacy.repeatable is None and math.isfinite(planned.least),
        **_guarantee(privacy, planned),
        "clip": privacy.clip,
        "releases": rounds,
        "values": round(values),
        "noise_over_clip": ratio,
        "signal": signal_of(ratio, rounds),
    }


def privacy_warnings(plan: Plan, rounds: int) -> list[str]:
    """What a person should know of the numbers of a private plan before it begins."""
    privacy = plan.privacy
    if privacy is None:
        return example_warnings(plan)
    found = noise_warnings(
        len(privacy.clients), privacy.delta, privacy.noise_multiplier, _planned(privacy, rounds).least
    )
    if privacy.repeatable is not None:
        found.append("privacy.repeatable_noise: cohorts and noise follow from run.seed, so the run is not private")
    return found


def _planned(privacy: ClientLevel, rounds: int) -> Epsilons:
    return epsilons([Rounds(privacy.sampling_rate, privacy.noise_multiplier, rounds)], privacy.delta)


def _guarantee(privacy: ClientLevel, found: Epsilons) -> dict[str, Any]:
    """ε by both accountants, the smaller one and which that is, and what it is about."""
    return {
        "unit": UNIT,
        "relation": RELATION,
        "mechanism": MECHANISM,
        "delta": privacy.delta,
        "budget": privacy.epsilon or None,
        "clients": len(privacy.clients),
        "sampling_rate": privacy.sampling_rate,
        "noise_multiplier": privacy.noise_multiplier,
        "adaptive_clip": privacy.adaptive,
        "noise": "secret" if privacy.repeatable is None else "repeatable",
        "not_covered": list(NOT_COVERED),
        **found.stated(),
    }


def _of_lines(ledger: Ledger) -> dict[str, Any]:
    """N, q, z and the noise as the lines have them, not as the recipe has them now; nothing without lines."""
    lines = [line for line in ledger.releases if isinstance(line, Release)]
    if not lines:
        return {}
    return {
        **{key: span(getattr(line, key) for line in lines) for key in ("clients", "sampling_rate", "noise_multiplier")},
        "adaptive_clip": any(line.count_noise for line in lines),
        "noise": noise_of(lines),
    }


def package_of_accountant() -> dict[str, str]:
    """{"accountant_package": its name and version}."""
    return {"accountant_package": f"dp-accounting {version('dp-accounting')}"}
