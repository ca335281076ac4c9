"""How a site leaves: the wish of a person in the site's folder, and what the process of the site does at it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from shepherd.federation.site_store import Folder, SiteStore, identity_lock
from shepherd.store import writer_of
from shepherd.store.disk import DISK, write_whole

FILE = "leaving.json"


@dataclass(frozen=True)
class Wish:
    """now: drop the question at work."""

    now: bool = False


def wish(folder: Path, found: Wish) -> None:
    """Ask the process of a site to leave."""
    write_whole(DISK, folder / FILE, json.dumps(asdict(found)).encode())


def wished(folder: Path) -> Wish | None:
    """What a person asked of the process."""
    file = folder / FILE
    return Wish(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def forget(folder: Path) -> None:
    """Forget the wish: a new process begins."""
    (folder / FILE).unlink(missing_ok=True)


def is_served(folder: Path) -> bool:
    """Whether a process is this site."""
    return writer_of(folder) is not None


def runs_of(store: SiteStore) -> list[str]:
    """The runs of a site that are not over."""
    return [run for run in store.runs() if (record := store.record(run)) and not record.keys() & {"over", "left"}]


def leave_alone(folder: Path, name: str, *, delete_key: bool) -> None:
    """Leave where no process is this site: its runs are noted as left, and the key is deleted on request.

    The site's own models stay. Raises UsageError where a process is this site.
    """
    with identity_lock(folder, name):
        forget(folder)
        store = SiteStore(Folder(folder))
        for run in runs_of(store):
            store.note(run, left=True)
        for part in ("kit", "enrolment") if delete_key else ():  # the key with its certificate, and what was requested
            shutil.rmtree(folder / part, ignore_errors=True)
