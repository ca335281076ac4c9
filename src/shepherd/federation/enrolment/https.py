"""An HTTPS server for strangers: it does little, for a short time, for few at once.

TLS 1.3 with the server's certificate, one POST of at most 16 kB in a connection of at most 15 s, at most 32 connections
and 8 of one address, no state of a stranger beyond the connection, no word of a stranger in a line or a file.
"""

from __future__ import annotations

import http.server
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from shepherd.federation.enrolment.folder import KIT_FILES
from shepherd.federation.enrolment.reach import CONFIRM, ENROL
from shepherd.federation.enrolment.requests import MOST_BYTES

SECONDS = 15.0
"""The longest connection: a slow client is cut off."""
MOST, MOST_OF_ONE = 32, 8
"""Connections at a time, and of one address."""
MOST_HEAD = 8 * 1024
"""Bytes of a request before its body."""
LOOPBACK = ("localhost", "127.0.0.1")
Answer = Callable[[str, bytes, str], tuple[int, bytes]]
"""Path, body and address of a request to status and body of its answer."""


class _Connection(NamedTuple):
    end: socket.socket
    address: str
    since: float


class Server:
    """A bound port. One thread accepts; a connection has a thread, which ends with it, at the latest after SECONDS.

    startup: where the server's certificate and key are. Raises OSError where the port cannot be bound.
    """

    def __init__(self, host: str, port: int, startup: Path, answer: Answer) -> None:
        self.answer = answer
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0  # each connection proves all; nothing of it is kept
        key, certificate = KIT_FILES["server"]
        self._context.load_cert_chain(startup / certificate, startup / key)
        local = host in LOOPBACK
        dual = not local and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            ("127.0.0.1" if local else "", port), backlog=MOST, dualstack_ipv6=dual,
            family=socket.AF_INET6 if dual else socket.AF_INET,
        )  # fmt: skip
        self._socket.settimeout(0.25)
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="enrolment port", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Free the port, and cut off all connections."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        self._cut(0.0)

    def _accept(self) -> None:
        while not self._ended.is_set():
            self._cut(SECONDS)
            try:
                end, (address, *_) = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:  # no descriptor is left, perhaps: wait until connections have ended
                time.sleep(0.25)
                continue
            address = address.removeprefix("::ffff:")  # IPv4 in the clothes of IPv6
            with self._lock:
                of_one = sum(each.address == address for each in self._connections.values())
                full = len(self._connections) >= MOST or of_one >= MOST_OF_ONE
                if not full:
                    self._connections[id(end)] = _Connection(end, address, time.monotonic())
            if full:
                end.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(end, address), daemon=True).start()
            except RuntimeError:  # the system has no thread for it
                self._forget(end)

    def _cut(self, seconds: float) -> None:
        """Shut down the connections that last longer: their threads wake up, and close them."""
        with self._lock:
            for each in self._connections.values():
                if time.monotonic() - each.since >= seconds:
                    with suppress(OSError):  # the socket's own shutdown: that of TLS would go on in clear
                        socket.socket.shutdown(each.end, socket.SHUT_RDWR)

    def _serve(self, end: socket.socket, address: str) -> None:
        try:
            end.settimeout(SECONDS)
            # The handshake is here, in the connection's thread: a client that does not continue it holds up nobody.
            with self._context.wrap_socket(end, server_side=True, do_handshake_on_connect=False) as secure:
                with self._lock:
                    self._connections[id(end)] = self._connections[id(end)]._replace(end=secure)
                secure.do_handshake()
                _Handler(secure, address, self)
        except (OSError, ValueError):
            pass  # a stranger who speaks another protocol, or leaves, has caused nothing
        finally:
            self._forget(end)

    def _forget(self, end: socket.socket) -> None:
        with self._lock:
            del self._connections[id(end)]
        end.close()


class _Limited(io.RawIOBase):
    """What is read from a connection, up to a number of bytes: what follows is never held."""

    def __init__(self, end: ssl.SSLSocket, most: int) -> None:
        self._end, self._left = end, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = memoryview(buffer)[: self._left]
        count = self._end.recv_into(part) if len(part) else 0
        self._left -= count
        return count


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request: a POST to a known path with a body of stated length. All else has a short refusal."""

    protocol_version = "HTTP/1.0"
    request: ssl.SSLSocket

    def __init__(self, end: ssl.SSLSocket, address: str, server: Server) -> None:
        self._served = server
        super().__init__(end, (address, 0), server)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.rfile = io.BufferedReader(_Limited(self.request, MOST_HEAD + MOST_BYTES))
        self.wfile = self._reply_bytes = io.BytesIO()  # sent as a whole by `finish`

    def finish(self) -> None:
        self.request.sendall(self._reply_bytes.getvalue())

    def log_message(self, *_: Any) -> None:
        """Write nothing: the lines of http.server hold what a stranger sent."""

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        self.close_connection = True
        self._reply(code if code in (404, 411, 413) else 400, b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path not in (ENROL, CONFIRM):
            self.send_error(404)
        elif not (length.isascii() and length.isdigit() and len(length) < 8):
            self.send_error(411)
        elif int(length) > MOST_BYTES:
            self.send_error(413)
        elif len(body := self.rfile.read(int(length))) == int(length):
            self._reply(*self._served.answer(self.path, body, self.client_address[0]))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())  # the site compares the clocks
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
