"""Worker processes give the bits of one; a worker that dies or hangs costs its clients only, and is replaced."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from number_workers import CLIENTS, SECRET, a_task, answers, breaks, cannot, workers
from shepherd.clients.progress import Progress
from shepherd.engines.messages import Garbled, read_step, read_update
from shepherd.errors import ResourceError
from shepherd.experiment import run as experiment
from shepherd.types import ClientFailure, ClientUpdate
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Sealed
from stopped_runs import checkpoint_digest


def test_clients_live_in_the_worker_of_their_name_and_keep_what_is_private():
    with workers() as engine:
        first = answers(engine, a_task())
        assert sorted(first) == list(CLIENTS)
        assert all(isinstance(a, ClientUpdate) for a in first.values()), first
        pids = {client: int(update.private["pid"][0]) for client, update in first.items()}
        assert pids["a"] == pids["c"] == pids["e"] != pids["b"] == pids["d"] and os.getpid() not in pids.values()
        private = {client: update.private for client, update in first.items()}
        again = answers(engine, a_task(2, ("a", "b", "e")), private)
        assert sorted(again) == ["a", "b", "e"]
        for client, update in again.items():
            assert int(update.private["pid"][0]) == int(update.private["before"][0]) == pids[client]


def test_a_worker_that_ends_costs_what_it_still_owed_and_is_replaced(tmp_path):
    with workers(c=["exit once", str(tmp_path / "flag")], d=["fail"]) as engine:
        first = answers(engine, a_task())
        codes = {client: a.code for client, a in first.items() if isinstance(a, ClientFailure)}
        assert codes == {"c": "lost", "e": "lost", "d": "diverged"}, "a was done before c ended the worker"
        assert first["d"].detail == "the loss became nan in local step 1"
        second = answers(engine, a_task(2))
        assert {c for c, a in second.items() if isinstance(a, ClientFailure)} == {"d"}
        assert int(second["b"].private["pid"][0]) == int(first["b"].private["pid"][0]), "the other worker lived on"
        assert int(second["a"].private["pid"][0]) != int(first["a"].private["pid"][0])
        engine._workers[1].process.kill()  # between rounds
        engine._workers[1].process.join()
        assert {c for c, a in answers(engine, a_task(3)).items() if isinstance(a, ClientFailure)} == {"d"}


def test_a_worker_that_hangs_is_given_up_and_one_that_raises_says_nothing_of_the_text(capfd):
    with workers(b=["hang"], c=["raise"], patience=60.0) as engine:
        assert set(answers(engine, a_task(1, ("a",)))) == {"a"}  # both have started and loaded by then
        assert set(answers(engine, a_task(2, ("d",)))) == {"d"}
        engine.patience = 1.0
        begin = time.monotonic()
        result = answers(engine, a_task(3))
        assert time.monotonic() - begin < 30
        codes = {client: getattr(a, "code", "good") for client, a in result.items()}
        assert codes == {"a": "good", "b": "hang", "c": "lost", "d": "hang", "e": "lost"}
    out, err = capfd.readouterr()
    assert SECRET not in str(result) + out + err


@pytest.mark.parametrize("build", [cannot, breaks])
def test_a_worker_that_cannot_be_made_ends_the_run_with_its_reason(build, capfd):
    with workers(build, count=1) as engine, pytest.raises(ResourceError) as caught:
        answers(engine, a_task())
    said = caught.value.message + caught.value.hint
    assert ("no model in /nowhere" in said and "set model.base" in said) if build is cannot else "ValueError" in said
    out, err = capfd.readouterr()
    assert SECRET not in said + out + err


def test_a_task_that_no_worker_can_read_costs_its_clients_and_one_that_has_no_bytes_is_an_error(capfd):
    with workers(count=1) as engine:
        odd = replace(a_task(clients=("a", "b")), control={"q.A": np.full((1, 3), np.nan, np.float32)})
        assert {a.code for a in answers(engine, odd).values()} == {"lost"}
        with pytest.raises(ValueError, match="no arrays of"):
            answers(engine, replace(odd, control={"q.A": np.array(["text"])}))
        assert isinstance(answers(engine, a_task(2, ("a",)))["a"], ClientUpdate)
    assert "".join(capfd.readouterr()) == ""


def test_no_worker_outlives_the_process_that_started_it():
    script = (
        "import os, number_workers as t\n"
        "if __name__ == '__main__':\n"
        "    engine = t.workers()\n"
        "    t.answers(engine, t.a_task())\n"
        "    print(*[worker.process.pid for worker in engine._workers], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2] / "src")])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    alive = lambda pid: psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"  # noqa: E731
    gone = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_what_the_observer_raises_is_no_workers_end():
    def full(report):
        raise OSError(28, "No space left on device")

    engine = workers(count=1)
    (worker,) = engine._workers
    worker.pipe, worker.owes = Pipe(b'step\n{"clients": {"a": ["done", 2, 2, 1.5, 7, 9, 0.5]}}'), {"a"}
    with pytest.raises(OSError, match="No space"):
        list(engine._replies_of(worker, 1, full))


class Pipe:
    """A worker's end that says what it is told to, whatever that is."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)

    def recv_bytes(self) -> bytes:
        if not self.messages:
            raise EOFError
        return self.messages.pop(0)

    def poll(self) -> bool:
        return True

    def close(self) -> None: ...


HEAD = b'update\n{"client": "a", "bytes": %d, "private": [%b]}\n'
GARBLED = [
    b"", b"\n", b"hello", b"\x80\x04.", b"update", b"update\n{}", b"update\n[]\n", b"update\n" + b"\x00" * 50,
    HEAD.replace(b'"a"', b"1") % (0, b""), HEAD.replace(b'"a"', b'"z"') % (0, b""), HEAD % (0, b'"x"'),
    HEAD % (1, b'"x"') + b"x\x80\x04garbage", b"step\n", b"step\n{}",
    b'step\n{"clients": {"a": 5}}', b'step\n{"clients": {"a": ["gone", 1, 2, 1.5, 7, 9, 0.5]}}',
    b"failure\n{}", b"failure\n" + b"[" * 9999,
    b'failure\n{"client": "z", "code": "lost", "detail": ""}',
]  # fmt: skip


@pytest.mark.parametrize("message", GARBLED)
def test_a_worker_that_talks_nonsense_is_lost_and_nothing_of_it_is_unpickled(message):
    engine = workers(count=1)
    (worker,) = engine._workers
    worker.pipe, worker.owes = Pipe(message), {"a", "b"}
    said = [answer for answer in engine._replies_of(worker, 1, lambda report: None)]
    assert [(f.client, f.code) for f in said] == [("a", "lost"), ("b", "lost")] and worker.owes is None


def test_a_message_that_is_no_update_is_the_gates_business():
    sealed = read_update(b'{"client": "a", "bytes": 3, "private": []}\nxyz')
    assert sealed == Sealed("a", b"xyz")
    assert Gate(run="demo").admit(sealed, a_task()).code == "format"


def test_a_report_of_a_worker_is_read_as_it_was_meant():
    said = b'{"clients": {"a": ["training", 1, 2, null, 7, 9, 0.5], "b": ["done", 2, 2, 1.5, 7, 9, 0.5]}}'
    report = read_step(said)
    assert report["b"] == Progress("done", 2, 2, 1.5, targets=7, tokens=9, seconds=0.5)
    assert report["a"].state == "training" and math.isnan(report["a"].loss)
    with pytest.raises(Garbled):
        read_step(b"{")


# With the tiny model


METHODS = {
    "scaffold": ("objective.scaffold=true", "server.optimizer=fedavgm"),
    "ranks": ("federation.method=flexlora", "lora.r=4", "lora.ranks=2,4"),
    "alternating": ("federation.method=rolora", "lora.dropout=0.1"),
}


@pytest.mark.parametrize(
    ("kind", "count"),
    [("scaffold", 2), *(pytest.param(kind, n, marks=pytest.mark.slow) for kind in METHODS for n in (1, 2, 4))],
)
def test_worker_processes_give_the_bits_of_one_process(small_config, tmp_path, kind, count):
    common = ("evaluation.arms=base,federated", "evaluation.generate=0", "training.local_steps=2", *METHODS[kind])
    events: list = []
    runs = {
        n: experiment.run(
            small_config(*common, f"run.workers={n}", *more), events.append if n else None, tmp_path / f"{n}"
        )
        for n, more in ((0, ()), (count, ("training.clients_at_once=3",)))
    }
    one, many = (checkpoint_digest(run.path) for run in runs.values())
    assert one == many
    assert runs[0].summary["arms"]["federated"] == runs[count].summary["arms"]["federated"]
    shares = [event["fraction"] for event in events if event["event"] == "step"]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert shares[len(shares) // 2 - 1] == pytest.approx(0.5, abs=0.15), "each worker's tokens count once"
