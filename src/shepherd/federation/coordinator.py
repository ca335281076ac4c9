"""The coordinator's end of a federation: present and admitted sites, their tasks, and which answers count.

    coordinator = Coordinator(card, transport, Ledger(journal.append, lines), largest)
    coordinator.open(); coordinator.admit(deadline=60.0)
    clients = coordinator.eligible(4)                  # journalled: a resumed run samples the same cohort
    for reply in coordinator.train(task): ...          # updates as bytes, failures, and who is late

(run, round, attempt, client) names an answer, and the first usable one counts. An attempt that ends with an exception
has not happened: the same task asked again is another attempt, and each site starts from the private state of the last
round in which its update counted. Time is monotonic; of a site only the counts of its admission are believed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from shepherd.clients.progress import Observe, ignore
from shepherd.federation.cards import RunCard
from shepherd.federation.inbox import Inbox, Wait
from shepherd.federation.limits import check_counts, is_possible, verdict_on
from shepherd.federation.messages import Answer, Bye, Facts, Finish, Measure, Measured, Message, Offer, Train, pack
from shepherd.federation.policy import largest_answer
from shepherd.federation.privacy_card import shown_cohort
from shepherd.federation.states import OVER, Ledger
from shepherd.federation.transport import Transport
from shepherd.federation.verdicts import ADMITTED, WAITING
from shepherd.federation.waiting import Waiting
from shepherd.outcomes import outcome_of
from shepherd.types import ClientFailure, ClientId, GlobalModel, SiteFacts, TrainTask
from shepherd.updates.layout import WireError
from shepherd.updates.replies import Late, Reply
from shepherd.updates.task_wire import pack_global, pack_task
from shepherd.updates.wire import Sealed


class Coordinator:
    """The rules of a run for its sites. `patience`: seconds without a step after which a connected site hangs."""

    def __init__(
        self,
        card: RunCard,
        transport: Transport,
        ledger: Ledger,
        *,
        patience: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card, self.transport, self.ledger = card, transport, ledger
        self.patience, self.clock = patience, clock
        self.seconds: dict[ClientId, float] = {}  # from the question to the answer, of the last attempt
        self.bytes_up = self.bytes_down = 0  # of usable answers and of tasks, whole, since this object was made
        self.inbox = Inbox(card.run, transport, ledger)
        self._bytes = card.to_json()
        self._usable: tuple[int, set[ClientId]] = 0, set()  # a round, and who gave a usable update in it

    # The run and its sites

    def open(self) -> None:
        """Open the run to sites; one that is open already stays as it is."""
        if not self.ledger.state:
            self.ledger.run("drafted", card=self.card.digest)
        if self.ledger.state in ("drafted", "stopped"):
            self.ledger.run("open")

    def admit(self, deadline: float = 60.0) -> Mapping[ClientId, str]:
        """Offer the card to the sites that are present and not admitted by their present process: the verdicts.

        A site that restarted is offered the card again, so that it shows that its rows are the same.
        """
        offered = [client for client in sorted(self.inbox.present()) if self._is_to_be_offered(client)]
        if not offered:
            return {}
        attempt = self.ledger.attempted(0, offered, "offer")
        messages = {}
        for client in offered:
            self.ledger.site(client, "offered")
            messages[client] = pack(Offer(self.card.run, 0, attempt, client, self._bytes))
        return {
            client: self._judge(client, message)
            for client, message, _ in self.inbox.answers(messages, attempt, Wait(deadline))
            if isinstance(message, Facts) and self.ledger.of(client).state == "offered"
        }

    def eligible(self, round_number: int) -> tuple[ClientId, ...]:
        """The sites that may be sampled in a round: those `drawn` before, also after a restart, else those that are
        there and admitted; none, and the run waits, where too few of them are there."""
        known = self.drawn(round_number)
        there = [c for c in self.inbox.present() if self.ledger.of(c).admitted and (known is None or c in known)]
        if len(there) < self.card.federation.min_updates and self.ledger.state != "finished":
            self.ledger.pause()
            return ()
        return known or self.ledger.eligible_in(round_number, there)

    def drawn(self, round_number: int) -> tuple[ClientId, ...] | None:
        """The sites of a round, None where it is to be drawn. A private run draws once: its account is of them."""
        known = self.ledger.kept(round_number, self.inbox.present(), self.card.federation.min_updates)
        return known if self.card.privacy is None else self.ledger.eligible.get(round_number)

    def facts(self) -> dict[ClientId, SiteFacts]:
        """What the admitted sites stated of their rows."""
        known = ((client, site.facts) for client, site in sorted(self.ledger.sites.items()) if site.admitted)
        return {client: facts for client, facts in known if facts is not None}

    def settle(self, round_number: int, outcomes: Mapping[ClientId, str]) -> None:
        """Note that updates of a committed round were rejected by the gate."""
        for client, outcome in sorted(outcomes.items()):
            if outcome == "rejected" and self.ledger.of(client).state == "answered":
                self.ledger.site(client, "rejected", round=round_number)

    def remove(self, client: ClientId) -> None:
        """Expel a site from the run and the federation."""
        self.ledger.site(client, "removed")
        self.transport.expel(client)

    def stop(self) -> None:
        """Stop the run; it can be opened again."""
        if self.ledger.state not in ("", "finished", "stopped"):
            self.ledger.run("stopped")

    # A round

    def train(
        self,
        task: TrainTask,
        deadline: float = math.inf,
        enough: Callable[[], bool] = lambda: False,
        observe: Observe = ignore,
    ) -> Iterator[Reply]:
        """A reply for every client of the task. Raises what the transport raises; then nothing has happened.

        A client that is not admitted, as after a restart at which it did not come back, is lost at once.
        """
        self.inbox.present()
        away = [client for client in sorted(task.work) if not self.ledger.of(client).admitted]
        task = task.part(client for client in task.work if client not in away)
        for client in away:
            self.ledger.ignored(client, "unreached", round=task.round)
            yield ClientFailure(client, task.round, "lost", "the site does not take part at present")
        if not task.work:
            return
        counted = {client: self.ledger.counted(client, work.first_row) for client, work in task.work.items()}
        if self.ledger.state != "round" or self.ledger.round != task.round:
            self.ledger.run("round", round=task.round)
        attempt, cohort = self.ledger.attempted(task.round, task.work, "train"), self._cohort(task)
        messages = {}
        for client, work in sorted(task.work.items()):
            end = work.first_row + work.rows
            self.ledger.site(client, "working", round=task.round, attempt=attempt, end=end)
            part = pack_task(task.part([client]))
            messages[client] = pack(Train(self.card.run, task.round, attempt, client, counted[client], cohort, part))
        self.bytes_down += sum(map(len, messages.values()))
        waiting, self.seconds = Waiting(messages, self.clock, self.patience, self._has_left), {}
        over = lambda: enough() or waiting.settled  # noqa: E731
        wait = Wait(deadline, largest_answer(self.card), over, waiting.sign)
        for client, answer, seconds in self.inbox.answers(messages, attempt, wait, observe):
            reply = self._take(client, answer, task, waiting)
            if reply is not None:
                self.seconds.setdefault(client, seconds)
                yield reply
        yield from self._without_answer(waiting, task)

    def measure(
        self,
        model: GlobalModel | None,
        cohort: Iterable[ClientId],
        rows_of: str = "held-out",
        deadline: float = math.inf,
    ) -> dict[ClientId, Measured]:
        """What each site of the cohort measures on its rows; a site without an answer is left out."""
        clients = sorted(cohort)
        number, run = self.ledger.round, self.card.run
        attempt = self.ledger.attempted(number, clients, "measure")
        data = pack_global(model) if model is not None else b""
        messages = {c: pack(Measure(run, number, attempt, c, rows_of, data)) for c in clients}
        return self._measured(messages, attempt, deadline)

    def finish(self, task: TrainTask, deadline: float = math.inf) -> dict[ClientId, Measured]:
        """Let each site make its own model of the last ones, and take the measures of it."""
        attempt = self.ledger.attempted(task.round, task.work, "finish")
        messages = {}
        for client, work in sorted(task.work.items()):
            counted, part = self.ledger.counted(client, work.first_row), pack_task(task.part([client]))
            messages[client] = pack(Finish(self.card.run, task.round, attempt, client, counted, part))
        found = self._measured(messages, attempt, deadline)
        for client in sorted(found):
            if self.ledger.of(client).admitted:  # it may have left since
                self.ledger.site(client, "finished")
        return found

    def end(self) -> None:
        """The run is over for everybody."""
        self.ledger.run("finished")
        goodbye = pack(Bye(self.card.run, self.ledger.round, self.ledger.attempt, "", "finished"))
        for client in sorted(self.ledger.present):
            self.transport.tell(client, goodbye)

    def _cohort(self, task: TrainTask) -> int:
        """How many sites a task has, with those of earlier cohorts of the round that gave a usable update."""
        if self._usable[0] != task.round:
            self._usable = task.round, set()
        return shown_cohort(self.card.privacy, len(self._usable[1] | task.work.keys()))

    # What arrives

    def _judge(self, client: ClientId, facts: Facts) -> str:
        """Admit a site, or note why not."""
        site, verdict = self.ledger.of(client), verdict_on(facts, self.card)
        if verdict == ADMITTED and site.facts not in (None, SiteFacts(facts.rows, facts.digest)):
            verdict = "rows-changed"
        if verdict == ADMITTED:
            self.ledger.site(client, "admitted", session=facts.session, rows=facts.rows, digest=facts.digest)
        elif verdict != WAITING:
            theirs = {"version": facts.version, "base": facts.base, "tokenizer": facts.tokenizer}
            self.ledger.site(
                client, "refused", reason=verdict, **({verdict: theirs[verdict]} if verdict in theirs else {})
            )
        return verdict

    def _take(
        self, client: ClientId, answer: Message | WireError | None, task: TrainTask, waiting: Waiting
    ) -> Reply | None:
        """The reply in an answer; None where it has no effect."""
        if not waiting.awaits(client) or self._has_left(client):
            self.ledger.ignored(client, "duplicate", round=task.round)
            return None
        if answer is None:
            return self._failed(client, task, "lost", "the site is gone", waiting)
        if isinstance(answer, WireError):
            return self._failed(client, task, answer.code, answer.detail, waiting)
        if not isinstance(answer, Answer) or answer.round != task.round:
            self.ledger.ignored(client, "unasked", round=answer.round)
            return None
        if answer.code:
            return self._failed(client, task, answer.code, answer.detail, waiting)
        try:
            check_counts(answer.update, task, client, self.ledger.of(client).facts, self.card)
        except WireError as error:
            return self._failed(client, task, error.code, error.detail, waiting)
        self.bytes_up += len(answer.update)
        waiting.settle(client)
        self._usable[1].add(client)
        self.ledger.site(client, "answered", round=task.round)
        return Sealed(client, answer.update)

    def _failed(
        self, client: ClientId, task: TrainTask, code: str, detail: str, waiting: Waiting
    ) -> ClientFailure | None:
        """The reply for an answer without a usable update. A rejected one is held back: a usable one may follow."""
        outcome = outcome_of(code, detail)
        failure = ClientFailure(client, task.round, code, detail)
        if self.ledger.of(client).state == "working" or outcome != "rejected":
            self.ledger.site(client, outcome, round=task.round, reason=detail if code == "refused" else code)
        else:
            self.ledger.ignored(client, code, round=task.round)
        if outcome == "rejected":
            waiting.reject(client, failure)
            return None
        waiting.settle(client)
        return failure

    def _without_answer(self, waiting: Waiting, task: TrainTask) -> Iterator[Reply]:
        """Who was rejected, who is late, who hangs and who is lost when the wait is over."""
        there = self.inbox.present()
        yield from waiting.rejected
        for client in waiting.outstanding:
            if self.ledger.of(client).state != "working":  # it has left
                yield ClientFailure(client, task.round, "lost", "the site has left")
            elif client not in there:
                self.ledger.site(client, "lost", round=task.round, reason="lost")
                yield ClientFailure(client, task.round, "lost", "the site is gone")
            elif waiting.hangs(client):
                self.ledger.site(client, "lost", round=task.round, reason="hang")
                yield ClientFailure(client, task.round, "hang", f"no step for {self.patience:g} s")
            else:
                self.ledger.site(client, "late", round=task.round)
                yield Late(client, task.round)

    def _measured(self, messages: Mapping[ClientId, bytes], attempt: int, deadline: float) -> dict[ClientId, Measured]:
        found: dict[ClientId, Measured] = {}
        for client, message, _ in self.inbox.answers(messages, attempt, Wait(deadline)):
            if not isinstance(message, Measured) or message.code or client in found:
                continue
            if is_possible(message, self.ledger.of(client).facts, self.card):
                found[client] = message
            else:
                self.ledger.ignored(client, "count", round=message.round)
        return dict(sorted(found.items()))

    # Before a question

    def _has_left(self, client: ClientId) -> bool:
        return self.ledger.of(client).state in OVER

    def _is_to_be_offered(self, client: ClientId) -> bool:
        site = self.ledger.of(client)
        if site.state in ("removed", "finished"):
            return False
        return not site.admitted or site.session != self.inbox.holders[client]
