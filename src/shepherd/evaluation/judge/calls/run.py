"""Make the calls of a plan that no line records yet, several at once, and stop where going on costs money for nothing.

done = run(calls, protocol, ledger, complete, threads=4)
done.calls            # one per planned call, with its reply
done.fault            # why it stopped before the end, or None
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from shepherd.errors import ResourceError, ShepherdError, plural
from shepherd.evaluation.judge.calls.client import Complete
from shepherd.evaluation.judge.calls.cost import BYTES_PER_TOKEN, Price
from shepherd.evaluation.judge.calls.faults import FINAL, CallError
from shepherd.evaluation.judge.calls.ledger import Ledger
from shepherd.evaluation.judge.calls.plan import Planned, again
from shepherd.evaluation.judge.calls.protocols import Protocol, reading_of
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.replay import outdated

IN_A_ROW = 3
"""Failed calls without a successful one in between after which the rest is not tried."""


@dataclass(frozen=True)
class Limit:
    """Most calls and most money of one command; None: no limit. price: needed for `cost`. stop: set where no further
    call is wanted, also by the command itself."""

    calls: int | None = None
    cost: float | None = None
    price: Price | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Done:
    """What a command did. calls: one per planned call that has a reply, re-asks in place of what they mend. made:
    calls of this command, recorded: those that stood in the file. failed: planned calls that are left without a reply.
    tokens: of the calls made, estimated where the endpoint did not count.
    fault: the error that ended the calls, None where all were tried."""

    calls: list[Call] = field(default_factory=list)
    made: int = 0
    recorded: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None
    seconds: float = 0.0
    fault: ShepherdError | None = None


class _Work:
    """The planned calls that threads take one after the other, and what they share."""

    def __init__(self, calls: Sequence[Planned], protocol: Protocol, ledger: Ledger, complete: Complete,
                 limit: Limit) -> None:  # fmt: skip
        self.left = iter({one.call.key: one for one in calls}.values())  # equal calls are made once
        self.protocol, self.ledger, self.complete, self.limit = protocol, ledger, complete, limit
        self.lock, self.stop = threading.Lock(), limit.stop
        self.done, self.in_a_row = Done(), 0
        self.crash: BaseException | None = None

    def go(self, observe: Callable[[Done], None] | None) -> None:
        try:
            while not self.stop.is_set():
                with self.lock:
                    planned = next(self.left, None)
                if planned is None:
                    return
                self.judge(planned)
                if observe is not None:
                    with self.lock:
                        observe(self.done)
        except BaseException as error:  # of a full disk, for one: the main thread raises it
            self.crash = error
            self.stop.set()

    def judge(self, planned: Planned) -> None:
        first = self.call(planned)
        if first is not None and unread(first):
            self.call(again(planned, first.text, self.protocol))

    def call(self, planned: Planned) -> Call | None:
        if recorded := self.ledger.found(planned.call.key):
            with self.lock:
                self.done.recorded += 1
            return recorded
        with self.lock:
            if self.stop.is_set() or self.over():
                return None
            self.done.made += 1
        try:
            reply = self.complete(planned.messages, planned.decoding)
        except CallError as error:
            self.failed(planned, error)
            return None
        call = dataclasses.replace(
            planned.call, outcome="refused" if reply.refused else "answered", text=reply.text,
            answered_model=reply.model, finish=reply.finish, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out,
            seconds=round(reply.seconds, 3), tries=reply.tries, ignored=reply.ignored, time=_now(),
        )  # fmt: skip
        self.ledger.append(call)
        with self.lock:
            self.in_a_row = 0
            asked, replied = (math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in (planned.text, call.text))
            self.done.tokens_in += asked if call.tokens_in is None else call.tokens_in
            self.done.tokens_out += replied if call.tokens_out is None else call.tokens_out
            if self.limit.price is not None:
                self.done.cost = self.limit.price.of(self.done.tokens_in, self.done.tokens_out)
        return call

    def failed(self, planned: Planned, error: CallError) -> None:
        self.ledger.append(
            dataclasses.replace(planned.call, outcome="failed", error=error.message, tries=error.tries, time=_now())
        )
        with self.lock:
            self.in_a_row += 1
            if error.reason in FINAL or self.in_a_row >= IN_A_ROW:
                self.done.fault = self.done.fault or error
                self.stop.set()

    def over(self) -> bool:
        """Whether the next call is one too many; the caller holds the lock."""
        limit, done = self.limit, self.done
        if limit.calls is not None and done.made >= limit.calls:
            what = "no more calls are allowed by --max-calls"
        elif limit.cost is not None and done.cost is not None and done.cost >= limit.cost:
            what = "no more cost is allowed by --max-cost"
        else:
            return False
        done.fault = done.fault or ResourceError(what, hint="raise the limit and repeat the command: it goes on")
        self.stop.set()
        return True


def run(
    calls: Sequence[Planned], protocol: Protocol, ledger: Ledger, complete: Complete, *, threads: int = 4,
    limit: Limit | None = None, observe: Callable[[Done], None] | None = None,
) -> Done:  # fmt: skip
    """Make the calls that `ledger` lacks, and one re-ask of each text that the protocol does not read.

    Interrupted, it waits for the calls in flight, which are paid for, and records them. observe: receives the counts
    after each call.
    """
    start = time.monotonic()
    work = _Work(calls, protocol, ledger, complete, limit or Limit())
    crew = [threading.Thread(target=work.go, args=(observe,), daemon=True) for _ in range(max(1, threads))]
    try:
        for one in crew:
            one.start()
        for one in crew:
            one.join()
    except BaseException:
        work.stop.set()
        for one in crew:
            if one.ident is not None:
                one.join()
        raise
    if work.crash is not None:
        raise work.crash
    done = work.done
    done.calls = [call for one in calls if (call := _reply(one, protocol, ledger)) is not None]
    found = (ledger.found(call.key) for call in done.calls)
    for call in outdated(filter(None, found), ledger):  # of answers that are back again: the last lines count
        ledger.append(call)
    done.failed = len(calls) - len(done.calls)
    done.seconds = time.monotonic() - start
    if done.fault is not None:
        kept = f"{len(done.calls)} of {plural(len(calls), 'call')} are recorded in {ledger.file}"
        done.fault.message += f"; {kept}"
        done.fault.args = (done.fault.message,)
        done.fault.hint = "; ".join(filter(None, (done.fault.hint, "the same command goes on from there")))
    return done


def unread(call: Call) -> bool:
    """Whether the judge replied with a text that the protocol does not read."""
    return call.outcome == "answered" and reading_of(call) is None


def to_make(calls: Sequence[Planned], protocol: Protocol, ledger: Ledger) -> list[Planned]:
    """The calls that no line records, equal ones once, and the re-asks that an interrupted command owes."""
    missing: dict[str, Planned] = {}
    for one in calls:
        found = ledger.found(one.call.key)
        if found is not None and unread(found):
            one = again(one, found.text, protocol)
            found = ledger.found(one.call.key)
        if found is None:
            missing[one.call.key] = one
    return list(missing.values())


def _reply(planned: Planned, protocol: Protocol, ledger: Ledger) -> Call | None:
    """The planned call with its recorded reply, or that of its re-ask, under the names of the plan."""
    found = ledger.found(planned.call.key)
    if found is not None and unread(found):
        found = ledger.found(again(planned, found.text, protocol).call.key) or found
    if found is None:
        return None
    return dataclasses.replace(
        planned.call, key=found.key, ask=found.ask, outcome=found.outcome, text=found.text,
        answered_model=found.answered_model, finish=found.finish, tokens_in=found.tokens_in,
        tokens_out=found.tokens_out, seconds=found.seconds, tries=found.tries, ignored=found.ignored,
        error=found.error, time=found.time,
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
