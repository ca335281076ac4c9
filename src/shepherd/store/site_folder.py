"""The folder of a site and its runs, as commands find them: no run directory, as the run is the coordinator's.

    sites/north               the site; of its runs the newest
    sites/north/runs/8f3c…    one of its runs

Beside what `federation.site_store` keeps, a run of a site has `config.toml`, `rows.json`, how many of its rows are used
and why the others are not, `adapter/`, the last global model that it was sent whole, and `model/`, its own one where
the run makes such models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from shepherd.errors import UsageError

OWN = "own"
"""The arm of a site's own model."""
OWN_FOLDER, GLOBAL_FOLDER = "model", "adapter"
LOG, CARD, RECORD, ROWS = "audit.jsonl", "card.json", "run.json", "rows.json"


class SitePlace(NamedTuple):
    """The folder of a site, and the id of one of its runs; "" for all."""

    folder: Path
    run: str = ""

    def runs(self) -> list[Path]:
        """The folders of its runs, or of the one, the newest first."""
        found = [path for path in (self.folder / "runs").glob(self.run or "*") if (path / RECORD).is_file()]
        return sorted(found, key=lambda path: (-os.stat(path / RECORD).st_mtime, path.name))


def site_place(path: Path | str) -> SitePlace | None:
    """The site whose folder, or a run of which, lies at a path; None where there is none."""
    folder = Path(path)
    if (folder / CARD).is_file() and (folder / RECORD).is_file() and folder.resolve().parent.name == "runs":
        folder = folder.resolve()
        return SitePlace(folder.parent.parent, folder.name)
    return SitePlace(folder) if any((folder / name).is_file() for name in (LOG, "site.toml")) else None


def run_with_a_model(place: SitePlace) -> Path:
    """The newest run of a place that has a model. Raises UsageError where none has."""
    runs = place.runs()
    for run in runs:
        if (run / OWN_FOLDER).is_dir() or (run / GLOBAL_FOLDER).is_dir():
            return run
    what = f"the run {place.run} of {place.folder}" if place.run else f"the site in {place.folder}"
    raise UsageError(
        f"{what} has no model" + ("" if runs else ": no run was offered to it"),
        hint="a site keeps the models that it is sent to measure, the last one of a run too, and those that it makes",
    )
