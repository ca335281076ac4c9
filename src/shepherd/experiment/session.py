"""What the stages of a run share: the run directory, the run's id, its events and its seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shepherd.experiment.progress import Meter, Reporter
from shepherd.store import RunDirectory


@dataclass(frozen=True)
class Session:
    """A started run: its directory is locked, and its settings and inputs are recorded on disk.

    base_losses: a folder in which runs of one study keep the losses of the bare base, or None.
    """

    store: RunDirectory
    run_id: str
    reporter: Reporter
    meter: Meter
    base_losses: Path | None = None
