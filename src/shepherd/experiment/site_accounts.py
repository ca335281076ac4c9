"""What has left a site under privacy, run by run: releases so far and their ε, by the site's own accountant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import UsageError
from shepherd.federation.site_privacy import LEDGER
from shepherd.store.site_folder import CARD
from shepherd.updates.privacy.accountant import Rounds, combined, epsilons
from shepherd.updates.privacy.example_account import ExampleRelease
from shepherd.updates.privacy.ledger import read_releases


def site_account(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The table `privacy` of a run's card with "releases" of the site and "epsilon"; empty for a run without privacy.

    about: the run as `read_site_log` has it. Unit example: the lines of the site's ledger, and ε of them. Unit client:
    the tasks that the site has trained, and ε of all rounds until the last one that it saw, each with the q and z of
    the card; that the coordinator keeps to them, a site does not see. ε is null where it is infinite, or where the
    extra dp is not installed. Raises DataError for a ledger that cannot be read.
    """
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    found = card.get("privacy")
    if not found:
        return {}
    if found["unit"] == "example":
        lines = read_releases(folder / LEDGER, ExampleRelease)
        spent = combined(line.rounds for line in lines)
        return {**found, "releases": len(lines), "epsilon": _epsilon(spent, found["delta"])}
    seen = max((int(key) for key in about["rounds"] if key.isdecimal()), default=0)
    spent = combined([Rounds(found["sampling_rate"], found["noise_multiplier"], seen)])
    return {**found, "releases": about["trainings"], "epsilon": _epsilon(spent, found["delta"])}


def _epsilon(rounds: Iterable[Rounds], delta: float) -> float | None:
    try:
        return epsilons(rounds, delta).stated()["epsilon"]
    except UsageError:  # without the extra dp
        return None
