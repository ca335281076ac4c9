"""Real processes: one writer at a time, and processes that are killed while they commit as fast as they can."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broken_disks import QuickDisk
from shepherd.errors import UsageError
from shepherd.store import RunDirectory, read_journal, writer_of

SOURCES = Path(__file__).parents[2] / "src"


def start(code: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# One writer

HOLD = """
import sys
from pathlib import Path
from shepherd.store import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "demo", QuickDisk())


def test_a_second_writer_is_refused_and_told_who_the_first_is(run):
    other = start(HOLD, str(run.path))
    try:
        assert other.stdout.readline() == "held\n"
        held = writer_of(run.path)
        assert held.pid == other.pid
        assert abs(held.since - time.time()) < 60
        with pytest.raises(UsageError) as caught, run.lock():
            pytest.fail("two writers")
        assert f"process {other.pid} since 20" in caught.value.message
        assert str(run.path) in caught.value.message
        assert "shepherd runs ls" in caught.value.hint
        other.kill()  # the lock dies with its process, whatever that left lying there
        other.wait(10)
        assert (run.path / ".writer.json").exists()
        assert writer_of(run.path) is None
        with run.lock():
            assert writer_of(run.path).pid == os.getpid()
    finally:
        other.kill()
        other.communicate()
    assert writer_of(run.path) is None
    assert not (run.path / ".writer.json").exists()


def test_the_lock_is_for_one_writer_of_one_run_also_within_a_process(run, tmp_path):
    other = RunDirectory.create(tmp_path, "demo", QuickDisk())
    with run.lock(), other.lock():
        with pytest.raises(UsageError, match="demo is being written by process"), RunDirectory(run.path).lock():
            pytest.fail("two writers")
        assert writer_of(run.path) is not None
    with run.lock(), pytest.raises(ZeroDivisionError), other.lock():
        raise ZeroDivisionError
    with other.lock():
        pass


def test_looking_at_a_run_neither_makes_a_lock_nor_keeps_one(run):
    assert writer_of(run.path) is None
    assert list(run.path.iterdir()) == []
    with run.lock():
        (run.path / ".writer.json").write_text("{")
        assert str(writer_of(run.path)) == "another process"
    for _ in range(3):
        assert writer_of(run.path) is None
        with run.lock():
            pass


# Processes that are killed

NURSERY = """
import os, sys
from pathlib import Path
import filelock
from shepherd.store import RunDirectory

def commit_for_ever(path):
    run = RunDirectory(path)
    with run.lock():
        found = run.recover()
        number = found.checkpoint.round if found.checkpoint else 0
        while True:
            number += 1
            with run.commit_round(number, {"round": number}) as folder:
                for name in ("adapter_model.safetensors", "state.json", "state.safetensors"):
                    run.disk.write(folder / name, (b"%d " % number) * 3000)
            os.write(1, b"%d\\n" % number)
            run.prune_checkpoints(2, 0)
            run.journal("committed", round=number)

while sys.stdin.readline():
    child = os.fork()
    if not child:
        commit_for_ever(Path(sys.argv[1]))
    os.write(1, b"child %d\\n" % child)
    sys.stdin.readline()
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def kill_while_committing(run: RunDirectory, times: int, least: int) -> int:
    """Kill a committing process at least `times` times, and until `least` rounds are acknowledged, which takes longer
    on a busy machine; the number of unfinished folders swept."""
    rng, acknowledged, swept, kills, longest = random.Random(times), 0, 0, 0, 0.1
    with start(NURSERY, str(run.path)) as nursery:
        while kills < times or acknowledged < least:
            before, kills = acknowledged, kills + 1
            nursery.stdin.write("go\n")
            nursery.stdin.flush()
            # Its first round may come before its name: what it says is read in any order.
            said = nursery.stdout.readline()
            while not said.startswith("child"):
                acknowledged = max(acknowledged, int(said))
                said = nursery.stdout.readline()
            time.sleep(rng.uniform(0, longest))
            os.kill(int(said.split()[1]), signal.SIGKILL)
            nursery.stdin.write("wait\n")
            nursery.stdin.flush()
            while (said := nursery.stdout.readline()) != "dead\n":
                acknowledged = max(acknowledged, int(said))
            valid, rejected = run.rounds.check_all()
            newest = max((one.round for one in valid), default=0)
            assert newest >= acknowledged, f"round {acknowledged} was acknowledged and is lost"
            assert rejected == (), "something half-made is visible"
            for one in valid:
                for name in one.files:
                    assert (one.folder / name).read_bytes() == b"%d " % one.round * 3000
            swept += sum(path.name.startswith(".tmp-") for path in run.rounds.folder.glob(".*"))
            longest = 0.1 if acknowledged > before else longest * 1.5
        nursery.stdin.close()
    recovered = run.recover()
    lines = (run.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(1, recovered.checkpoint.round + 1))
    assert read_journal(run.path / "journal.jsonl").damaged == ()
    return swept


def test_thirty_processes_killed_while_they_commit_lose_no_acknowledged_round(run):
    kill_while_committing(run, 30, least=10)


@pytest.mark.slow
def test_three_hundred_processes_killed_while_they_commit_lose_no_acknowledged_round(run):
    assert kill_while_committing(run, 300, least=100) >= 20
