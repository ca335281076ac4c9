"""The command line called in this process, as the console script calls it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}


class Outcome(NamedTuple):
    """What a command line left: exit status, and the two streams."""

    status: int
    out: str
    err: str


class Shell:
    """`shell("run", "demo")` -> Outcome; the environment of the process stays as it was."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: Any) -> Outcome:
        from shepherd.cli.main import main

        for name, value in ENVIRONMENT.items():
            self._monkeypatch.setenv(name, value)  # what the entry would set, and would leave set
        self._capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *self._capsys.readouterr())
