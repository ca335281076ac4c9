"""Runs that are stopped from inside, and the digest of what a run has committed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from shepherd.experiment import run as experiment
from shepherd.updates.privacy.publication import place_of


class Stop(Exception):
    """Ends a run from inside, where a test wants it."""


def stopped(config, folder: Path, when) -> Path:
    """The directory of a run that was stopped by the first event for which `when(event)` holds."""

    with pytest.raises(Stop):
        experiment.run(config, observer=stop_at(when), out_dir=folder)
    return folder / config.run.name


def stop_at(when):
    def observe(event):
        if when(event):
            raise Stop

    return observe


def after_round(number: int):
    return lambda event: event["event"] == "round" and event["round"] == number


def checkpoint_digest(run: Path) -> str:
    """sha256 over the files of the last committed state and the numbers of its rounds."""
    total = hashlib.sha256()
    last = max(place_of(run, "checkpoints").glob("round-*"))
    for path in sorted(p for p in last.iterdir() if p.name.startswith(("adapter_model", "state"))):
        total.update(path.read_bytes())
    for line in place_of(run, "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        total.update(json.dumps({k: v for k, v in record.items() if k != "seconds"}).encode())
    return total.hexdigest()
