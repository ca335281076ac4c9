"""Clients in N worker processes, each with a base of its own; their updates arrive as messages and pass the gate.

    with Workers(count=2, build=…, data=rows.clients, run="0f3a…", here=LocalEngine(…)) as engine:
        run_round(state, plan, engine)

Clients are assigned to workers by name, so a client always trains in the same worker. A worker that ends, or gives no
sign of life for `patience` seconds, costs the clients that it still owed; another one replaces it. Workers are started
with `spawn`: a script that runs this must keep its own code under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from shepherd.clients.facts import facts_of
from shepherd.clients.progress import Observe, ignore
from shepherd.engines.messages import Garbled, Said, read_message
from shepherd.engines.worker_process import Beside, Build, Data, work_for
from shepherd.errors import ShepherdError
from shepherd.types import ClientFailure, ClientId, GlobalModel, SiteFacts, Stat, Tensors, Tokens, TrainTask
from shepherd.updates.task_wire import pack_task
from shepherd.updates.wire import Sealed

if TYPE_CHECKING:  # torch is for the engine that `build` makes: a worker begins quickly, and without it where it may
    from shepherd.engines.local import LocalEngine
    from shepherd.evaluation.row_losses import RowLosses

_log = logging.getLogger(__name__)


class Workers:
    """The engine: `count` processes for training, this process (`here`) for measuring."""

    def __init__(
        self, count: int, build: Build, data: Data, here: LocalEngine, *, run: str = "", patience: float = 600.0
    ) -> None:
        names = sorted(data)
        self.here, self.run, self.patience, self._data = here, run, patience, data
        self._private: Mapping[ClientId, Tensors] = {}
        self._workers = [Worker(build, {name: data[name] for name in names[index::count]}) for index in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.end()

    def describe(self) -> Mapping[ClientId, SiteFacts]:
        """The rows of each client, counted and digested."""
        return facts_of(self._data)

    def restore(self, private: Mapping[ClientId, Tensors]) -> None:
        """Set the private state from which each client goes on. It is kept here, where no worker's end can lose it."""
        self._private = private

    def train(
        self,
        task: TrainTask,
        deadline: float = math.inf,
        enough: Callable[[], bool] = lambda: False,
        observe: Observe = ignore,
    ) -> Iterator[Sealed | ClientFailure]:
        """Messages and failures in order of arrival. Raises ResourceError when a worker cannot be made at all."""
        del deadline, enough  # simulated clients arrive by the plan's virtual clock, not in this machine's time
        busy: list[Worker] = []
        for worker in self._workers:
            mine = [name for name in sorted(task.work) if name in worker.data]
            if mine:
                private = {name: self._private[name] for name in mine if name in self._private}
                worker.begin(task.part(mine), private, self.run)
                busy.append(worker)
        while busy:
            for worker in self._ready(busy):
                yield from self._replies_of(worker, task.round, observe)
            busy = [worker for worker in busy if worker.owes is not None]

    def measure(self, model: GlobalModel | None, cohort: Iterable[ClientId]) -> Mapping[ClientId, Stat]:
        """The loss of each client's training rows, in nats per target token."""
        return self.here.measure(model, cohort)

    def evaluate(self, model: GlobalModel | None, rows: Sequence[Tokens]) -> RowLosses:
        """The losses of these rows under a model or the bare base."""
        return self.here.evaluate(model, rows)

    def _ready(self, busy: Sequence[Worker]) -> list[Worker]:
        """The workers with a message, those that ended, and those that were silent for too long."""
        wait = max(0.0, min(worker.last_sign for worker in busy) + self.patience - time.monotonic())
        ready = connection.wait([worker.pipe for worker in busy], wait)
        now = time.monotonic()
        return [w for w in busy if w.pipe in ready or now - w.last_sign >= self.patience]

    def _replies_of(self, worker: Worker, round_number: int, observe: Observe) -> Iterator[Sealed | ClientFailure]:
        """One message of a worker; failures of all clients that it still owes where it hangs or has ended."""
        if not worker.pipe.poll():
            yield from worker.give_up(round_number, "hang", f"no sign of life for {self.patience:g} s")
            return
        try:
            said = worker.receive(round_number)
        except (EOFError, OSError, Garbled) as error:
            _log.debug("a worker is lost: %s", type(error).__name__)
            yield from worker.give_up(round_number, "lost", "the worker process ended")
            return
        if isinstance(said, ShepherdError):
            raise said
        if isinstance(said, Sealed | ClientFailure):
            yield said
        elif said is None:
            yield from worker.finish(round_number)
        else:
            observe(said)


class Worker:
    """One worker process and its successors, from this side. `owes`: clients without a reply; None when it is idle."""

    pipe: Connection

    def __init__(self, build: Build, data: Data) -> None:
        self.build, self.data = build, data
        self.process: SpawnProcess | None = None
        self.owes: set[ClientId] | None = None
        self.last_sign = 0.0  # by time.monotonic

    def begin(self, task: TrainTask, private: Mapping[ClientId, Tensors], run: str) -> None:
        """Send a task, to a new process where none is alive."""
        if self.process is None or not self.process.is_alive():
            self.start()
        data = pack_task(task)
        self.owes, self.last_sign = set(task.work), time.monotonic()
        # In a thread: a process that does not read would hold us up. Its end, or being given up, ends the thread.
        threading.Thread(target=_send, args=(self.pipe, data, (private, run)), daemon=True).start()

    def start(self) -> None:
        """Start a process in place of the one that there was."""
        self.end()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=work_for, args=(theirs, self.build, self.data), daemon=True)
        with ctrl_c_held_back():
            process.start()
        self.process = process  # one that did not start cannot be ended either
        theirs.close()  # so that the worker's end is the end of the pipe

    def receive(self, round_number: int) -> Said:
        """The worker's next message. Raises Garbled when it is none, or is of a client that it does not owe."""
        data = self.pipe.recv_bytes()
        self.last_sign = time.monotonic()
        said = read_message(data, round_number)
        if isinstance(said, Sealed | ClientFailure):
            if self.owes is None or said.client not in self.owes:
                raise Garbled
            self.owes.discard(said.client)
        return said

    def finish(self, round_number: int) -> Iterator[ClientFailure]:
        """End the round of this worker. Clients without a reply are reported as lost."""
        for client in sorted(self.owes or ()):
            yield ClientFailure(client, round_number, "lost", "the worker process gave no answer")
        self.owes = None

    def give_up(self, round_number: int, code: str, detail: str) -> Iterator[ClientFailure]:
        """End the process; another is started when there is work again."""
        owed, self.owes = sorted(self.owes or ()), None
        self.end()
        for client in owed:
            yield ClientFailure(client, round_number, code, detail)

    def end(self) -> None:
        """End the process, if there is one."""
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self.process.close()
        self.process = None
        self.pipe.close()


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
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


def _send(pipe: Connection, task: bytes, beside: Beside) -> None:
    with suppress(OSError, ValueError):  # the worker is gone: its end is noticed where it is read from
        pipe.send_bytes(task)
        pipe.send(beside)
