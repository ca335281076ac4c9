"""NVFlare's tool within the process of the tests: what a call of it costs is the start of Python, not the keys."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from unittest import mock


def run_here(command: Sequence[str], *, env: Mapping[str, str], **_: object) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` for the command `python -P -m nvflare.cli …`."""
    from nvflare.cli import main

    assert list(command[:4]) == [sys.executable, "-P", "-m", "nvflare.cli"]
    out, code = io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.object(sys, "argv", ["nvflare", *command[4:]]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            code = main() or 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), "")
