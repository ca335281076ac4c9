"""Where federations and sites lie: `federations/NAME/` and `sites/NAME/` below the current folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shepherd.errors import UsageError, did_you_mean
from shepherd.store.lock import locked, writer_of

FEDERATIONS, SITES = Path("federations"), Path("sites")
_MARKS = {FEDERATIONS: "federation.toml", SITES: "site.toml"}
_NEW = {
    FEDERATIONS: "shepherd federation new NAME --invite a,b makes one",
    SITES: "shepherd site join FILE --data ROWS makes one of an invitation",
}


def known(below: Path) -> list[str]:
    """The names of the federations, or of the sites, in the current folder."""
    return sorted(path.parent.name for path in below.glob(f"*/{_MARKS[below]}"))


def find(below: Path, name: str | None) -> Path:
    """The folder of a federation or site by name or path; the only one without a name. Raises UsageError."""
    what = below.name.removesuffix("s")
    names = known(below)
    if name is None:
        if len(names) == 1:
            return below / names[0]
        if not names:
            raise UsageError(f"there is no {what} in {below}/ here", hint=_NEW[below])
        raise UsageError(
            f"there are {len(names)} {below.name} here", hint=f"name one, --{what} {names[0]}: {', '.join(names)}"
        )
    for folder in (below / name, Path(name)):
        if (folder / _MARKS[below]).is_file():
            return folder
    here = f"{below.name} here: {', '.join(names)}" if names else _NEW[below]
    raise UsageError(f"no {what} {name} in {below}/ here.{did_you_mean(name, names)}", hint=here)


@contextmanager
def serving(folder: Path, name: str) -> Iterator[None]:
    """Be the only process that serves a federation. Raises UsageError where another one is."""
    holder = writer_of(folder)
    if holder is not None:
        raise UsageError(
            f"the federation {name} is served by {holder}",
            hint="one process serves a federation, and carries out one run; shepherd status shows it",
        )
    with locked(folder):
        yield
