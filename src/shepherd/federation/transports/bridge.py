"""Messages between two processes of one machine over a pair of sockets: a head in JSON, then bytes.

    bridge = Bridge(connection, handle)         # handle(head, data) -> head of the answer, or None
    bridge.call({"do": "hello"}, timeout=5.0)   # the head of the answer; raises Gone, or TimeoutError
    bridge.post({"do": "progress"}, data)       # without an answer

Nothing is unpickled. The end of the other process ends the bridge: `closed` is set, and each call raises Gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Head = Mapping[str, Any]
Data = bytes | bytearray | memoryview
Handle = Callable[[Head, bytes], Head | None]
MOST_HEAD_BYTES = 2**16


class Gone(Exception):
    """The process at the other end is gone."""


class Pair(NamedTuple):
    """The two ends of a bridge: a connection here, and a socket whose descriptor a child process inherits."""

    ours: Connection
    theirs: socket.socket


def pair() -> Pair:
    """Two connected sockets. The child's end is to be closed here once the child runs."""
    ours, theirs = socket.socketpair()
    return Pair(Connection(ours.detach()), theirs)


class Bridge:
    """One end. `handle` runs in the thread that reads, one message after another; with `threads`, in that many."""

    def __init__(self, connection: Connection, handle: Handle, threads: int = 0) -> None:
        self.closed = threading.Event()
        self._connection, self._handle = connection, handle
        self._sending, self._lock = threading.Lock(), threading.Lock()
        self._answers: dict[int, list[Head]] = {}
        self._arrived = threading.Condition(self._lock)
        self._last = 0
        self._pool = ThreadPoolExecutor(threads, "bridge") if threads else None
        threading.Thread(target=self._read, name="bridge", daemon=True).start()

    def call(self, head: Head, data: Data = b"", *, timeout: float) -> Head:
        """The head of the answer. Raises Gone, and TimeoutError after `timeout` seconds."""
        answer: list[Head] = []
        with self._lock:
            self._last += 1
            number = self._last
            self._answers[number] = answer
        try:
            self._send({**head, "number": number}, data)
            with self._arrived:
                self._arrived.wait_for(lambda: answer or self.closed.is_set(), timeout)
        finally:
            with self._lock:
                del self._answers[number]
        if answer:
            return answer[0]
        if self.closed.is_set():
            raise Gone
        raise TimeoutError

    def post(self, head: Head, data: Data = b"") -> None:
        """Send a message without an answer. Raises Gone."""
        self._send(head, data)

    def close(self) -> None:
        """End the bridge; the other end sees it."""
        with self._arrived:
            self.closed.set()
            self._arrived.notify_all()
        # A thread is reading: a shutdown wakes it, and it closes the connection.
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, head: Head, data: Data) -> None:
        packed = json.dumps(head).encode()
        try:
            with self._sending:
                self._connection.send_bytes(packed)
                self._connection.send_bytes(data)
        except (OSError, ValueError):
            raise Gone from None

    def _read(self) -> None:
        try:
            while not self.closed.is_set():
                head = json.loads(self._connection.recv_bytes(MOST_HEAD_BYTES))
                data = self._connection.recv_bytes()
                if "answers" in head:
                    self._arrive(head)
                elif self._pool is not None:
                    self._pool.submit(self._answer, head, data)
                else:
                    self._answer(head, data)
        except (EOFError, OSError, RuntimeError, ValueError):
            pass
        finally:
            self.close()
            self._connection.close()

    def _arrive(self, head: Head) -> None:
        with self._arrived:
            waiting = self._answers.get(head["answers"])
            if waiting is not None:
                waiting.append(head)
                self._arrived.notify_all()

    def _answer(self, head: Head, data: bytes) -> None:
        answer = self._handle(head, data)
        if "number" in head:
            with suppress(Gone):
                self._send({**(answer or {}), "answers": head["number"]}, b"")
