"""A hub on this machine's loopback, with the endpoints that huggingface_hub and `datasets` ask.

with FakeHub() as hub:
    commit = hub.add("lab/tiny", {"config.json": b"{}"}, "main", "v1")
    hub.add("datasets/lab/rows", {"train.jsonl": b"{}"}, "main")        # a repository of data
    ... HF_ENDPOINT=hub.url ...
    hub.asked                           # [("GET", "/api/models/lab/tiny/revision/main"), …]
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?")
_FILE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """Repositories in memory. gated: what may be listed but not read; private: what answers 401; down: 503 to all.

    cut: {file: how often} its answer stops halfway. ranges: the Range headers that came. stall: a file that stops
    halfway and stays open until `go` is set.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    down: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    stall: str = ""
    go: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], *refs: str) -> str:
        """A commit of these files, to which the refs then point; returns its hash."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = files
        self.refs |= {(name, ref): commit for ref in (*refs, commit)}
        return commit

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path))
        if hub.down:
            return self._send(503, b"down")
        if found := _API.fullmatch(path):
            kind, name, what, revision, _ = found.groups()
            name, revision = ("" if kind == "models" else "datasets/") + name, revision or "main"
        elif found := _FILE.fullmatch(path):
            (name, revision, what) = found.groups()
        else:
            return self._refuse(404, "")
        if name in hub.private or name not in hub.repositories:
            return self._refuse(401, "RepoNotFound")  # the hub does not tell one from the other without a token
        commit = hub.refs.get((name, revision))
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = hub.repositories[name][commit]
        if path.startswith("/api/"):
            return self._json(_info(name, commit, files) if what in (None, "revision") else _tree(files))
        if name in hub.gated:
            return self._refuse(403, "GatedRepo")
        if what not in files:
            return self._refuse(404, "EntryNotFound")
        self._file(what, files[what], commit)

    def _file(self, name: str, content: bytes, commit: str) -> None:
        asked = self.headers.get("Range")
        begin = 0
        if asked:
            self.hub.ranges.append(asked)
            begin = int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = content[begin:]
        if self.hub.stall == name and not self.hub.go.is_set():
            self.wfile.write(left[: len(left) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go.wait(60)
            self.close_connection = True
        elif self.hub.cut.get(name, 0):
            self.hub.cut[name] -= 1
            self.wfile.write(left[: len(left) // 2])
            self.close_connection = True
        else:
            self.wfile.write(left)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(name: str, commit: str, files: dict[str, bytes]) -> dict:
    siblings = [{"rfilename": path} for path in files]
    return {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}


def _tree(files: dict[str, bytes]) -> list[dict]:
    entries = []
    for path, content in files.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return entries
