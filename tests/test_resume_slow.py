"""The demo recipe on the real small model, killed at random instants: the commands that a person types."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS, SHARE_OF_START = 5, 0.15
"""Before that share of an unbroken run little but imports happens: the kills fall after it."""


def shepherd(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shepherd", *map(str, arguments)]


def killed_after(command: list[str], seconds: float) -> int | None:
    """The exit status of the command; None where it was still at work after so many seconds, and was killed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    assert process.returncode == 0, said.decode()
    return 0


def ending(run: Path) -> dict:
    """What must be equal: the adapter's file, the numbers of the rounds, and every measurement."""
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "adapter": hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "rounds": [{key: value for key, value in line.items() if key != "seconds"} for line in rounds],
        "metrics": json.loads((run / "evaluation" / "metrics.json").read_text()),
        "generations": (run / "evaluation" / "generations.jsonl").read_bytes(),
        **{key: summary[key] for key in ("adapter_sha256", "arms", "bytes_up", "bytes_down", "trained_rows")},
    }


def test_the_demo_killed_five_times_ends_with_the_bytes_of_the_unbroken_run(tmp_path):
    """Every kill strikes the same run, so that what the one before it left has to be enough; one that comes too late
    begins another run."""
    demo = ("demo", "--quick", "--set", f"run.threads={os.cpu_count()}", "--out", tmp_path)
    begin = time.monotonic()
    subprocess.run(shepherd("run", *demo, "--name", "whole"), check=True, capture_output=True)
    length = time.monotonic() - begin
    whole, dice, told, runs = ending(tmp_path / "whole"), random.Random(0), [], [tmp_path / "killed-0"]

    def go_on(seconds: float) -> int | None:
        run = runs[-1]
        if (run / "identity.json").exists():
            return killed_after(shepherd("resume", run), seconds)
        if run.exists():  # killed before there was anything to go on with: it is run again
            runs[-1] = run = run.with_name(f"{run.name}-again")
        return killed_after(shepherd("run", *demo, "--name", run.name), seconds)

    while len(told) < KILLS:
        seconds = dice.uniform(SHARE_OF_START, 0.9) * length
        if go_on(seconds) == 0:
            runs.append(tmp_path / f"killed-{len(runs)}")
            continue
        committed, arms = (len(list(runs[-1].glob(names))) for names in ("checkpoints/round-*", "arms/*"))
        told.append({"run": runs[-1].name, "after": round(seconds, 1), "rounds": committed, "baselines": arms})
    assert go_on(3600.0) == 0
    print(json.dumps({"length": round(length, 1), "kills": told, "sha256": whole["adapter_sha256"]}))
    for run in runs:
        assert ending(run) == whole, run.name
