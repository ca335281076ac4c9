"""How a machine becomes a site: what is needed is looked at, a site.toml is written, and the federation is joined.

place = settle_in(read_invitation("hospital-a.invite"), rows="rows.jsonl", …)      # sites/hospital-a
enrol(place, invitation, wait=None, say=print)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.errors import UsageError, plural
from shepherd.experiment.sites import folders
from shepherd.experiment.sites.site_file import NewSite, site_toml
from shepherd.federation.cards import NAME

if TYPE_CHECKING:
    from shepherd.federation.enrolment import Invitation

SETTINGS = "site.toml"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Needs:
    """What a new site is made with: the source of its rows, columns of them, and its base (empty: the built-in one)."""

    rows: str = ""
    columns: Mapping[str, str] | None = None
    base: str = ""


def site_of(file: Path) -> str:
    """The name of the site in an invitation, or in the signed answer to a request. Raises UsageError."""
    from shepherd.federation.enrolment import read_invitation

    return _signed(file) or read_invitation(file).site


def is_signed(file: Path) -> bool:
    """Whether a file is the coordinator's answer to a request, and no invitation."""
    return bool(_signed(file))


def _signed(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < 2**16 else None
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(found, dict) or not {"site", "certificate"} <= found.keys():
        return ""
    site = str(found["site"])
    if not re.fullmatch(NAME, site):  # it names a folder
        raise UsageError(f"{file} is damaged: it is for no name of a site", hint="get the file again, unchanged")
    return site


def settle_in(site: str, needs: Needs, say: Say) -> Path:
    """The folder of a site, with its site.toml; one that is there stays as it is.

    Raises UsageError, DataError or ModelError where rows or base cannot be used, before anything is written.
    """
    folder = folders.SITES / site
    settings = folder / SETTINGS
    if settings.exists():
        if needs.rows or needs.base or needs.columns:
            say(f"{settings} stays as it is; change rows, base and policy there")
        return folder
    if not needs.rows:
        raise UsageError("a new site needs its rows", hint="--data FILE; they are read here and stay here")
    rows, base = _look(needs, say)
    write_site(folder, NewSite(site, rows, base, needs.columns or {}))
    say(f"wrote {settings}: its [policy] says what this site takes part in")
    return folder


def write_site(folder: Path, new: NewSite) -> None:
    """Make the folder of a site, private to its owner, with its site.toml."""
    for part in (folder.parent, folder):
        part.mkdir(mode=0o700, exist_ok=True)
    place = os.open(folder / SETTINGS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(place, "w", encoding="utf-8") as stream:
        stream.write(site_toml(new))


def _look(needs: Needs, say: Say) -> tuple[str, str]:
    """Rows and base as site.toml names them, when both are here."""
    from shepherd.config import Config
    from shepherd.data.sources import dataset_notes, is_path, load_examples
    from shepherd.model import fetch

    rows = load_examples(needs.rows, columns=dict(needs.columns or {}), parts="clients")
    say(f"{needs.rows}: {plural(len(rows.examples), 'row')}")
    for line in dataset_notes(rows):
        say(f"{needs.rows}: {line}")
    base = needs.base or Config().model.base
    if any(entry.name == base and entry.path is None for entry in fetch.list_models()):
        say(f"fetching {base} once; it stays in the cache (shepherd model list)")
        fetch.pull(base, progress=say)
    fetch.look_at(base)
    return (_absolute(needs.rows) if is_path(needs.rows) else needs.rows,
            _absolute(base) if fetch.is_local(base) else base)  # fmt: skip


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().absolute())


def enrol(folder: Path, invitation: Invitation, wait: float | None, say: Say) -> Any:
    """Get the site's certificate from the coordinator, whose answer is waited for; until when it is valid."""
    from shepherd.federation import enrolment

    return enrolment.enrol(invitation, folder, wait, say)
