"""The messages of a worker process: bytes that are read field by field; nothing that arrives is unpickled.

A message is its kind, a line break, and a body: "step", "update", "failure", "cannot" (the worker did not start) or
"done".
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from shepherd.clients.progress import STATES, Progress, State, StepReport
from shepherd.errors import ResourceError, ShepherdError
from shepherd.model.arrays import to_bytes
from shepherd.types import ClientFailure, ClientUpdate
from shepherd.updates.wire import Sealed

Said = Sealed | ClientFailure | StepReport | ShepherdError | None
"""What a message says; None: the worker has no more to say of this task."""


class Garbled(Exception):
    """Bytes that are no message of a worker."""


def step_message(report: StepReport) -> bytes:
    """The progress of some clients; a loss that is not finite travels as null."""
    rows = {
        client: news._replace(loss=news.loss if math.isfinite(news.loss) else None)  # type: ignore[arg-type]
        for client, news in report.items()
        if isinstance(news, Progress)
    }
    return message("step", clients=rows)


def update_message(update: ClientUpdate, sealed: bytes) -> bytes:
    """A sealed update, followed by the client's private state as safetensors."""
    head = json.dumps({"client": update.client, "bytes": len(sealed), "private": list(update.private)})
    private = to_bytes(update.private) if update.private else b""
    return b"update\n" + head.encode() + b"\n" + sealed + private


def message(kind: str, **fields: Any) -> bytes:
    """A message with these fields as JSON."""
    return f"{kind}\n{json.dumps(fields)}".encode()


def read_message(data: bytes, round_number: int) -> Said:
    """What a worker says in a round. Raises Garbled when it is no message."""
    kind, _, body = data.partition(b"\n")
    match kind:
        case b"step":
            return read_step(body)
        case b"update":
            return read_update(body)
        case b"failure":
            value = _fields(body, client=str, code=str, detail=str)
            return ClientFailure(value["client"], round_number, value["code"], value["detail"])
        case b"cannot":
            return _read_cannot(body)
        case b"done":
            return None
    raise Garbled


def read_step(body: bytes) -> StepReport:
    """The progress of some clients. Raises Garbled."""
    value = _fields(body, clients=dict)
    try:
        report = {
            client: Progress(
                cast("State", str(state)), int(step), int(steps), math.nan if loss is None else float(loss),
                int(targets), int(tokens), float(seconds),
            )
            for client, (state, step, steps, loss, targets, tokens, seconds) in value["clients"].items()
        }  # fmt: skip
    except (TypeError, ValueError):
        raise Garbled from None
    if not all(progress.state in STATES for progress in report.values()):
        raise Garbled
    return report


def read_update(body: bytes) -> Sealed:
    """`{"client", "bytes", "private"}`, a line break, the sealed update, the private state. Raises Garbled."""
    head, _, rest = body.partition(b"\n")
    value = _fields(head, client=str, bytes=int, private=list)
    sealed, kept = rest[: value["bytes"]], rest[value["bytes"] :]
    try:
        arrays: dict[str, np.ndarray] = load(kept) if kept else {}
        private = {name: arrays[name] for name in value["private"]}  # in the order in which the client has them
    except (SafetensorError, KeyError, TypeError):
        raise Garbled from None
    return Sealed(value["client"], sealed, private)


def _read_cannot(body: bytes) -> ShepherdError:
    value = _fields(body, error=str, message=str, hint=str)
    if value["message"]:
        return ResourceError(f"a worker process could not begin: {value['message']}", hint=value["hint"])
    return ResourceError(
        f"a worker process could not begin: {value['error']}", hint="set run.workers = 0 to train in one process"
    )


def _fields(body: bytes, **kinds: type) -> dict[str, Any]:
    try:
        value = json.loads(body)
        if not isinstance(value, dict) or any(not isinstance(value.get(name), kind) for name, kind in kinds.items()):
            raise Garbled
    except (ValueError, RecursionError):
        raise Garbled from None
    return value
