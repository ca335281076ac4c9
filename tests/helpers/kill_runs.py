"""Kill runs at random instants, resume them, and say what they ended with: a program for test_resume.py.

    python kill_runs.py '{"overrides": [...], "folder": "...", "kills": 20, "seed": 0}'

It imports everything once, that is all that a whole run imports, and forks a process for every run: a kill costs no
import, and strikes a run at work.
Prints {"whole": ending, "killed": [{"at": [seconds], "states": [...], "ending": …}]}; an ending is what must be equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

TIMES = ("seconds",)


def ending(run: Path) -> dict:
    """Everything of a finished run that does not measure time."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    return {
        "adapter": hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "rounds": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "metrics": metrics,
        "arms": {
            path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((run / "arms").rglob("*"))
            if path.is_file()
        },
        "losses": hashlib.sha256((run / "evaluation" / "losses.safetensors").read_bytes()).hexdigest(),
        "rows seen": (run / "evaluation" / "rows_seen.jsonl").read_text(),
        "summary of arms": summary["arms"],
        **{key: summary[key] for key in ("adapter_sha256", "budget", "bytes_up", "bytes_down", "trained_rows")},
    }


def forked(work) -> int:
    """Run `work()` in a process of its own; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def finish(pid: int, after: float | None = None) -> int | None:
    """Wait for a process, or kill it `after` so many seconds; its exit status, None where it was killed."""
    end = None if after is None else time.monotonic() + after
    while True:
        done, status = os.waitpid(pid, os.WNOHANG if end else 0)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGKILL else code
        time.sleep(0.002)


def note_imports(noted: Path) -> None:
    """Write the names of all modules of this process to a file, for the process that forked it."""
    noted.write_text("\n".join(sys.modules))


def import_noted(noted: Path) -> None:
    """Import the modules that a forked process noted. Nothing is computed here, so no thread is there to be forked."""
    for name in noted.read_text().splitlines():
        with contextlib.suppress(Exception):  # some names are made by the code that sets them
            importlib.import_module(name)


def struck(killed: dict) -> bool:
    """Whether SIGKILL ended a process of this run: those that had ended before it count for nothing."""
    return bool(killed["rounds"])


def main() -> None:
    spec = json.loads(sys.argv[1])
    import torch

    from shepherd.experiment import run as experiment
    from shepherd.recipe import load
    from shepherd.report import html  # noqa: F401

    torch.set_num_threads(1)
    config = load(None, spec["overrides"])
    root, dice = Path(spec["folder"]), random.Random(spec["seed"])

    def start(name):
        return forked(lambda: experiment.run(config, out_dir=root / name))

    def go_on(run):
        return forked(lambda: experiment.resume(run))

    def first():
        experiment.run(config, out_dir=root / "first")
        note_imports(root / "imported")

    assert finish(forked(first)) == 0
    import_noted(root / "imported")
    begin = time.monotonic()
    assert finish(start("whole")) == 0
    length = time.monotonic() - begin
    result = {"whole": ending(root / "whole" / config.run.name), "length": length, "killed": []}
    number = -1
    while sum(map(struck, result["killed"])) < spec["kills"]:
        number += 1
        assert number < 4 * spec["kills"], "most runs ended before their kill"
        attempt, killed = 0, {"at": [], "rounds": []}
        run = root / f"{number}.0" / config.run.name
        pid, status = start(f"{number}.0"), None
        for _ in range(dice.choice((1, 1, 2))):
            killed["at"].append(round(dice.uniform(0, length), 3))
            status = finish(pid, killed["at"][-1])
            if status is not None:  # it had ended before
                break
            killed["rounds"].append(len(list(run.glob("checkpoints/round-*"))))
            if (run / "identity.json").exists():
                pid = go_on(run)
            else:  # nothing was there to go on with, and the command says so: it is run again
                attempt += 1
                run = root / f"{number}.{attempt}" / config.run.name
                pid = start(f"{number}.{attempt}")
        killed["status"] = finish(pid) if status is None else status
        killed["ending"] = ending(run)
        result["killed"].append(killed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
