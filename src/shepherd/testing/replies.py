"""The replies of an engine to a task, and those of plain training to compare them with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shepherd.round import Engine
from shepherd.testing.promise import promise
from shepherd.types import ClientFailure, ClientUpdate, Tensors, TrainTask
from shepherd.updates.gate import Gate

if TYPE_CHECKING:
    from shepherd.testing.tiny_federation import TinyFederation


def engine_promise(engine: Engine, holds: bool, words: str) -> None:
    """Raise AssertionError, with the class of the engine, unless the promise holds."""
    promise(holds, f"engine {type(engine).__name__}", words)


def plain_training(
    federation: TinyFederation, task: TrainTask, private: Mapping[str, Tensors]
) -> dict[str, ClientUpdate]:
    """The updates of the clients without any engine."""
    from shepherd.clients.training import train

    return {reply.client: reply for reply in train(task, private, federation.host) if isinstance(reply, ClientUpdate)}


def replies(
    engine: Engine,
    federation: TinyFederation,
    task: TrainTask,
    deadline: float = math.inf,
    enough: Callable[[], bool] = lambda: False,
    observe: Callable[[Any], None] = lambda report: None,
) -> dict[str, ClientUpdate | ClientFailure]:
    """What passes the gate, one reply for each client of the task."""
    gate = Gate(tokenizer=federation.tokenizer)
    given = [gate.admit(reply, task) for reply in engine.train(task, deadline, enough, observe)]
    clients, asked = sorted(reply.client for reply in given), sorted(task.work)
    engine_promise(engine, clients == asked, f"it replies for {clients}, the task is for {asked}")
    return {reply.client: reply for reply in given}


def same_updates(
    engine: Engine, given: Mapping[str, Any], expected: Mapping[str, ClientUpdate], after: str = "plain training"
) -> dict[str, ClientUpdate]:
    """The updates, once they have the bits of those that are expected."""
    for client, update in expected.items():
        got = given[client]
        engine_promise(engine, isinstance(got, ClientUpdate), f"client {client} does not give an update: {got}")
        engine_promise(
            engine, list(got.private) == list(update.private), f"the private state of {client} is in another order"
        )
        for mine, theirs in ((got.delta, update.delta), (got.private, update.private)):
            bits = mine.keys() == theirs.keys() and all(mine[n].tobytes() == theirs[n].tobytes() for n in theirs)
            engine_promise(engine, bits, f"the update of {client} has other bits ({after})")
        rest = replace(got, delta={}, private={}) == replace(update, delta={}, private={})
        engine_promise(engine, rest, f"the update of {client} has other counts or metrics ({after})")
    return dict(expected)
