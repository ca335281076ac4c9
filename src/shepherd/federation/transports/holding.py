"""One process for a kit on a machine, and the session of the one before it.

    with hold(kit, session) as former: ...

The coordinator lets a process take the place of its predecessor at once if it names the predecessor's session. So the
session lies next to the kit, as `kit-session.json` in the site's folder: who copies the kit has not got it. A copy of
the whole `sites/NAME` has the file. It is not read there, since it was written in another folder; but a hostile process
may read it, and take the place of the site as long as that session is the present one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shepherd.errors import UsageError
from shepherd.store.disk import PRIVATE, write_whole
from shepherd.store.lock import locked, writer_of

FILE = "session.json"
"""After the name of the kit."""


@contextmanager
def hold(kit: Path, session: str = "") -> Iterator[str]:
    """Hold the only lock of a kit: the session that was held here before, or an empty text.

    session: that of a site's process; the coordinator has none.

    Raises UsageError where another process has it or the kit is incomplete, and ResourceError without locks.
    """
    if not (kit / "startup").is_dir() or not (kit / "local").is_dir():
        raise UsageError(f"{kit} is not a kit of a federation: startup/ or local/ is missing", hint="join again")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(kit))
        except UsageError:
            raise UsageError(
                f"{kit} is in use by {writer_of(kit) or 'another process'}",
                hint="end that process; one process at a time has a kit",
            ) from None
        yield _exchange(kit.with_name(f"{kit.name}-{FILE}"), session, _place(kit)) if session else ""


def _exchange(path: Path, session: str, here: str) -> str:
    """The session in the file, if it ran here; the file has the new one then."""
    former = ""
    with suppress(OSError, ValueError, LookupError, TypeError):
        note = json.loads(path.read_text(encoding="utf-8"))
        former = str(note["session"]) if note["place"] == here else ""
    with suppress(OSError):  # a full disk costs the next start some seconds
        write_whole(PRIVATE, path, json.dumps({"session": session, "place": here}).encode())
    return former


def _place(kit: Path) -> str:
    """A mark of this folder that a copy of it does not have."""
    status = kit.stat()
    with suppress(OSError):
        return f"{Path('/etc/machine-id').read_text().strip()}:{status.st_dev}:{status.st_ino}"
    return f"{os.uname().nodename}:{status.st_dev}:{status.st_ino}"
