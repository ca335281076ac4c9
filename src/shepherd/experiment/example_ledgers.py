"""The privacy ledgers of the clients of a simulation: one file of its run directory each, which one process writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.round import Plan
from shepherd.store import RunDirectory
from shepherd.types import ClientId
from shepherd.updates.privacy.example_account import LEDGERS, ExampleAccounts, ExampleRelease, ledger_name
from shepherd.updates.privacy.ledger import CUT, Ledger, read_releases
from shepherd.updates.privacy.publication import place_of

FACT = "examples"
"""The key of the ledgers in the manifest of a round."""


def with_accounts(plan: Plan, store: RunDirectory, facts: Mapping[str, Any] | None) -> Plan:
    """The plan with the accounts of its run directory; itself without privacy of examples.

    facts: of the last committed round, None before the first. Raises DataError, which no --force lifts, where lines of
    a ledger are missing or changed, and where some rounds of the run had privacy and others not.
    """
    marks = facts.get(FACT) if facts is not None else None
    if plan.examples is None:
        if marks is not None or place_of(store.path, LEDGERS).exists():
            raise DataError(f"{store.path} was begun with privacy of examples, and its recipe has none: {CUT}")
        return plan
    if facts is not None and marks is None:
        raise DataError(f"the rounds of {store.path} had no privacy, so a later one cannot give it: begin a new run")
    open_one = partial(open_ledger, store.path)
    for client, mark in (marks or {}).items():
        open_one(client).check(mark)
    before = plan.examples.accounts
    return replace(plan, examples=plan.examples.with_accounts(ExampleAccounts(before.delta, before.epsilon, open_one)))


def marks_of(plan: Plan) -> dict[str, Any]:
    """What the manifest of a round holds of the ledgers, by `FACT`; nothing without privacy of examples."""
    if plan.examples is None:
        return {}
    ledgers = {client: plan.examples.accounts.ledger(client) for client in plan.clients}
    return {FACT: {client: ledger.mark() for client, ledger in ledgers.items() if ledger.releases}}


def open_ledger(folder: Path, client: ClientId) -> Ledger:
    """The ledger of a client in the run directory at `folder`. Raises DataError for lines that are none."""
    name, store = ledger_name(client), RunDirectory(folder)
    releases = read_releases(place_of(folder, name), ExampleRelease)
    return Ledger(releases, partial(store.append, name), name)
