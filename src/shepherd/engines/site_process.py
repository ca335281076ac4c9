"""A site's trainer in a child process: it reads the rows itself, and stays warm from task to task.

    trainer = ProcessTrainer(partial(site_trainer, file, folder), name)     # a SiteTrainer; no torch in this process

The control process keeps neither rows nor base. Tasks and models go to the child as bytes, updates come back as bytes
with the private tensors beside them. A child that ends is replaced, and the work is done again once; one that ends
twice, or gives no sign of life for `patience` seconds, costs the answer. The next one reads the rows again, and is
refused where they have changed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from shepherd.clients.progress import Observe, StepReport
from shepherd.engines.workers import ctrl_c_held_back
from shepherd.errors import DataError
from shepherd.federation.cards import RunCard, read_card
from shepherd.federation.groups import Group
from shepherd.federation.site_trainer import SiteTrainer
from shepherd.federation.verdicts import Refused
from shepherd.outcomes import code_of
from shepherd.types import ClientFailure, ClientId, ClientUpdate, GlobalModel, SiteFacts, Tensors, TrainTask
from shepherd.updates.task_wire import pack_global, pack_task, read_global, read_task

_log = logging.getLogger(__name__)
Make = Callable[[], SiteTrainer]
"""Makes the trainer, in the child; must be picklable."""


class TrainerEnded(Exception):
    """The child ended, or gave no sign of life."""


class ProcessTrainer:
    """The trainer of a site in a child process."""

    def __init__(self, make: Make, client: ClientId, patience: float = 600.0) -> None:
        self.make, self.client, self.patience = make, client, patience
        self._process: SpawnProcess | None = None
        self._ended, self._lock = False, threading.Lock()
        self._pipe: Connection
        self._loaded: tuple[RunCard, SiteFacts] | None = None

    def load_rows(self, card: RunCard) -> SiteFacts:
        """Have the child read and tokenise the rows."""
        facts: SiteFacts = self._ask("load_rows", card.to_json())
        self._loaded = card, facts
        return facts

    def train(self, task: TrainTask, private: Tensors, observe: Observe) -> ClientUpdate | ClientFailure:
        """Have the child train; "lost" where it ends twice, "hang" where it gives no sign of life."""
        try:
            return self._ask_again("train", pack_task(task), dict(private), observe=observe)
        except TrainerEnded as ended:
            return ClientFailure(self.client, task.round, str(ended), "the trainer of the site ended")

    def measure(self, model: GlobalModel | None, rows_of: str) -> Mapping[str, Group]:
        """Have the child measure."""
        return self._ask_again("measure", pack_global(model) if model is not None else b"", rows_of)

    def finish(self, task: TrainTask, private: Tensors) -> Mapping[str, Group]:
        """Have the child make, keep and measure the site's own model."""
        return self._ask_again("finish", pack_task(task), dict(private))

    def close(self) -> None:
        """End the child, also one at work for another thread; none is started in its place."""
        self._ended = True
        self._discard()

    def _discard(self) -> None:
        """End the child. The pipe is left to its reader, who sees the end of it."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.join()
                self._process.close()
                self._process = None

    def _ask_again(self, what: str, *given: Any, observe: Observe = lambda report: None) -> Any:
        """The answer of the child, or of the one in its place where it ends: the work is the same. Raises as `_ask`."""
        try:
            return self._ask(what, *given, observe=observe)
        except TrainerEnded as ended:
            if str(ended) != "lost":  # what hung once has cost its time
                raise
            return self._ask(what, *given, observe=observe)

    def _ask(self, what: str, *given: Any, observe: Observe = lambda report: None) -> Any:
        """The answer of the child. Raises what stands for its exception, or TrainerEnded with a code."""
        if not self._is_alive():
            self._start(again=what != "load_rows")
        try:
            self._pipe.send((what, *given))
            while self._pipe.poll(self.patience):
                kind, value = self._pipe.recv()
                if kind == "step":
                    observe(value)
                elif kind == "answer":
                    return value
                else:
                    raise _raised(*value)
        except (EOFError, OSError):
            self._discard()
            raise TrainerEnded("lost") from None
        self._discard()
        raise TrainerEnded("hang")

    def _is_alive(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.is_alive()

    def _start(self, *, again: bool) -> None:
        self._discard()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.make), daemon=True)
        with self._lock, ctrl_c_held_back():
            if self._ended:
                raise TrainerEnded("lost")
            process.start()
            self._process = process
        theirs.close()
        if again and self._loaded is not None:
            card, facts = self._loaded
            if self._ask("load_rows", card.to_json()) != facts:
                raise Refused("rows-changed")


def _raised(name: str, is_data: bool) -> Exception:
    """An exception of the child by the name of its class: its text stays there."""
    if name == "out-of-memory":
        return MemoryError()
    bases = (DataError,) if is_data else (Exception,)
    return type(name.removeprefix("error:"), bases, {})("see the log of the trainer")


def _work(pipe: Connection, make: Make) -> None:
    """Answer each question until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer: SiteTrainer | None = None
    with suppress(EOFError, OSError):
        while True:
            what, *given = pipe.recv()
            try:
                trainer = trainer or make()
                answer = _answer(pipe, trainer, what, given)
            except (EOFError, OSError):
                raise
            except Exception as error:
                _log.debug("the trainer of the site failed", exc_info=True)
                pipe.send(("raised", (code_of(error), isinstance(error, DataError))))
            except BaseException:
                os._exit(1)  # without a traceback, which may quote rows
            else:
                pipe.send(("answer", answer))


def _answer(pipe: Connection, trainer: SiteTrainer, what: str, given: list[Any]) -> Any:
    if what == "load_rows":
        return trainer.load_rows(read_card(given[0]))
    if what == "measure":
        data, rows_of = given
        model = read_global(data, header_limit=len(data)) if data else None
        return dict(trainer.measure(model, rows_of))
    data, private = given
    task = read_task(data, header_limit=len(data))
    if what == "finish":
        return dict(trainer.finish(task, private))

    last = [0.0]

    def observe(report: StepReport) -> None:
        if (now := time.monotonic()) - last[0] >= 0.1:  # a few signs a second are enough
            last[0] = now
            pipe.send(("step", report))

    return trainer.train(task, private, observe)
