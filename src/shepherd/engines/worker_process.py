"""A worker process: the loop that trains clients and answers over a pipe."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shepherd.clients.progress import StepReport
from shepherd.errors import ShepherdError
from shepherd.model.arrays import to_bytes
from shepherd.rng import derive
from shepherd.types import ClientFailure, ClientId, ClientUpdate, Tokens, TrainTask
from shepherd.updates.wire import Envelope, pack

if TYPE_CHECKING:  # torch is for the engine that `build` makes: a worker begins quickly, and without it where it may
    from shepherd.engines.local import LocalEngine


Data = Mapping[ClientId, Sequence[Tokens]]
Build = Callable[[Data], "tuple[LocalEngine, str, str]"]
"""Rows of some clients -> an engine for them, the digests of its base and tokenizer.

Runs in the worker; must be picklable.
"""


_log = logging.getLogger(__name__)


def _worker(pipe: Any, build: Build, data: Data) -> None:
    """Build the engine, then train whatever comes until the pipe closes. No text of an exception leaves it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that can say what is saved
    try:
        try:
            engine, *digests = build(data)
        except Exception as error:
            ours = isinstance(error, ShepherdError)
            words = (error.message, error.hint) if isinstance(error, ShepherdError) else ("", "")
            _log.debug("a worker could not begin", exc_info=not ours)
            pipe.recv()
            _say(pipe, "cannot", error=type(error).__name__, message=words[0], hint=words[1])
            return
        while True:
            _serve(pipe, engine, digests, *pipe.recv())
    except (EOFError, OSError):
        pass  # nobody is there any more
    except BaseException as error:
        _log.debug("a worker ends: %s", type(error).__name__, exc_info=True)
        os._exit(1)  # without the traceback that multiprocessing would print: it may quote a client's rows


def _serve(pipe: Any, engine: LocalEngine, digests: Sequence[str], task: TrainTask, private: Any, run: str) -> None:
    for answer in engine.train(task, private, lambda report: _say_step(pipe, report)):
        if isinstance(answer, ClientFailure):
            _say(pipe, "failure", client=answer.client, code=answer.code, detail=answer.detail)
        else:
            _say_update(pipe, answer, task, digests, run)
    _say(pipe, "done")


def _say(pipe: Any, kind: str, **fields: Any) -> None:
    pipe.send_bytes(f"{kind}\n{json.dumps(fields)}".encode())


def _say_step(pipe: Any, report: StepReport) -> None:
    rows = {c: p._replace(loss=p.loss if math.isfinite(p.loss) else None) for c, p in report.items()}
    _say(pipe, "step", clients=rows)


def _say_update(pipe: Any, update: ClientUpdate, task: TrainTask, digests: Sequence[str], run: str) -> None:
    adapter = task.views[update.client].adapter
    nonce = f"{derive(task.seed, 'nonce', update.client, task.round):016x}"
    message = pack(update, Envelope(run, nonce, *digests, adapter.r, adapter.scale))
    head = json.dumps({"client": update.client, "bytes": len(message), "private": list(update.private)})
    kept = to_bytes(update.private) if update.private else b""
    pipe.send_bytes(b"update\n" + head.encode() + b"\n" + message + kept)
