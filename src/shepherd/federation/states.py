"""The states of a run and of its sites, as the lines of a journal: one line for every change, and for nothing else.

    ledger = Ledger(write, earlier_lines)
    ledger.site("hospital-a", "working", round=3, attempt=5)     # one line; ValueError for a step that is none

A ledger that is made of the lines of an earlier process has the states that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shepherd.errors import DataError
from shepherd.types import ClientId, SiteFacts

OVER = {"left", "removed"}
MOST_IGNORED = 50
"""Lines about what a site sends in vain, by attempt: a site cannot fill the disk of the coordinator."""
RUN: Mapping[str, set[str]] = {
    "": {"drafted"},
    "drafted": {"open", "stopped"},
    "open": {"round", "paused", "finished", "stopped"},
    "round": {"round", "paused", "finished", "stopped"},
    "paused": {"round", "paused", "open", "finished", "stopped"},
    "stopped": {"open"},
    "finished": set(),
}
"""State of the run -> those that may follow. A paused run waits until it is resumed or stopped. One that is open is
finished without a round where every cohort is empty, or where a resumed run has no round left."""
_ENDED = {"working", "offered", "finished"}
SITE: Mapping[str, set[str]] = {
    "": {"offered"},
    "offered": {"offered", "refused", "admitted"},
    "refused": {"offered"},
    "admitted": {"working", "offered", "finished"},
    "working": {"working", "answered", "late", "lost", "failed", "rejected", "offered"},
    "answered": {"rejected", *_ENDED},
    "rejected": {"answered", "failed", "lost", *_ENDED},
    "late": _ENDED,
    "lost": _ENDED,
    "failed": _ENDED,
    "finished": set(),
    "left": {"offered"},
    "removed": set(),
}
"""State of a site in the run -> those that may follow; each but removed may be followed by left and removed.

rejected -> answered, failed, lost: another answer after one that could not be used, in the same attempt.
working -> working: the attempt before was aborted.
"""


@dataclass
class Site:
    """A site of the run: its state, the session and facts of its admission, and its tasks."""

    state: str = ""
    reason: str = ""
    session: str = ""
    facts: SiteFacts | None = None
    ends: list[tuple[int, int]] = field(default_factory=list)
    """(round, row after its rows) of each task, in order."""

    @property
    def admitted(self) -> bool:
        """Whether it may be sampled."""
        return self.facts is not None and self.state not in ("", "offered", "refused", "finished", *OVER)


class Ledger:
    """The states of a run, changed by `write`-ing a line, and by lines alone."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None], lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._write = write
        self.state, self.round, self.attempt = "", 0, 0
        self.sites: dict[ClientId, Site] = {}
        self.present: set[ClientId] = set()
        self.eligible: dict[int, tuple[ClientId, ...]] = {}
        self.failed = 0  # the round that had too few updates, in this process: a resumed run first repeats it
        self._ignored: dict[ClientId, int] = {}
        for number, line in enumerate(lines, 1):
            try:
                self._change(line)()
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"line {number} of the journal does not follow from those before it: {error}",
                    hint="restore the journal from a copy",
                ) from None

    def run(self, state: str, **about: Any) -> None:
        """The run changes its state."""
        self._add({"event": "run", "state": state, **about})

    def pause(self) -> None:
        """The run waits for sites; nothing where it does already."""
        if self.state != "paused":
            self.run("paused", round=self.round)

    def connection(self, client: ClientId, present: bool) -> None:
        """A site is connected, or is not any more."""
        self._add({"event": "connection", "client": client, "present": present})

    def site(self, client: ClientId, state: str, **about: Any) -> None:
        """A site changes its state in the run."""
        self._add({"event": "site", "client": client, "state": state, **about})

    def attempted(self, round_number: int, clients: Iterable[ClientId], purpose: str) -> int:
        """A question to some sites: the number of the attempt, which no other has."""
        number = self.attempt + 1
        self._add(
            {"event": "attempt", "attempt": number, "round": round_number, "for": purpose, "clients": sorted(clients)}
        )
        return number

    def eligible_in(self, round_number: int, clients: Iterable[ClientId]) -> tuple[ClientId, ...]:
        """Who may be sampled in a round: a resumed run samples the same cohort. Others only where one is `gone`."""
        if round_number not in self.eligible or self.gone(round_number):
            self._add({"event": "eligible", "round": round_number, "clients": sorted(clients)})
        return self.eligible[round_number]

    def kept(self, round_number: int, present: Collection[ClientId], least: int) -> tuple[ClientId, ...] | None:
        """The sites of a round; None where they are still to be drawn, or anew: some are `gone`, and the round has
        failed or fewer than `least` of its sites are there."""
        known = self.eligible.get(round_number)
        if known is None or not self.gone(round_number):
            return known
        there = sum(client in present and self.of(client).admitted for client in known)
        return None if self.failed == round_number or there < least else known

    def gone(self, round_number: int) -> list[ClientId]:
        """Those of a round that have left, were removed or refuse the run since it was drawn."""
        return [client for client in self.eligible.get(round_number, ()) if self.of(client).state in ("refused", *OVER)]

    def ignored(self, client: ClientId, reason: str, **about: Any) -> None:
        """What arrived and has no effect: a line for each of the first ones of a site in an attempt."""
        number = self._ignored[client] = self._ignored.get(client, 0) + 1
        if number <= MOST_IGNORED:
            self._add({"event": "ignored", "client": client, "reason": reason, **about})

    def exchanged(
        self,
        attempt: int,
        down: Mapping[ClientId, int],
        up: Mapping[ClientId, int],
        seconds: Mapping[ClientId, float],
    ) -> None:
        """The bytes of an attempt by site, of questions and of all that came, and the seconds until each answer."""
        rounded = {client: round(taken, 3) for client, taken in sorted(seconds.items())}
        self._add({"event": "exchanged", "attempt": attempt, "down": dict(down), "up": dict(up), "seconds": rounded})

    def of(self, client: ClientId) -> Site:
        """A site by name; one without a state where it is not known."""
        return self.sites.get(client, Site())

    def counted(self, client: ClientId, first_row: int) -> int:
        """The last round in which an update of this client counted: the one whose rows end where its next ones begin.

        Only a counted update moves a client on in its rows, so the newest task that ended there is the one.
        """
        if first_row == 0:
            return 0
        found = [number for number, end in self.of(client).ends if end == first_row]
        if not found:
            raise DataError(
                f"the journal has no task of {client} that ended at row {first_row}, where its next one begins",
                hint="resume from the checkpoint that belongs to this journal",
            )
        return found[-1]

    def _add(self, line: Mapping[str, Any]) -> None:
        change = self._change(line)
        self._write(line)  # first: a change that is not written has not happened
        change()

    def _change(self, line: Mapping[str, Any]) -> Callable[[], None]:
        """The change that a line stands for. Raises ValueError for a step that is none."""
        try:
            kind = getattr(self, f"_change_{line['event']}")
        except AttributeError:
            raise ValueError(f"no event {line['event']!r}") from None
        return kind(line)

    def _change_run(self, line: Mapping[str, Any]) -> Callable[[], None]:
        expect(line["state"] in RUN[self.state], f"a run that is {self.state or 'new'} does not become {line['state']}")

        def change() -> None:
            self.state, self.round = line["state"], line.get("round", self.round)

        return change

    def _change_connection(self, line: Mapping[str, Any]) -> Callable[[], None]:
        client, present = line["client"], line["present"]
        expect(present != (client in self.present), f"{client} is connected or absent already")
        return lambda: (self.present.add if present else self.present.discard)(client)

    def _change_site(self, line: Mapping[str, Any]) -> Callable[[], None]:
        client, state = line["client"], line["state"]
        before = self.of(client).state
        possible = SITE[before] | (OVER if before != "removed" else set())
        expect(state in possible, f"a site that is {before or 'new'} does not become {state}")

        def change() -> None:
            site = self.sites.setdefault(client, Site())
            site.state, site.reason = state, line.get("reason", "")
            if state == "admitted":
                site.session, site.facts = line["session"], SiteFacts(line["rows"], line["digest"])
            if state == "working":
                site.ends.append((line["round"], line["end"]))

        return change

    def _change_attempt(self, line: Mapping[str, Any]) -> Callable[[], None]:
        expect(line["attempt"] > self.attempt, "an attempt does not come again")

        def change() -> None:
            self.attempt = line["attempt"]
            self._ignored.clear()

        return change

    def _change_eligible(self, line: Mapping[str, Any]) -> Callable[[], None]:
        number = line["round"]
        known = number in self.eligible and not self.gone(number)
        expect(not known, f"the sites of round {number} are known already")

        def change() -> None:
            self.eligible[number] = tuple(line["clients"])

        return change

    def _change_exchanged(self, _: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None

    def _change_ignored(self, _: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None


def expect(holds: bool, text: str) -> None:
    """Raise ValueError unless a step holds."""
    if not holds:
        raise ValueError(text)
