"""A parent process of the engine as a child of ours, with a bridge to it.

    parent = EngineProcess("server", kit, handle)
    parent.start()
    parent.bridge.call(...); parent.is_alive(); parent.stop()

It ends when our process ends. What it writes goes to `engine.log` of the kit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shepherd.federation.transports.bridge import Bridge, Handle, pair

MOST_LOG_BYTES = 2**20
MAIN = "import sys; from shepherd.federation.transports.nvflare import main; sys.exit(main(*sys.argv[1:]))"
"""Not run as a module: NVFlare imports that by its name, which would make a second one, without the bridge."""
ENVIRONMENT = {
    # No cipher of TLS 1.2 can be agreed on: this one needs a key that nobody has. The list is not that of TLS 1.3.
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-PSK-CHACHA20-POLY1305",
    "GRPC_VERBOSITY": "ERROR",
    "OMP_NUM_THREADS": "1",
}


class EngineProcess:
    """One parent process. role: server or site."""

    def __init__(self, role: str, kit: Path, handle: Handle, environment: Mapping[str, str] | None = None) -> None:
        self.role, self.kit, self.handle = role, kit.absolute(), handle
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.bridge: Bridge | None = None

    def start(self) -> Bridge:
        """Start the process."""
        self.stop()
        ends = pair()
        log = self.kit / "engine.log"
        with suppress(OSError):
            if log.stat().st_size > MOST_LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
        command = [sys.executable, "-P", "-c", MAIN, self.role, str(self.kit), str(ends.theirs.fileno())]
        with log.open("ab") as output, ends.theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[ends.theirs.fileno()],
                env={**os.environ, **ENVIRONMENT, **self.environment}, start_new_session=True, cwd=self.kit,
            )  # fmt: skip
        self.bridge = Bridge(ends.ours, self.handle)
        return self.bridge

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return self._process.pid if self._process is not None else None

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process; it has nothing to lose."""
        if self.bridge is not None:
            self.bridge.close()
            self.bridge = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            self._process.kill()
            self._process.wait()
            self._process = None
