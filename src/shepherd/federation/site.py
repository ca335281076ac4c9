"""A site's end of a federation: an offer is judged and approved, rows are read, tasks are trained and answered.

    site = Site("hospital-a", policy, own, trainer, SiteStore(Folder(path)))
    answer = site.handle(question)            # bytes in, bytes out; it raises nothing for anything that arrives

Before a row is read, the policy allows the card and a person has approved it, if the policy asks for one. A task starts
from the private state of the round that it names, and never from another one, so the same question has the same answer
after any loss or restart. An exception costs the answer: its class leaves the site, its text stays.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from shepherd.errors import DataError, UsageError
from shepherd.federation.cards import RUN, Policy, RunCard, read_card
from shepherd.federation.groups import are_finite, shown
from shepherd.federation.messages import (
    Answer,
    Bye,
    Facts,
    Finish,
    Measure,
    Measured,
    Message,
    Offer,
    Train,
    pack,
    read,
)
from shepherd.federation.policy import Own, judge
from shepherd.federation.site_log import Progress, SiteLog, reporter
from shepherd.federation.site_privacy import judge_rows, most_trainings, protected
from shepherd.federation.site_store import SiteStore, StateLost, Unwritten
from shepherd.federation.site_trainer import SiteTrainer
from shepherd.federation.task_policy import MOST_HEADER_BYTES, judge_round, judge_task, shown_of_a_step
from shepherd.federation.verdicts import ADMITTED, Refused
from shepherd.outcomes import code_of
from shepherd.rng import derive
from shepherd.types import ClientFailure, ClientUpdate, Stat, TrainTask
from shepherd.updates.layout import WireError
from shepherd.updates.task_wire import read_global, read_task
from shepherd.updates.wire import Envelope
from shepherd.updates.wire import pack as pack_update

_log = logging.getLogger(__name__)


class Site:
    """One site. `session` names this process; a copy of the site's folder that runs elsewhere has another."""

    def __init__(
        self, name: str, policy: Policy, own: Own, trainer: SiteTrainer, store: SiteStore,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:  # fmt: skip
        self.name, self.policy, self.own, self.trainer, self.store, self.now = name, policy, own, trainer, store, now
        self.session = secrets.token_hex(16)
        self._limit = policy.max_message_mib * 2**20
        self._header_limit = min(self._limit // 4, MOST_HEADER_BYTES)
        self._cards: dict[str, RunCard] = {}
        self._loaded = ""  # the run whose rows the trainer holds
        self._instead = 0  # of their number, as it is stated where that is larger
        self._last: tuple[bytes, bytes] = b"", b""  # digest of the last question, its answer
        self._asked = b""  # digest of the present question
        self._trained: tuple[bytes, ClientUpdate | ClientFailure | None] = b"", None  # what its training gave
        self._loss: float | None = None  # of the rows that the present message was about
        self.log = SiteLog(store, lambda: self.now().isoformat(timespec="seconds"))

    def handle(self, data: bytes, report: Callable[[bytes], None] = lambda progress: None) -> bytes | None:
        """The answer to a message, or None. `report` takes progress. Raises Unwritten where the disk refuses what must
        be on it before the answer leaves; the same message then has the same answer, and no training is repeated."""
        key = hashlib.sha256(data).digest() if type(data) is bytes else b""
        if key and key == self._last[0]:
            self.log.event("repeated", bytes_out=len(self._last[1]))
            return self._last[1]
        try:
            message = read(data, self._limit)
        except WireError as error:
            self.log.event("unreadable", verdict=error.code)
            return None
        progress, self._loss, self._asked = Progress(report), None, key
        sent = pack(answer) if (answer := self._answer(message, progress)) is not None else None
        self.log.message(message, len(data), len(sent or b""), answer, progress.bytes, self._loss)
        self._trained = b"", None
        if isinstance(answer, Answer) and not answer.code:
            self._last = key, sent or b""
        return sent

    def approve(self, run: str) -> RunCard:
        """Approve the card that a run has offered. Raises UsageError where there is none."""
        card = self._card(run) if re.fullmatch(RUN, run) else None
        if card is None:
            raise UsageError(f"no card of a run {run} was offered to {self.name}")
        self.store.decide(run, card.digest, ADMITTED)
        self.log.event("approved", run=run, card=card.digest)
        return card

    def leave(self, run: str) -> bytes:
        """Leave a run: the goodbye to send. Tasks of the run are refused from now on. Raises UsageError for no run."""
        if not re.fullmatch(RUN, run) or not self.store.record(run):
            raise UsageError(f"no card of a run {run} was offered to {self.name}")
        self.store.note(run, left=True)
        self.log.event("left", run=run)
        return pack(Bye(run, 0, 0, self.session, "left"))

    def _answer(self, message: Message, report: Callable[[bytes], None]) -> Message | None:
        match message:
            case Offer():
                return self._facts(message)
            case Train() | Measure() | Finish():
                return self._work(message, report)
            case Bye() if self.store.record(message.run):
                self.store.note(message.run, over=True)
        return None  # what only sites send

    # Offers

    def _facts(self, offer: Offer) -> Facts:
        verdict, rows, digest = self._judge(offer), 0, ""
        if verdict == ADMITTED:
            record = self.store.record(offer.run)
            rows, digest = int(record["rows"]), str(record["digest"])
        own = self.own
        return Facts(
            offer.run, offer.round, offer.attempt, self.session, verdict, rows, digest, own.base, own.tokenizer,
            own.version,
        )  # fmt: skip

    def _judge(self, offer: Offer) -> str:
        if offer.client != self.name:
            return "other-site"
        try:
            card = read_card(offer.card)
        except WireError:
            return "card"
        record = self.store.record(offer.run)
        if card.run != offer.run or record.get("card", card.digest) != card.digest:
            return "card-changed"
        if record.get("left"):
            return "left"
        if not record and len(self.store.runs()) >= self.policy.max_runs:
            return "runs"
        if not record and judge(card, self.policy, self.own) == ADMITTED:
            self.store.keep_card(offer.run, card.to_json())
            self.store.note(offer.run, card=card.digest, attempt=0)
        return self._load(offer.run, card)

    def _load(self, run: str, card: RunCard) -> str:
        """Read the rows, once by process and run, of a card that is allowed: "admitted", or the reason against it."""
        verdict = ADMITTED if self._loaded == run else judge(card, self.policy, self.own)
        if verdict == ADMITTED and self.policy.approve == "ask":  # also of a run at work, which a person may stop so
            verdict = self.store.decision(run, card.digest)
        if verdict != ADMITTED or self._loaded == run:
            return verdict
        self._loaded = ""  # whatever comes of it, the trainer no longer has the rows of the run before
        try:
            facts = self.trainer.load_rows(card)
        except Exception as error:
            _log.debug("rows cannot be loaded", exc_info=True)
            return "no-rows" if isinstance(error, DataError) else "cannot"
        if facts.rows < max(self.policy.min_rows, self.policy.min_rows_round):
            return "few-rows" if facts.rows else "no-rows"
        record = self.store.record(run)
        stated = int(record.get("rows", max(facts.rows, self.policy.min_rows_tell)))  # as first, whatever policy since
        if against := judge_rows(card, self.policy, facts.rows) or judge_round(card, self.policy, stated):
            return against
        salted = hashlib.sha256(self.store.salt() + f"{facts.rows}:{facts.digest}".encode()).hexdigest()
        if record.get("digest", salted) != salted:
            return "rows-changed"
        if "digest" not in record:
            self.store.note(run, rows=stated, digest=salted)
        self._instead = stated if stated > facts.rows else 0
        self._loaded = run
        return ADMITTED

    # Tasks and measures

    def _work(self, message: Train | Measure | Finish, report: Callable[[bytes], None]) -> Answer | Measured:
        code, detail = "", ""
        try:
            card = self._admit(message)
            if isinstance(message, Train):
                return self._train(message, card, report)
            return self._measured(message, card)
        except Refused as refusal:
            code, detail = "refused", refusal.verdict
        except StateLost:
            code = "no-state"
        except Unwritten:
            raise
        except Exception as error:
            _log.debug("round %d failed", message.round, exc_info=True)
            code = code_of(error)
        name = (message.run, message.round, message.attempt, self.session)
        return Answer(*name, code, detail, b"") if isinstance(message, Train) else Measured(*name, code, detail, ())

    def _admit(self, message: Train | Measure | Finish) -> RunCard:
        """The card of the message's run. Raises Refused."""
        if message.client != self.name:
            raise Refused("other-site")
        record, card = self.store.record(message.run), self._card(message.run)
        if card is None or "digest" not in record:
            raise Refused("not-admitted")
        if record.get("left"):
            raise Refused("left")
        if message.attempt < record["attempt"]:
            raise Refused("stale")
        if (verdict := self._load(message.run, card)) != ADMITTED:
            raise Refused(verdict)
        return card

    def _task(self, message: Train | Finish, card: RunCard) -> TrainTask:
        """The task of a message, within the policy. Raises Refused."""
        try:
            task = read_task(message.task, self._header_limit)
        except WireError:
            raise Refused("task") from None
        if against := judge_task(task, message, card, self.policy, self.now(), self.store.record(message.run)["rows"]):
            raise Refused(against)
        return task

    def _train(self, message: Train, card: RunCard, report: Callable[[bytes], None]) -> Answer:
        task = self._task(message, card)
        work = task.work[self.name]
        key, reply = self._trained
        if reply is None or key != self._asked:
            private = self.store.state(message.run, message.counted, work.first_row)
            self._count(message, "trainings", most_trainings(card, self.policy.max_trainings))
            steps = reporter(message, self.session, report, shown_of_a_step(work, card, self.policy))
            reply = protected(partial(self.trainer.train, task, private, steps), self.store, message.run, task, card)
            self._trained = self._asked, reply
        name = (message.run, message.round, message.attempt, self.session)
        if isinstance(reply, ClientFailure):
            return Answer(*name, reply.code, reply.detail, b"")
        self._loss = reply.metrics.get("loss")
        stated = replace(reply, num_examples=int(self.store.record(message.run)["rows"]), private={})
        sealed = pack_update(stated, self._envelope(message.run, task, card))
        # Before the answer leaves: an update that counts has its state.
        self.store.keep(message.run, message.round, work.first_row + work.rows, message.counted, reply.private)
        return Answer(*name, "", "", sealed)

    def _measured(self, message: Measure | Finish, card: RunCard) -> Measured:
        if isinstance(message, Finish):
            task = self._task(message, card)
            first = task.work[self.name].first_row
            self._count(message, "trainings", self.policy.max_trainings)
            groups = self.trainer.finish(task, self.store.state(message.run, message.counted, first))
        else:
            try:
                model = read_global(message.model, self._header_limit) if message.model else None
            except WireError:
                raise Refused("task") from None
            if model is not None and model.adapter.base_digest != card.base.digest:
                raise Refused("base")
            if card.privacy is not None and message.rows_of != "none":
                raise Refused("losses")
            self._count(message, "measures", self.policy.max_measures)
            groups = self.trainer.measure(model, message.rows_of)
        self._loss = sum((group.stat for group in groups.values()), Stat()).mean if groups else None
        name = (message.run, message.round, message.attempt, self.session)
        if card.privacy is not None and isinstance(message, Finish):
            raise Refused("losses")
        if not are_finite(groups):
            return Measured(*name, "diverged", "a loss is not finite", ())
        names = self.policy.categories == "shown"
        rows = shown(groups, self.policy.least_group, names=names, instead=self._instead)
        if not rows and getattr(message, "rows_of", "") != "none":
            raise Refused("few-held-out")
        return Measured(*name, "", "", rows)

    def _count(self, message: Train | Measure | Finish, what: str, most: int) -> None:
        """Note that the work of a message begins. Raises Refused after too many: each shows something of the rows."""
        done = self.store.record(message.run).get(what, 0)
        if done >= most:
            raise Refused(what)
        self.store.note(message.run, attempt=message.attempt, **{what: done + 1})

    def _envelope(self, run: str, task: TrainTask, card: RunCard) -> Envelope:
        adapter = task.views[self.name].adapter
        nonce = f"{derive(task.seed, 'nonce', self.name, task.round):016x}"
        return Envelope(run, nonce, card.base.digest, self.own.tokenizer, adapter.r, adapter.scale)

    def _card(self, run: str) -> RunCard | None:
        if run not in self._cards:
            data = self.store.card(run)
            if data is None:
                return None
            card = read_card(data)
            if card.run != run:  # of a file system to which upper and lower case are one
                return None
            self._cards[run] = card
        return self._cards[run]
