"""A folder with processes of the program, as a person starts them in terminals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
PATIENCE = 240.0
"""Seconds after which a busy machine is a failure."""


class Machine:
    """A folder with processes of this program, which all end with it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.running: list[subprocess.Popen] = []

    def start(self, *arguments: object, log: str = "", **streams: object) -> subprocess.Popen:
        """Start a command line in a session of its own; its output goes to a file, or to `streams`."""
        output = open(self.place / log, "ab") if log else None  # noqa: SIM115, the child's
        process = subprocess.Popen(
            [sys.executable, "-m", "shepherd", *map(str, arguments)], cwd=self.place, start_new_session=True,
            stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(SOURCES)},
            **{"stdout": output, "stderr": output, **streams},
        )  # fmt: skip
        if output:
            output.close()
        self.running.append(process)
        return process

    def call(self, *arguments: object) -> subprocess.CompletedProcess:
        """Carry out a command line: what it printed."""
        process = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def text(self, log: str, pattern: str) -> str:
        """What a pattern finds in the output of a process, as soon as it is there."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            file = self.place / log
            if file.exists() and (found := re.search(pattern, file.read_text())):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"{log} has no {pattern!r}: {(self.place / log).read_text()}")

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
