"""Sites and members of a federation over a network, for tests: echoes, hostile members, a way that is cut."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shepherd.federation.transports.serving import serve_site

RAW_MEMBER = Path(__file__).with_name("raw_member.py")


def until(what: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"nothing for {seconds} s"
        time.sleep(0.05)


class Events:
    """What happened, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict]] = []

    def __call__(self, kind: str, **facts: object) -> None:
        self.all.append((kind, facts))

    def of(self, kind: str) -> list[dict]:
        return [facts for name, facts in self.all if name == kind]

    def reasons(self, kind: str = "refused") -> str:
        return "\n".join(str(facts.get("why")) for facts in self.of(kind))


class EchoSite:
    """A site whose answer is its question after `re:`. `work` is called first."""

    def __init__(self, work: Callable[[bytes], None] = lambda data: None) -> None:
        self.session, self.work, self.seen = secrets.token_hex(8), work, []

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        self.seen.append(data)
        report(b"at work")
        self.work(data)
        return b"re:" + data


class ServedSite:
    """A site that serves in a thread; its engine is a process."""

    def __init__(self, kit: Path, site: EchoSite | None = None, **how: object) -> None:
        self.site, self.events, self.stop = site or EchoSite(), Events(), threading.Event()
        self.error: BaseException | None = None
        how = {"stop": self.stop, "on_event": self.events, **how}
        self._thread = threading.Thread(target=self._serve, args=[kit, how], daemon=True)
        self._thread.start()

    def _serve(self, kit: Path, how: dict) -> None:
        try:
            serve_site(kit, self.site, **how)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


class RawMember:
    """A process with a member's certificate that speaks NVFlare's own language (raw_member.py)."""

    def __init__(self, kit: Path, port: int, endpoint: str = "") -> None:
        command = [sys.executable, str(RAW_MEMBER), str(kit), str(port), *([endpoint] if endpoint else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read()

    def __call__(self, do: str = "send", **request: object) -> dict:
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        for line in self.process.stdout:
            with suppress(ValueError):
                return json.loads(line)
        raise AssertionError("the member has ended")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Way:
    """A way between a site and a port. mode: open; silent, which swallows all; closed, which ends connections."""

    def __init__(self, port: int) -> None:
        self.target, self.mode = port, "open"
        self.left: float = float("inf")  # bytes until the way closes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End the connections; new ones are made, unless the mode is closed."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.mode = "closed"
        self._listening.close()
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.mode == "closed":
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=[one, other], daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        silent = False
        with suppress(OSError), one, other:
            while data := one.recv(65536):
                self.left -= len(data)
                if self.left <= 0:
                    self.left = float("inf")
                    self.close()
                silent = silent or self.mode == "silent"  # a connection that was cut stays so
                if not silent:
                    other.sendall(data)
