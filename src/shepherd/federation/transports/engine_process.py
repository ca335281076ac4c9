"""A parent process of the engine as a child of ours, with a bridge to it.

    engine = EngineProcess("server", kit, handle, on_line)
    engine.start(largest=20 * 2**20)
    engine.bridge.call(...); engine.is_alive(); engine.stop()

It ends when our process ends. What it writes goes to `engine.log` of the kit, and line by line to `on_line`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from shepherd.errors import UsageError, install_line, missing_extra
from shepherd.federation.transports.bridge import Bridge, Handle, pair
from shepherd.federation.transports.kits import write_limits

MOST_LOG_BYTES = 4 * 2**20
MAIN = "import sys; from shepherd.federation.transports.nvflare import main; sys.exit(main(*sys.argv[1:]))"
"""Not run as a module: NVFlare imports that by its name, which would make a second one, without the bridge."""
ENVIRONMENT = {
    # No cipher of TLS 1.2 can be agreed on: this one needs a key that nobody has. The list is not that of TLS 1.3.
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-PSK-CHACHA20-POLY1305",
    "GRPC_VERBOSITY": "INFO",  # why a handshake has failed
    "OMP_NUM_THREADS": "1",
    # Memory of large messages: freed pages stay until tidying.py gives them back, since new ones cost as much as all
    # else together; in two arenas, not in one for each of a hundred threads.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}
VERSION = "2.9."


def check_engine() -> None:
    """Refuse to go on without the engine, with another version of it, or on another system. Raises UsageError."""
    from importlib.metadata import PackageNotFoundError, version

    if not sys.platform.startswith("linux"):
        raise UsageError(
            "a federation over a network needs Linux: its engine, NVFlare, is made for it",
            hint="simulations run everywhere",
        )
    try:
        found = version("nvflare")
    except PackageNotFoundError:
        raise missing_extra("nvflare", "federation") from None
    if not found.startswith(VERSION):
        raise UsageError(
            f"nvflare {found} is installed, and sites need {VERSION}x: what they rest on may be another in it",
            hint=install_line("federation"),
        )


class EngineProcess:
    """One parent process. role: server or site."""

    def __init__(
        self,
        role: str,
        kit: Path,
        handle: Handle,
        on_line: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.role, self.kit, self.handle, self.on_line = role, kit.absolute(), handle, on_line
        self.environment = dict(environment or {})
        self.bridge: Bridge | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, largest: int) -> Bridge:
        """Start the process. largest: bytes of a message, a larger one is refused before it is collected."""
        self.stop()
        write_limits(self.kit, largest)
        ends = pair()
        descriptor = ends.theirs.fileno()
        command = [sys.executable, "-P", "-c", MAIN, self.role, str(self.kit), str(descriptor), str(largest)]
        with ends.theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=[descriptor], env={**os.environ, **ENVIRONMENT, **self.environment},
                start_new_session=True, cwd=self.kit,
            )  # fmt: skip
        assert self._process.stdout is not None
        threading.Thread(target=self._log, args=[self._process.stdout], name="engine log", daemon=True).start()
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

    def _log(self, output: IO[bytes]) -> None:
        path = self.kit / "engine.log"
        with output:
            for line in output:
                with suppress(OSError):  # a full disk ends no run
                    if path.exists() and path.stat().st_size > MOST_LOG_BYTES:
                        path.replace(path.with_suffix(".log.1"))
                    with path.open("ab") as file:
                        file.write(line)
                self.on_line(line.decode(errors="replace"))
