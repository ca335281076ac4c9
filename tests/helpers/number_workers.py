"""An engine of numbers for worker processes: no model, no torch, so that a worker begins at once.

Its clients do what their first row says: "exit", "exit once" (a file in the second row remembers), "hang", "raise",
"forget" to answer, "fail"; any other row lets them answer with ones.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from number_engine import NumberEngine
from shepherd.engines.workers import Workers
from shepherd.errors import ModelError
from shepherd.types import Adapter, ClientFailure, ClientModel, ClientUpdate, Factors, TrainTask, Work
from shepherd.updates.gate import Gate

SECRET = "planted-8472"
CLIENTS = ("a", "b", "c", "d", "e")


class Numbers(NumberEngine):
    def __init__(self, data) -> None:
        self.data = data

    def train(self, task, observe):
        for client in sorted(task.work):
            match self.data[client][0]:
                case "exit":
                    os._exit(3)
                case "exit once":
                    flag = Path(self.data[client][1])
                    if not flag.exists():
                        flag.touch()
                        os._exit(3)
                case "hang":
                    time.sleep(600)
                case "raise":
                    raise ValueError(SECRET)
                case "forget":
                    continue
                case "fail":
                    yield ClientFailure(client, task.round, "diverged", "the loss became nan in local step 1")
                    continue
            delta = {name: np.ones_like(array) for name, array in task.views[client].tensors().items()}
            kept = {"pid": np.array([os.getpid()]), "before": self.private.get(client, {}).get("pid", np.array([-1]))}
            yield ClientUpdate(client, task.round, delta, 5, 10, 1, {"loss": 1.0}, private=kept)


def numbers(data):
    return Numbers(data), "base", "tokenizer"


def cannot(data):
    raise ModelError("no model in /nowhere", hint="set model.base")


def breaks(data):
    raise ValueError(SECRET)


def a_task(number: int = 1, clients=CLIENTS) -> TrainTask:
    pair = Factors(np.zeros((1, 3), np.float32), np.zeros((2, 1), np.float32))
    view = ClientModel(Adapter({"q": pair}, 1, 1.0, base_digest="base"))
    return TrainTask(number, dict.fromkeys(clients, view), 0, {c: Work(c, 0, 5, (0.1,)) for c in clients})


def workers(build=numbers, count: int = 2, patience: float = 60.0, **rows) -> Workers:
    data = {client: rows.get(client, ["fine"]) for client in CLIENTS}
    return Workers(count, build, data, here=None, run="demo", patience=patience)  # type: ignore[arg-type]


def answers(engine: Workers, task: TrainTask, private=None) -> dict[str, ClientUpdate | ClientFailure]:
    gate = Gate(run="demo", tokenizer="tokenizer")
    engine.restore(private or {})
    admitted = [gate.admit(answer, task) for answer in engine.train(task)]
    assert len({a.client for a in admitted}) == len(admitted)
    return {a.client: a for a in admitted}
