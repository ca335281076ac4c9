"""Who was there last: `presence.json` in the folder of a federation or of a site, for `shepherd status`.

presence = Presence(folder)
presence.event(event); presence.tick(signs)        # written when something changes, and every second or so
read_presence(folder)                              # with "serving": whether the process that writes it lives
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.experiment.events import Event
from shepherd.store import read_json, writer_of
from shepherd.store.disk import DISK, write_whole

FILE = "presence.json"
EVERY = 2.0
"""Seconds between two writings without a change."""


class Presence:
    """The state of a process that serves."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.folder = folder
        self.now: dict[str, Any] = {"sites": {}, "run": None, "round": 0, "rounds": 0, "state": "starting", **facts}
        self._written = 0.0

    def set(self, **facts: Any) -> None:
        """Change some of it."""
        self.now |= facts
        self._write()

    def event(self, event: Event) -> None:
        """Take what an event of a run changes."""
        match event["event"]:
            case "start":
                self.set(run=event["run"], rounds=event["rounds"], round=event["round"], state="training")
            case "phase":
                self.set(state=event["phase"])
            case "round":
                self.set(round=event["round"], state="training")
            case "sites":
                self.set(sites={name: dict(row) for name, row in event["sites"].items()})
            case "end":
                self.set(state="finished")

    def tick(self, signs: Mapping[str, float]) -> None:
        """Take the last signs of sites, in seconds since 1970."""
        for name, last in signs.items():
            if name in self.now["sites"]:
                self.now["sites"][name]["last"] = last
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        text = json.dumps({**self.now, "written": round(time.time(), 3), "pid": os.getpid()}, indent=1)
        write_whole(DISK, self.folder / FILE, text.encode())


def read_presence(folder: Path) -> dict[str, Any]:
    """What is in presence.json, empty before the first one; "serving" says whether its process lives."""
    found = dict(read_json(folder / FILE)) if (folder / FILE).exists() else {"sites": {}, "run": None}
    writer = writer_of(folder)
    found["serving"] = str(writer) if writer else None
    if writer is None:
        found["sites"] = {name: {**row, "present": False} for name, row in found["sites"].items()}
    return found
