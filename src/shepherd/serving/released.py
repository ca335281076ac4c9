"""What may leave a run with differential privacy: its federated model, with the guarantee that its ledger states."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shepherd.config import Config
from shepherd.errors import DataError, UsageError
from shepherd.report.guarantee import not_private, published_sentence
from shepherd.store import RunDirectory, read_json
from shepherd.store.adapters import FEDERATED, ArmName
from shepherd.updates.privacy.example_account import LEDGERS, ExampleRelease, largest_epsilon, ledger_name
from shepherd.updates.privacy.ledger import CUT, FILE, Ledger, read_releases
from shepherd.updates.privacy.publication import place_of, withholds

GUARANTEE = "privacy.json"
"""The file of a run directory, and of an export, that states the guarantee."""


def check_released(wanted: ArmName, config: Config, note: Callable[[str], None]) -> None:
    """Raise UsageError for a model of a private run that was trained without noise, unless it publishes nothing."""
    if config.privacy.unit == "none" or wanted.arm == FEDERATED:
        return
    text = f"{wanted} was trained without noise: the guarantee of {wanted.run} does not cover it"
    if not config.privacy.publish_nothing:
        raise UsageError(text, hint=f"export the federated model, {wanted.run}")
    note(f"warning: {text}; privacy.publish_nothing is set, so it is not for publication")


def guarantee_of(run: Path, config: Config, note: Callable[[str], None]) -> bytes | None:
    """The contents of privacy.json of a private run, compared with its ledger; None without privacy.

    The ledgers of unit "example" are withheld: a copy of the published part is not compared, which `note` receives.
    Raises DataError where the lines of the ledger are fewer than stated, or give another ε.
    """
    if config.privacy.unit == "none":
        return None
    stated = read_json(run / GUARANTEE)
    if config.privacy.unit == "client":
        _check(stated, run / FILE, _facts(run).get("privacy"))
    elif withholds(run):
        _check_examples(stated, place_of(run, LEDGERS), _facts(run).get("examples") or {})
    else:
        note(f"warning: {run} has no ledger of its clients, so {GUARANTEE} is taken as it is")
    for warning in (not_private(stated), published_sentence(stated)):
        if warning:
            note(f"warning: {warning}")
    return (json.dumps(stated, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _facts(run: Path) -> Mapping[str, Any]:
    """The marks of the ledgers when the last round was committed; empty in a copy of the published part."""
    newest = RunDirectory(run).rounds.newest().checkpoint
    return newest.facts if newest is not None else {}


def _check_examples(stated: Mapping[str, Any], folder: Path, marks: Mapping[str, Any]) -> None:
    files = {f"{LEDGERS}/{file.name}": file for file in sorted(folder.glob("*.jsonl"))}
    ledgers = {name: Ledger(read_releases(file, ExampleRelease), name=name) for name, file in files.items()}
    for client, mark in marks.items():
        name = ledger_name(client)
        ledgers.get(name, Ledger(name=name)).check(mark)
    spent = {client: [line.rounds for line in ledger.releases] for client, ledger in ledgers.items()}
    steps = max((sum(part.count for part in parts) for parts in spent.values()), default=0)
    if steps != stated["steps"][1]:
        raise DataError(
            f"{folder} has at most {steps} steps of a client, {GUARANTEE} states {stated['steps'][1]}: {CUT}"
        )
    found = largest_epsilon(spent, stated["delta"])[1].least if spent else 0.0  # no client trained
    private = all(ledger.private for ledger in ledgers.values())
    _compare(stated, found, private and math.isfinite(found), folder)


def _check(stated: Mapping[str, Any], file: Path, mark: Mapping[str, Any] | None) -> None:
    ledger = Ledger(read_releases(file))
    ledger.check(mark)
    if len(ledger.releases) != stated["releases"]:
        raise DataError(f"{file} has {len(ledger.releases)} lines, {GUARANTEE} states {stated['releases']}: {CUT}")
    found = ledger.epsilon(stated["delta"]).least
    _compare(stated, found, ledger.private and math.isfinite(found), file)


def _compare(stated: Mapping[str, Any], found: float, private: bool, file: Path) -> None:
    epsilon = stated["epsilon"]
    same = math.isinf(found) if epsilon is None else math.isclose(found, epsilon, rel_tol=1e-6)
    if not same or private != stated["private"]:
        raise DataError(f"{GUARANTEE} states ε = {epsilon}, the lines of {file} give {found:g}: {CUT}")
