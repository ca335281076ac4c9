"""A chat endpoint on loopback that answers by a script, faults included.

with StubJudge(lambda number, request: text("SCORES: 8 7")) as stub:
    stub.url, stub.requests
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """status, body and headers as sent. cut: the connection ends after half of the body. silent: none of it comes."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}
    cut: bool = False
    silent: bool = False


def text(content: str | None, model: str = "judge", **more: Any) -> Reply:
    """A chat completion; `more` replaces its fields."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Reply(body={"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice],
                       "usage": usage, "system_fingerprint": "fp", **more})  # fmt: skip


def error(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **more: Any) -> Reply:
    """An error in the form of the API."""
    return Reply(status, {"error": {"message": message, "type": "error", **more}}, headers or {})


SILENT = Reply(silent=True)
Script = Callable[[int, Mapping[str, Any]], Reply]


class StubJudge:
    """requests: the bodies received, in order. headers: those of the last one, names in lower case."""

    def __init__(self, script: Script) -> None:
        self.script, self.requests, self.headers = script, [], {}
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> StubJudge:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with stub._lock:
                    stub.requests.append(request)
                    number, stub.headers = len(stub.requests), {k.lower(): v for k, v in self.headers.items()}
                stub._send(self, stub.script(number, request))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _send(self, to: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.silent:
            self._over.wait(5)
            to.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        to.send_response(reply.status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **reply.headers,
        }.items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(body[: len(body) // 2] if reply.cut else body)
        to.close_connection = to.close_connection or reply.cut
