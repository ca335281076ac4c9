"""Clients in N worker processes, each with a base of its own; what comes back are messages that pass the gate.

    with Workers(count=2, build=…, data=rows.clients, run="0f3a…", here=LocalEngine(…)) as engine:
        run_round(state, plan, engine)

Clients are dealt over the workers by name, so a client always trains in the same place. A worker that ends, or gives
no sign of life for `patience` seconds, costs the clients that it still owed; another takes its place. Workers are
started with `spawn`: a script that runs this must keep its own code under `if __name__ == "__main__":`.

What a worker sends is bytes that are read here field by field: nothing that comes back is unpickled.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from shepherd.clients.progress import STATES, Progress, StepReport
from shepherd.engines.worker_process import Build, Data, _log, _worker
from shepherd.errors import ResourceError, ShepherdError
from shepherd.types import ClientFailure, ClientId, GlobalModel, Tensors, Tokens, TrainTask
from shepherd.updates.wire import Sealed

if TYPE_CHECKING:  # torch is for the engine that `build` makes: a worker begins quickly, and without it where it may
    from shepherd.engines.local import LocalEngine
    from shepherd.evaluation.losses import RowLosses

Observe = Callable[[StepReport], None]


class Workers:
    """The engine: `count` processes for training, this process (`here`) for evaluation."""

    def __init__(
        self, count: int, build: Build, data: Data, here: LocalEngine, *, run: str = "", patience: float = 600.0
    ) -> None:
        names = sorted(data)
        self.here, self.run, self.patience = here, run, patience
        self._worker_of = {name: index % count for index, name in enumerate(names)}
        self._places = [_Place(build, {name: data[name] for name in names[index::count]}) for index in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for place in self._places:
            place.end()

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        return self.here.evaluate(model, rows)

    def train(
        self,
        task: TrainTask,
        private: Mapping[ClientId, Tensors],
        observe: Observe = lambda report: None,
    ) -> Iterator[Sealed | ClientFailure]:
        """Messages and failures in order of arrival. Raises ResourceError when a worker cannot be made at all."""
        busy: list[_Place] = []
        for index, place in enumerate(self._places):
            mine = [name for name in sorted(task.work) if self._worker_of[name] == index]
            if mine:
                kept = {name: private[name] for name in mine if name in private}
                place.begin(task.part(mine), kept, self.run)
                busy.append(place)
        while busy:
            for place in self._heard(busy):
                yield from self._take(place, task, observe)
            busy = [place for place in busy if place.owes is not None]

    def _heard(self, busy: Sequence[_Place]) -> list[_Place]:
        """The places that have something to say, that ended, or that were silent for too long."""
        now = time.monotonic()
        wait = max(0.0, min(place.last_sign for place in busy) + self.patience - now)
        said = connection.wait([place.here for place in busy], wait)
        now = time.monotonic()
        return [p for p in busy if p.here in said or now - p.last_sign >= self.patience]

    def _take(self, place: _Place, task: TrainTask, observe: Observe) -> Iterator[Any]:
        """One message of a place; or failures of all whom it still owes."""
        if not place.here.poll():
            yield from place.give_up(task.round, "hang", f"no sign of life for {self.patience:g} s")
            return
        try:
            said = place.receive(task.round)
        except (EOFError, OSError, _Garbled) as error:
            _log.debug("a worker is lost: %s", type(error).__name__)
            yield from place.give_up(task.round, "lost", "the worker process ended")
            return
        if isinstance(said, ShepherdError):
            raise said
        if isinstance(said, Sealed | ClientFailure):
            yield said
        elif said is None:
            yield from place.rest(task.round)
        else:
            observe(said)


# In this process


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """A process that is started within the block never meets Ctrl-C, not even while it imports; ours comes later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it comes with the first process, and lets the signal through when it does
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _Garbled(Exception):
    """A worker said something that is no message."""


class _Place:
    """One worker and its successors: the clients that train here, and those whom it owes an answer."""

    def __init__(self, build: Build, data: Data) -> None:
        self.build, self.data = build, data
        self.process: Any = None
        self.owes: set[ClientId] | None = None  # None: nothing is asked of it
        self.last_sign = 0.0

    def begin(self, task: TrainTask, private: Mapping[ClientId, Tensors], run: str) -> None:
        if self.process is None or not self.process.is_alive():
            self._start()
        self.owes, self.last_sign = set(task.work), time.monotonic()
        # In a thread: a process that does not read would hold us up. Its end, or being given up, ends the thread.
        threading.Thread(target=_send, args=(self.here, (task, private, run)), daemon=True).start()

    def _start(self) -> None:
        self.end()
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, self.build, self.data), daemon=True)
        with _ctrl_c_held_back():
            process.start()
        self.process = process  # one that did not start cannot be ended either
        there.close()  # so that the worker's end is the end of the pipe

    def receive(self, round_number: int) -> Sealed | ClientFailure | StepReport | ShepherdError | None:
        """What the worker says next; None when it has done its share. Raises _Garbled when it is no message."""
        kind, _, body = self.here.recv_bytes().partition(b"\n")
        self.last_sign = time.monotonic()
        match kind:
            case b"step":
                return _step_report(body)
            case b"update":
                return self._owed(_sealed(body))
            case b"failure":
                return self._owed(_client_failure(body, round_number))
            case b"cannot":
                return _cannot(body)
            case b"done":
                return None
        raise _Garbled

    def _owed(self, answer: Sealed | ClientFailure) -> Sealed | ClientFailure:
        if self.owes is None or answer.client not in self.owes:
            raise _Garbled
        self.owes.discard(answer.client)
        return answer

    def rest(self, round_number: int) -> Iterator[ClientFailure]:
        """The round is over for this place. Whom it forgot is named."""
        for client in sorted(self.owes or ()):
            yield ClientFailure(client, round_number, "lost", "the worker process gave no answer")
        self.owes = None

    def give_up(self, round_number: int, code: str, detail: str) -> Iterator[ClientFailure]:
        """End the worker; another is started when there is work again."""
        owed, self.owes = sorted(self.owes or ()), None
        self.end()
        for client in owed:
            yield ClientFailure(client, round_number, code, detail)

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self.process.close()
        self.process = None
        self.here.close()


def _send(pipe: Any, message: Any) -> None:
    with suppress(OSError, ValueError):  # the worker is gone: its end is noticed where it is read from
        pipe.send(message)


def _fields(body: bytes, **kinds: Any) -> dict[str, Any]:
    try:
        value = json.loads(body)
        if not isinstance(value, dict) or any(not isinstance(value.get(name), kind) for name, kind in kinds.items()):
            raise _Garbled
    except (ValueError, RecursionError):
        raise _Garbled from None
    return value


def _step_report(body: bytes) -> StepReport:
    value = _fields(body, clients=dict)
    try:
        report = {
            client: Progress(
                str(state), int(step), int(steps), math.nan if loss is None else float(loss),
                int(targets), int(tokens), float(seconds),
            )
            for client, (state, step, steps, loss, targets, tokens, seconds) in value["clients"].items()
        }  # fmt: skip
    except (TypeError, ValueError):
        raise _Garbled from None
    if not all(progress.state in STATES for progress in report.values()):
        raise _Garbled
    return report


def _client_failure(body: bytes, round_number: int) -> ClientFailure:
    value = _fields(body, client=str, code=str, detail=str)
    return ClientFailure(value["client"], round_number, value["code"], value["detail"])


def _sealed(body: bytes) -> Sealed:
    """`{"client", "bytes", "private"}`, a line break, the message, and what the client keeps as safetensors."""
    head, _, rest = body.partition(b"\n")
    value = _fields(head, client=str, bytes=int, private=list)
    message, kept = rest[: value["bytes"]], rest[value["bytes"] :]
    try:
        arrays: dict[str, np.ndarray] = load(kept) if kept else {}
        private = {name: arrays[name] for name in value["private"]}  # in the order in which the client has them
    except (SafetensorError, KeyError, TypeError):
        raise _Garbled from None
    return Sealed(value["client"], message, private)


def _cannot(body: bytes) -> ShepherdError:
    value = _fields(body, error=str, message=str, hint=str)
    if value["message"]:
        return ResourceError(f"a worker process could not begin: {value['message']}", hint=value["hint"])
    return ResourceError(
        f"a worker process could not begin: {value['error']}", hint="set run.workers = 0 to train in one process"
    )


# In the worker
