"""Which sites take part, and when: admission, waiting for enough of them, and questions to those that are there.

Every change is a line of the run's journal ("what": "sites"), so that a resumed run has the same sites in each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from shepherd.errors import ShepherdError, UsageError, plural
from shepherd.experiment.progress import Reporter
from shepherd.experiment.site_measures import Measures
from shepherd.experiment.sites.watched import Watched
from shepherd.federation.cards import RunCard
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.states import OVER, Ledger
from shepherd.federation.transport import Transport
from shepherd.federation.verdicts import ADMITTED, VERDICTS
from shepherd.report.sites.history import EXPECTED, WHAT
from shepherd.report.wording import listing
from shepherd.store import RunDirectory, read_journal
from shepherd.store.records import RoundRecord
from shepherd.types import ClientId, GlobalModel, ServerState, TrainTask
from shepherd.updates.privacy.publication import place_of

OWN = "own models"
"""Kind of lines in the run's journal: what sites measured of their own models."""
LONGEST_PAUSE = 15.0
"""Seconds until the card is offered again to sites that did not take part: a person may have approved it since."""


@dataclass(frozen=True)
class Terms:
    """How a run over sites is carried out, beside its recipe.

    sites: how many take part before the first round; later rounds need federation.min_updates. expected: names of
    sites that should take part, which are waited for by name, and in the report where they never came. allowed: those
    that may take part now; one that is not among them is removed. digest: of the base, where its weights are not here.
    offers: protections that the run gives, for sites that require them.

    The rest are seconds for which the coordinator waits, by a monotonic clock. offer: for answers to a card. enough:
    for enough sites before a round. back: after a restart, for the sites that took part before. step: for the next
    step of a site that is connected. measure: for measures. finish: for own models, which are trained. pause: until the
    card is offered again to sites that do not take part; it doubles, to LONGEST_PAUSE. A site that connects is offered
    the card within a second.
    """

    sites: int = 1
    expected: tuple[ClientId, ...] = ()
    allowed: Callable[[], Collection[ClientId]] | None = None
    digest: str = ""
    offers: tuple[str, ...] = ()
    offer: float = 60.0
    enough: float = math.inf
    back: float = 60.0
    step: float = math.inf
    measure: float = 600.0
    finish: float = 3600.0
    pause: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


USUAL = Terms()


class Attendance:
    """The sites of a run: who is admitted, who is there, and what they answer. deadline: seconds for an update."""

    def __init__(
        self,
        card: RunCard,
        transport: Transport,
        store: RunDirectory,
        reporter: Reporter,
        terms: Terms,
        deadline: float = 0.0,
    ) -> None:
        self.store, self.reporter, self.terms = store, reporter, terms
        self._journal = place_of(store.path, "journal.jsonl")
        lines = [row for row in read_journal(self._journal).rows if row["what"] == WHAT]
        ledger = Ledger(self._write, [_change(line) for line in lines])
        self.watched = Watched(transport, self._look, terms.clock)
        self.coordinator = Coordinator(card, self.watched, ledger, patience=terms.step, clock=terms.clock)
        self.deadline = deadline
        self._said: set[tuple[ClientId, str]] = set()
        self._waiting: dict[ClientId, str] = {}  # verdicts that are no refusal
        self._shown: Any = None
        self._awaited = {client for client, site in ledger.sites.items() if site.admitted}
        """Sites of an earlier process, or of a round that has failed, that may still come back."""
        if terms.expected:
            store.journal(EXPECTED, names=sorted(terms.expected))

    @property
    def least(self) -> int:
        """The sites with which the first round begins: those of the terms, without members that were removed since, and
        the N that the card of a private run promises."""
        ledger, card = self.coordinator.ledger, self.coordinator.card
        removed = len({*ledger.gone(1), *(c for c in self.terms.expected if ledger.of(c).state == "removed")})
        promised = card.privacy.sites if card.privacy is not None else 0
        return max(self.terms.sites - removed, card.federation.min_updates, promised)

    def wait_for(self, number: int) -> Sequence[ClientId]:
        """The sites that may be sampled in a round, when enough are there.

        Raises UsageError, with what each site has against it, when they are not within the patience; the run is paused.
        """
        return self._wait(number, lambda: self._eligible(number))

    def gather(self) -> None:
        """Wait for enough sites to measure the model, who need not be those of the last round."""
        least = self.coordinator.card.federation.min_updates
        self._wait(self.coordinator.ledger.round, lambda: found if len(found := self._there()) >= least else ())

    def stop(self) -> None:
        """Stop the run, which can be resumed; what is wrong with its directory is somebody else's to say."""
        if self.coordinator.ledger.state:
            with suppress(ShepherdError):
                self.coordinator.stop()

    def _wait(self, number: int, look: Callable[[], Sequence[ClientId]]) -> Sequence[ClientId]:
        begin, pause, shown, first = self.terms.clock(), self.terms.pause, "", True
        while True:
            verdicts = self.coordinator.admit(self.terms.offer)
            for client, verdict in verdicts.items():
                self._say(client, verdict)
            self._waiting |= verdicts
            self._waiting = {c: v for c, v in self._waiting.items() if self.coordinator.ledger.of(c).state == "offered"}
            self._look()
            waited = self.terms.clock() - begin
            away, first = self._still_away(waited, first=first), False
            if not away and (found := look()):
                return found
            few = self._too_few(number)
            if waited >= self.terms.enough:
                raise UsageError(few, hint="resume the run when they are there; nothing is lost")
            if few != shown and not away:
                shown = few
                self.reporter.detail("wait for sites", "; ".join(line.strip() for line in few.splitlines()))
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _sleep(self, seconds: float) -> None:
        """Sleep until the seconds are over, or another process of a site is connected."""
        before = self._sessions()
        for _ in range(math.ceil(seconds)):
            self.terms.sleep(min(1.0, seconds))
            if self._sessions() - before:
                return

    def _sessions(self) -> set[str]:
        self.coordinator.inbox.present()
        return {seen.session for seen in self.watched.seen.values()}

    def lacks(self, number: int, again: bool) -> bool:
        """Whether a round has too few updates because of sites that are lost. With enough of them there, `again` says
        whether the round may be done once more. The next wait is for the lost ones too, which may be in its cohort."""
        ledger, there = self.coordinator.ledger, self.coordinator.inbox.present()
        eligible = ledger.eligible[number]
        sites = {client: ledger.of(client) for client in eligible}
        lost = [
            client for client, site in sites.items()
            if client not in there or not site.admitted or (site.state, site.reason) == ("lost", "lost")
        ]  # fmt: skip
        few = len(there.intersection(eligible)) < self.coordinator.card.federation.min_updates
        if not lost or not (few or again or (ledger.gone(number) and self.coordinator.card.privacy is None)):
            return False
        ledger.failed = number
        self._awaited |= {client for client in lost if any(at == number for at, _ in ledger.of(client).ends[-1:])}
        return True

    def _still_away(self, waited: float, *, first: bool) -> bool:
        """Whether sites that took part before, and are awaited, may still come back: the cohort of a round may have
        them."""
        ledger = self.coordinator.ledger
        self._awaited -= set(self._there())
        self._awaited = {c for c in self._awaited if ledger.of(c).state not in ("refused", *OVER)}
        if self._awaited and waited < min(self.terms.back, self.terms.enough):
            if first:
                names = listing(sorted(self._awaited))
                self.reporter.warn(f"waits up to {self.terms.back:g} s for {names}: they took part before")
            return True
        self._awaited = set()
        return False

    def sizes(self, number: int, *, founders: bool = False) -> dict[ClientId, int]:
        """The rows that sites stated, of all that were eligible until a round; founders: of those in the first one.

        A site that comes back has the same number: else it is not admitted.
        """
        rounds = self.coordinator.ledger.eligible
        known = {client for at, clients in rounds.items() if at <= (1 if founders else number) for client in clients}
        facts = {client: self.coordinator.ledger.of(client).facts for client in sorted(known)}
        return {client: found.rows for client, found in facts.items() if found is not None}

    def timed(self, before: ServerState, after: ServerState, record: RoundRecord) -> ServerState:
        """The state after a round with the seconds that its sites took to answer; a late one took the longest of them,
        or the deadline. Of a site without an answer the seconds stay as they were."""
        found = self.coordinator.seconds
        least = max(self.deadline, *found.values(), 0.0)
        taken = {c: found[c] for c in record.cohort if c in found} | dict.fromkeys(record.late, least)
        history = dict(after.history)
        for client in record.cohort:
            former = before.history.get(client)
            history[client] = replace(history[client], seconds=taken.get(client, former.seconds if former else None))
        return replace(after, history=history)

    def measure(self, model: GlobalModel | None) -> Measures:
        """What the sites that are there measure of a model, None for the bare base, on the rows that they hold out."""
        return self.coordinator.measure(model, self._there(), "held-out", self.terms.measure)

    def hand_over(self, model: GlobalModel) -> None:
        """Send the sites that are there the last model, which they keep."""
        self.coordinator.measure(model, self._there(), "none", self.terms.measure)

    def finish(self, task: TrainTask) -> dict[ClientId, Any]:
        """What sites measured of their own models, those of an earlier process included: (nats, targets, rows)."""
        found: dict[ClientId, Any] = {}
        for row in read_journal(self._journal).rows:
            if row["what"] == OWN:
                found |= row["measures"]
        left = [c for c in self._there() if c in task.work and self.coordinator.ledger.of(c).state != "finished"]
        answers = self.coordinator.finish(task.part(left), self.terms.finish) if left else {}
        new = {c: [a.stat.total, a.stat.weight, sum(rows for *_, rows in a.groups)] for c, a in answers.items()}
        if new:
            self.store.journal(OWN, measures=new)
        return found | new

    def _there(self) -> list[ClientId]:
        """The admitted sites that are connected, those that have finished included."""
        ledger, present = self.coordinator.ledger, self.coordinator.inbox.present()
        away = {"", "offered", "refused", *OVER}
        return [client for client in sorted(present) if ledger.of(client).state not in away]

    def _eligible(self, number: int) -> tuple[ClientId, ...]:
        if number == 1 and self.coordinator.drawn(number) is None and len(self._there()) < self.least:
            return ()
        return self.coordinator.eligible(number)

    def _write(self, line: Mapping[str, Any]) -> None:
        self.store.journal(WHAT, **line)
        if line.get("state") == "refused":
            self._say(line["client"], line["reason"], str(line.get(line["reason"], "")))

    def _look(self) -> None:
        """Remove who is no member any more; an event where the state, presence or bytes of a site changed."""
        if self.terms.allowed is not None:  # the transport may have expelled it before, so that it is not seen here
            known = self.watched.seen.keys() | self.coordinator.ledger.sites.keys()
            for client in sorted(known - set(self.terms.allowed())):
                if self.coordinator.ledger.of(client).state != "removed":
                    self.coordinator.remove(client)
        rows = self.watched.rows(self.coordinator.ledger, self._waiting, self.terms.expected)
        news = {client: {**row, "last": None} for client, row in rows.items()}
        if news != self._shown:
            self._shown = news
            self.reporter.emit({"event": "sites", "sites": rows})

    def _say(self, client: ClientId, verdict: str, theirs: str = "") -> None:
        """A warning for each verdict against a site, once."""
        if verdict == ADMITTED or (client, verdict) in self._said:
            return
        self._said.add((client, verdict))
        card = self.coordinator.card
        ours = {"version": card.version, "base": card.base.digest, "tokenizer": card.tokenizer}.get(verdict, "")
        both = f": {theirs[:12]} there, {ours[:12]} here" if theirs and ours else ""
        self.reporter.warn(f"{client} does not take part: {VERDICTS.get(verdict, verdict)}{both}")

    def _too_few(self, number: int) -> str:
        there, least = self._there(), self.least if number == 1 else self.coordinator.card.federation.min_updates
        lines = [f"round {number} waits for {plural(least, 'site')}, and {len(there)} take part"]
        ledger = self.coordinator.ledger
        for client in sorted({*ledger.sites, *self.terms.expected} - set(there)):
            site = ledger.of(client)
            reason = f"refused: {VERDICTS.get(site.reason, site.reason)}" if site.state == "refused" else "not there"
            if site.state in OVER:
                reason = site.state
            if site.state in ("", "offered") and client in self.watched.seen:
                waits = self._waiting.get(client)
                reason = VERDICTS[waits] if waits else "it has not answered the card yet, as when it reads its rows"
            lines.append(f"  {client}: {reason}")
        return "\n".join(lines)


def _change(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("at", "what")}
