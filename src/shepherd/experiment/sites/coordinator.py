"""A run over a federation's sites: its folder is served until the run is over, and who is there is written down.

    run = run_federation(config, "federations/lab", observer)
    run = resume_federation("runs/demo", observer)            # the run knows its federation

With too few sites the run waits, and goes on when they are back. It ends by itself only for what waiting cannot mend.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.errors import DataError, UsageError, plural
from shepherd.experiment.sites import folders, links
from shepherd.experiment.sites.presence import Presence
from shepherd.federation.policy import largest_answer
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.updates.privacy.publication import place_of

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.experiment.events import Emit, Event
    from shepherd.experiment.opened_run import Run
    from shepherd.federation.cards import RunCard
    from shepherd.federation.transport import Transport

FILE = "federation.json"
"""In a run directory: the federation that the run belongs to, and with how many sites it begins."""
MEMBERS = "members.json"
EVENTS = {
    "restarting": "the network's process is started again: {why}",
    "refused": "a connection was refused: {why}",
}
"""Events of the transport that a person should know."""


def run_federation(
    config: Config,
    folder: Path,
    observer: Emit,
    *,
    began: Callable[[str], None] = lambda path: None,
    min_sites: int | None = None,
    keep_least: bool = False,
) -> Run:
    """Begin a run over the federation in a folder, and carry it out.

    began: takes the run directory as soon as it is there, before the first site. min_sites: how many begin, and go on;
    without it all members begin, and federation.min_updates go on, which is 2 unless `keep_least`. Raises UsageError
    for a federation that is served by another process or has too few members.
    """
    from shepherd.experiment.coordinate import begin_over

    served = Served(folder, observer, began)
    members = len(served.members)
    sites = members if min_sites is None else min_sites
    if not 1 <= sites <= members:
        raise UsageError(
            f"{plural(sites, 'site')} cannot take part: {served.name} has {plural(members, 'member')}",
            hint=f"shepherd federation invite SITE --federation {served.name}",
        )
    table = config.federation
    least = table.min_updates if keep_least else max(table.min_updates, 2)
    least = min(sites, least) if min_sites is None else sites
    least = min(least, table.clients_per_round or least)
    if config.privacy.unit == "client":  # whose rounds release noise, whoever answers
        least = table.min_updates
    if table.clients_per_round > members:
        said = f"federation.clients_per_round = {table.clients_per_round}, and {served.name} has "
        observer({"event": "warning", "message": f"{said}{plural(members, 'member')}: at most those take part"})
    config = config.model_copy(update={"federation": table.model_copy(update={"min_updates": least})})
    with served.alone():
        return begin_over(config, served.carrier(sites), served.emit, terms=served.terms(sites))


def resume_federation(run_dir: Path, observer: Emit, *, force: bool = False) -> Run:
    """Go on with a run over the federation that it was begun with; a finished one is returned as it is.

    Raises UsageError where the federation is not here, or serves another run.
    """
    from shepherd.experiment.coordinate import finished, resume_over

    folder = open_run(run_dir, "identity.json")
    if (done := finished(folder)) is not None:
        return done
    known = read_json(place_of(folder, FILE))
    served, sites = Served(_folder_of(known), observer), int(known["sites"])
    if served.fingerprint != known["fingerprint"]:
        raise UsageError(
            f"{folder} belongs to another federation {known['federation']} than the one in {served.folder}",
            hint="resume where federations/ has the one that it was begun with",
        )
    with served.alone():
        return resume_over(folder, served.carrier(sites), served.emit, served.terms(sites), force=force)


def is_federated(run_dir: Path) -> bool:
    """Whether a run belongs to a federation of sites."""
    return place_of(run_dir, FILE).is_file()


def _folder_of(known: Any) -> Path:
    try:
        name, place = str(known["federation"]), Path(str(known["folder"]))
    except KeyError:
        raise DataError(f"{FILE} names no federation", hint="restore the file from a copy") from None
    return place if (place / "federation.toml").is_file() else folders.find(folders.FEDERATIONS, name)


@dataclass(frozen=True)
class Note:
    """A line from another thread."""

    text: str
    warning: bool


class Served:
    """A federation at the coordinator, and the events of a run in it."""

    def __init__(self, folder: Path, observer: Emit, began: Callable[[str], None] = lambda path: None) -> None:
        from shepherd.federation.enrolment import FederationFolder

        links.check_machine()
        self.folder, self.observer, self.began = Path(folder), observer, began
        self.files = FederationFolder(self.folder)
        self.name, self.fingerprint = self.files.name, self.files.fingerprint
        self.members = tuple(name for name, member in self.files.members.items() if member.state != "removed")
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._presence: Presence | None = None
        self._warned: set[str] = set()
        self._state, self._members = (0, 0, 0), frozenset[str]()

    def terms(self, sites: int) -> Any:
        """The terms of a run that begins with this many sites."""
        from shepherd.experiment.site_attendance import Terms

        return Terms(sites=sites, expected=self.members, allowed=self._allowed, offers=links.PROTECTIONS)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process that serves this federation."""
        with folders.serving(self.folder, self.name):
            self._presence = Presence(self.folder, state="preparing")
            try:
                yield
            finally:
                self._presence.set(state="stopped")

    def carrier(self, sites: int) -> Any:
        """What opens the transport of a run."""

        @contextmanager
        def carrier(card: RunCard, store: RunDirectory) -> Iterator[Transport]:
            from shepherd.experiment.sites.watched import Watched

            found = {"federation": self.name, "folder": str(self.folder.absolute()), "fingerprint": self.fingerprint}
            if not place_of(store.path, FILE).exists():
                store.write_json(FILE, {**found, "sites": sites})
            self.began(str(store.path))
            self.present.set(run=str(store.path), rounds=card.federation.rounds)
            settings = self.files.settings
            self.emit({"event": "phase", "phase": "wait for sites", "arm": None,
                       "detail": f"{self.name} is served at {settings.host}:{settings.port}"})  # fmt: skip
            self.files.prepare()
            limit = largest_answer(card)
            with (
                links.open_desk(self.files, lambda text: self._notes.put(Note(text, False))),
                links.open_transport(self.files.kit, limit, self.files.allowed, self._on_event) as transport,
            ):
                watched = Watched(transport, lambda: self._look(watched))
                yield watched

        return carrier

    @property
    def present(self) -> Presence:
        assert self._presence is not None, "served alone"
        return self._presence

    def emit(self, event: Event) -> None:
        """Pass an event on, and keep what of it is presence."""
        self.present.event(event)
        self.observer(event)

    def _allowed(self) -> frozenset[str]:
        """Who may take part, from a list that another process may change; read when its file has changed."""
        file = (self.folder / MEMBERS).stat()
        if (state := (file.st_mtime_ns, file.st_ino, file.st_size)) != self._state:
            self._state, self._members = state, self.files.allowed()
        return self._members

    def _look(self, watched: Any) -> None:
        self.present.tick(watched.last)
        while not self._notes.empty():
            note = self._notes.get()
            if note.warning and note.text not in self._warned:  # a site that is refused comes again and again
                self._warned.add(note.text)
                self.emit({"event": "warning", "message": note.text})
            elif not note.warning:
                self.emit({"event": "phase", "phase": "wait for sites", "arm": None, "detail": note.text})

    def _on_event(self, kind: str, **facts: Any) -> None:
        """An event of the transport, from a thread of it."""
        if kind in EVENTS:
            site = f"{facts['site']}: " if "site" in facts else ""
            self._notes.put(Note(site + EVENTS[kind].format(why=facts.get("why", "it ended")), True))
