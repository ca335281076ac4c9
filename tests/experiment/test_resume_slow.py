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
KILLS, SEED = 5, 1


def shepherd(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "shepherd", *map(str, arguments), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed_at(process: subprocess.Popen, share: float, seconds: float) -> float | None:
    """Kill it so many seconds after it has done this share of its steps; where it was then, None if it had ended (also
    where it ended with the kill under way)."""
    reached = 0.0
    for line in process.stdout:
        event = json.loads(line)
        reached = event.get("fraction", reached)
        if event["event"] == "step" and reached >= share:
            time.sleep(seconds)
            process.kill()
            break
    process.stdout.close()
    status = process.wait()
    assert status in (0, -signal.SIGKILL), f"it ended with status {status}"
    return None if status == 0 else reached


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
    """All kills strike one run, each farther on than the one before: what that one left has to be enough."""
    demo = ("run", "demo", "--quick", "--set", f"run.threads={os.cpu_count()}", "--out", tmp_path)
    begin = time.monotonic()
    assert killed_at(shepherd(*demo, "--name", "whole"), 2.0, 0.0) is None
    length, whole, run, dice = (
        time.monotonic() - begin,
        ending(tmp_path / "whole"),
        tmp_path / "killed",
        random.Random(SEED),
    )
    instants = [(share, dice.uniform(0, 0.02 * length)) for share in sorted(dice.random() for _ in range(KILLS))]
    print(f"seed {SEED}: (share of the steps, seconds after it)", instants)
    told = []
    for share, seconds in instants:
        command = ("resume", run) if run.exists() else (*demo, "--name", "killed")
        begin = time.monotonic()
        reached = killed_at(shepherd(*command), share, seconds)
        assert reached is not None, "it had ended before"
        committed, arms = (len(list(run.glob(names))) for names in ("checkpoints/round-*", "arms/*"))
        after = round(time.monotonic() - begin, 1)
        told.append({"after": after, "done": round(reached, 2), "rounds": committed, "baselines": arms})
    assert killed_at(shepherd("resume", run), 2.0, 0.0) is None
    print(json.dumps({"length": round(length, 1), "kills": told, "sha256": whole["adapter_sha256"]}))
    assert ending(run) == whole
