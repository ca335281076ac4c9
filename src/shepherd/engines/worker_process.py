"""A worker process: the loop that trains clients and replies over a pipe."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from shepherd.clients.progress import StepReport
from shepherd.engines.messages import message, step_message, update_message
from shepherd.errors import ShepherdError
from shepherd.rng import derive
from shepherd.types import ClientFailure, ClientId, ClientUpdate, Tensors, Tokens, TrainTask
from shepherd.updates.task_wire import read_task
from shepherd.updates.wire import Envelope, pack

if TYPE_CHECKING:  # torch is for the engine that `build` makes: a worker begins quickly, and without it where it may
    from shepherd.engines.local import LocalEngine


Data = Mapping[ClientId, Sequence[Tokens]]
Build = Callable[[Data], "tuple[LocalEngine, str, str]"]
"""Rows of some clients -> an engine for them, the digests of its base and tokenizer.

Runs in the worker; must be picklable.
"""
Beside = tuple[Mapping[ClientId, Tensors], str]
"""What a worker is sent after the bytes of its task (updates/task_wire.py): its clients' private state, the run's id.

Private state is no part of a task: sites keep theirs.
"""


_log = logging.getLogger(__name__)


def work_for(pipe: Connection, build: Build, data: Data) -> None:
    """Build the engine, then train each task that arrives, until the pipe closes. No text of an exception leaves it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that can say what is saved
    try:
        try:
            engine, *digests = build(data)
        except Exception as error:
            ours = isinstance(error, ShepherdError)
            words = (error.message, error.hint) if isinstance(error, ShepherdError) else ("", "")
            _log.debug("a worker could not begin", exc_info=not ours)
            pipe.recv_bytes()
            pipe.send_bytes(message("cannot", error=type(error).__name__, message=words[0], hint=words[1]))
            return
        while True:
            sent = pipe.recv_bytes()
            _train(pipe, engine, digests, read_task(sent, header_limit=len(sent)), *pipe.recv())
    except (EOFError, OSError):
        pass  # the other end is gone
    except BaseException as error:
        _log.debug("a worker ends: %s", type(error).__name__, exc_info=True)
        os._exit(1)  # without the traceback that multiprocessing would print: it may quote a client's rows


def _train(
    pipe: Connection,
    engine: LocalEngine,
    digests: Sequence[str],
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    run: str,
) -> None:
    def observe(report: StepReport) -> None:
        pipe.send_bytes(step_message(report))

    engine.restore(private)
    for reply in engine.train(task, observe=observe):
        if isinstance(reply, ClientFailure):
            pipe.send_bytes(message("failure", client=reply.client, code=reply.code, detail=reply.detail))
        else:
            pipe.send_bytes(update_message(reply, _sealed(reply, task, digests, run)))
    pipe.send_bytes(message("done"))


def _sealed(update: ClientUpdate, task: TrainTask, digests: Sequence[str], run: str) -> bytes:
    adapter = task.views[update.client].adapter
    nonce = f"{derive(task.seed, 'nonce', update.client, task.round):016x}"
    base, tokenizer = digests
    return pack(update, Envelope(run, nonce, base, tokenizer, adapter.r, adapter.scale))
