"""A site at work: the coordinator's questions are answered until it is stopped, and what happens is shown.

    with Attending(folder, show) as site:
        site.serve()                  # until stop(), Ctrl-C, `site leave`, or the end of a run with `once`

Messages come in a thread; events are shown, and a person is asked, in the thread that serves.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shepherd.experiment.site import open_site
from shepherd.experiment.sites import leaving, links, renewal
from shepherd.experiment.sites.decisions import Offered, decide, find_offer
from shepherd.experiment.sites.presence import Presence
from shepherd.federation.cards import SiteFile, read_site
from shepherd.federation.inbox import SMALL
from shepherd.federation.messages import Progress, read
from shepherd.federation.site import Site
from shepherd.federation.verdicts import ADMITTED, WAITING
from shepherd.store import read_json
from shepherd.store.site_folder import ROWS

SiteEvent = Mapping[str, Any]
"""An event of a site: {"event", …}. Those of messages are the lines of its log."""
Show = Callable[[SiteEvent], None]
SETTINGS = "site.toml"
LOOK = 0.5
"""Seconds between two looks at what other processes ask of this one."""
DELIVERY = 5.0
"""Seconds in which the last answer of a site that leaves goes out, and its goodbye."""
DAY = 86400.0
_READ = (ADMITTED, "no-rows", "few-rows", "cannot")
"""Verdicts on a card for which the rows were read, or were to be."""
_STATES = {ADMITTED: "taking part", WAITING: "waiting for approval"}


class Attending:
    """A site's process. yes: approve what the policy allows as long as this process runs. once: end with a run."""

    def __init__(
        self,
        folder: Path,
        show: Show,
        *,
        yes: bool = False,
        once: bool = False,
        ask: Callable[[Offered, SiteFile], bool] | None = None,
    ) -> None:
        self.folder, self.show, self.yes, self.once, self.ask = folder, show, yes, once, ask
        self.file = read_site(folder / SETTINGS)
        self.session = ""
        self._stop = threading.Event()
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._busy = threading.Lock()
        self._verdict = ""
        self._last: Mapping[str, Any] = {}
        self._asked: set[str] = set()
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._failed: BaseException | None = None
        self._site: Site | None = None

    # A process of the transport

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        """The answer to a message, from the transport's thread."""
        with self._busy:
            site = self.site
            self._verdict = ""
            answer = site.handle(data, lambda progress: self._report(progress, report))
            if self._verdict == WAITING and self.yes:
                run = str(self._last["run"])
                site.approve(run)
                answer = site.handle(data, report)
            return answer

    @property
    def site(self) -> Site:
        assert self._site is not None, "served"
        return self._site

    def _report(self, progress: bytes, report: Callable[[bytes], None]) -> None:
        message = read(progress, SMALL)
        assert isinstance(message, Progress)
        self._events.put({"event": "progress", "run": message.run, "round": message.round, "step": message.step,
                          "steps": message.steps, "loss": message.loss})  # fmt: skip
        report(progress)

    def _watch(self, line: Mapping[str, Any]) -> None:
        """A line of the site's log."""
        self._last = line
        if line["event"] in ("offer", "train", "measure", "finish"):
            self._verdict = str(line["verdict"])
        self._events.put(dict(line))

    # The loop

    def serve(self) -> None:
        """Serve until the end. Raises what ended the transport, and UsageError where another process is this site."""
        links.check_machine()
        renewal.member_of(self.folder)
        with open_site(self.folder / SETTINGS, self.folder, links.PROTECTIONS, self._watch) as site:
            self._site, self.session = site, site.session
            leaving.forget(self.folder)
            self._presence = Presence(self.folder, state="connecting")
            self._renew()  # an expired certificate does not connect, and an hour is long for an operator who looks
            try:
                while self._serve_until_renewed():
                    self._stop = threading.Event()
            finally:
                self._presence.set(state="stopped")

    def stop(self) -> None:
        """End serving."""
        self._stop.set()

    def _serve_until_renewed(self) -> bool:
        """Serve; True where the connection is to be made anew, with another certificate."""
        from shepherd.federation.enrolment import is_unsettled

        with self._connected() as thread:
            looked, renewed = time.monotonic(), False
            while thread.is_alive() and not self._stop.is_set():
                self._next_event()
                if (wish := leaving.wished(self.folder)) is not None:
                    self._leave(wish)
                if time.monotonic() - looked >= DAY / 24:
                    looked = time.monotonic()
                    renewed = self._renew()
                    if renewed:
                        self._stop.set()
        while not self._events.empty():
            self._next_event()
        if self._failed is not None:
            if not is_unsettled(self.folder):
                raise self._failed
            # `shepherd site renew` was killed between key and certificate: connecting anew completes it.
            self._failed, renewed = None, True
        return renewed

    @contextmanager
    def _connected(self) -> Iterator[threading.Thread]:
        from shepherd.federation.enrolment import settle

        settle(self.folder)

        def serve() -> None:
            try:
                limit = self.file.policy.max_message_mib * 2**20
                links.serve_site(self.folder / "kit", self, self._stop, self._outbox, self._on_event, limit)
            except BaseException as error:
                self._failed = error

        thread = threading.Thread(target=serve, name="transport", daemon=True)
        thread.start()
        try:
            yield thread
        finally:
            self._stop.set()
            thread.join()

    def _on_event(self, kind: str, **facts: Any) -> None:
        self._events.put({"event": kind, **facts})

    def _next_event(self) -> None:
        try:
            event = self._events.get(timeout=LOOK)
        except queue.Empty:
            self._presence.tick({})
            return
        self._note(event)
        self.show(event)
        if event["event"] == "offer" and event["verdict"] in _READ:
            self._show_rows(str(event["run"]))
        if event["event"] == "offer" and event["verdict"] == WAITING:
            self._ask(str(event["run"]))
        if self.once and event["event"] == "bye":
            self._stop.set()

    def _note(self, event: SiteEvent) -> None:
        """Keep what of an event is presence."""
        kind = event["event"]
        if kind in ("connected", "lost", "waiting", "refused", "restarting"):
            self._presence.set(
                connected=kind == "connected", state="connected" if kind == "connected" else "connecting"
            )
        elif kind == "bye":
            self._presence.set(state="connected", run=None, round=0)
        elif "run" in event:
            state = _STATES.get(str(event.get("verdict")), "refused") if kind == "offer" else "taking part"
            self._presence.set(run=event["run"], round=event.get("round", 0), state=state)

    def _show_rows(self, run: str) -> None:
        """An event of what became of the rows that this process has read for a run; none of it leaves the site."""
        file = self.folder / "runs" / run / ROWS
        found = read_json(file) if file.is_file() else None
        if found and found != self._rows.get(run):
            self._rows[run] = found
            self.show({"event": "rows", "run": run, **found})

    # A person

    def _ask(self, run: str) -> None:
        """Ask the person about a card that waits, once by process."""
        if self.ask is None or run in self._asked:
            return
        self._asked.add(run)
        offer = find_offer(self.folder, run)
        if offer.waits:
            decide(self.folder, offer, self.ask(offer, self.file))

    def _leave(self, wish: leaving.Wish) -> None:
        """Leave every run, after the question at work unless the person wants it dropped; then end."""
        if wish.now or self._busy.acquire(timeout=LOOK):
            for run in leaving.runs_of(self.site.store):
                self._outbox.put(self.site.leave(run))
            self.show({"event": "left"})
            time.sleep(DELIVERY)
            self._stop.set()
            if not wish.now:
                self._busy.release()

    def _renew(self) -> bool:
        return renewal.renew_if_due(self.folder, lambda text: self.show({"event": "note", "text": text}))
