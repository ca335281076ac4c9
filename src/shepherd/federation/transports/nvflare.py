"""NVFlare's parent processes with a part of ours in them: messages go between the wire and a bridge to our process.

    main("server", kit, descriptor)       # or "site"; engine_process.py starts a process with it

No file but this one and gate.py imports nvflare. They rest on parts of 2.9 without a promise of stability (parents,
cells, headers of their messages, the list of clients), so another version is refused; tests/federation/transports/
holds what is relied on. No job is ever submitted. Neither torch nor rows nor a model are in these processes, and what
comes is bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.defs import CellMessageHeaderKeys

from shepherd.federation.transports.bridge import Bridge, Gone, Head
from shepherd.federation.transports.gate import CHANNEL, OF_SITES, OF_THE_COORDINATOR, Gate
from shepherd.federation.transports.guard import Guard
from shepherd.federation.transports.kits import SERVER, read_site
from shepherd.federation.transports.refusals import NO_MEMBER
from shepherd.federation.transports.tidying import Tidier

SESSION = "shepherd_session"
WAIT = 15.0
"""Seconds without progress after which a message counts as not delivered."""
ANSWER = 4.0
"""Seconds in which our process answers; a site is answered "busy" after them."""


class Link:
    """The bridge to our process, and the part of NVFlare that it belongs to once that is made."""

    bridge: Bridge
    gate: Gate
    tidier = Tidier()
    part: _Part | None = None

    @classmethod
    def open(cls, descriptor: int) -> None:
        cls.bridge = Bridge(Connection(descriptor), cls.handle, threads=64)
        threading.Thread(target=cls._end, daemon=True).start()

    @classmethod
    def handle(cls, head: Head, data: bytes) -> Head | None:
        if head["do"] == "members":
            cls.gate.members = frozenset(json.loads(data))
            return None
        if cls.part is None or cls.part.cell is None:
            return {"code": "not-up"}
        return cls.part.do(head, data)

    @classmethod
    def post(cls, **head: Any) -> None:
        with suppress(Gone):
            cls.bridge.post(head)

    @classmethod
    def refused(cls, sender: str, why: str) -> None:
        if sender == SERVER and why == NO_MEMBER:  # the coordinator's word on this site
            cls.post(event="refused", code="removed", why=why)
            return
        said = f"a message from {sender[:80]!r} was dropped: {why}"
        cls.post(event="refused", code="message", site=sender[:80], why=said)

    @classmethod
    def up(cls) -> None:
        cls.tidier.begin()
        cls.post(event="up")

    @classmethod
    def each_second(cls) -> None:
        cls.gate.drop_stale(time.monotonic())
        cls.tidier.tidy()

    @classmethod
    def _end(cls) -> None:
        """Our process has ended, or wants this one to: no state is here that could be lost."""
        cls.bridge.closed.wait()
        os._exit(0)


class _Part(FLComponent):
    """What both parents have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.cell: Any = None
        Link.part = self

    def do(self, head: Head, data: bytes) -> Head | None:
        raise NotImplementedError

    def _take(self, message: Any) -> Any:
        """Take a message, which counts for its sender until then."""
        try:
            return self._received(message)
        finally:
            Link.gate.done(message)
            if isinstance(message.payload, bytes | bytearray | memoryview):  # of any type: it may be hostile
                Link.tidier.note(len(message.payload))

    def _received(self, message: Any) -> Any:
        raise NotImplementedError

    def send(self, target: str, topic: str, headers: dict[str, Any], data: bytes, timeout: float = WAIT) -> Head:
        """Send a message, and return what the other side answers: a code, and what belongs to it."""
        reply = self.cell.send_request(
            channel=CHANNEL, topic=topic, target=target, request=new_cell_message(headers, data), timeout=timeout,
            optional=True,
        )  # fmt: skip
        Link.tidier.note(len(data))
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.OK and reply.payload:
            return json.loads(bytes(reply.payload))
        return {"code": str(code), "why": str(reply.get_header(MessageHeaderKey.ERROR) or "")}


class ServerPart(_Part):
    """In the coordinator's parent: who sends is who the engine has authenticated."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.CLIENT_REGISTER_RECEIVED:
            self._may_register(fl_ctx.get_peer_context())
        elif event_type == EventType.SYSTEM_START:
            self.engine = fl_ctx.get_engine()
            self.cell = self.engine.get_cell()
            for topic in OF_SITES:
                self.cell.register_request_cb(channel=CHANNEL, topic=topic, cb=self._take)
            threading.Thread(target=self._tick, daemon=True).start()
            Link.up()

    def do(self, head: Head, data: bytes) -> Head | None:
        if head["do"] == "expel":
            self.engine.disable_clients([head["client"]])
            return {"code": "ok"}
        target = next((c.get_fqcn() for c in self.engine.get_clients() if c.name == head["client"]), None)
        if target is None:
            return {"code": "absent"}
        return self.send(target, head["do"], {name: head[name] for name in ("key", "limit") if name in head}, data)

    def _received(self, message: Any) -> Any:
        client = self._sender(message)
        if client is None:
            name = str(message.get_header(CellMessageHeaderKeys.CLIENT_NAME))
            code = "removed" if self.engine.client_manager.is_client_disabled(name) else "unknown"
            return make_reply(ReturnCode.OK, "", json.dumps({"code": code}).encode())
        topic = str(message.get_header(MessageHeaderKey.TOPIC))
        data = message.payload
        if not isinstance(data, bytes | bytearray | memoryview):
            return make_reply(ReturnCode.INVALID_REQUEST, "not bytes")
        told = {name: str(message.get_header(name) or "")[:200] for name in ("session", "replaces", "key", "note")}
        head = {"event": topic, "client": client, "time": time.monotonic(), **told}
        try:
            answer = Link.bridge.call(head, data, timeout=ANSWER)
        except (Gone, TimeoutError):
            answer = {"code": "busy"}
        return make_reply(ReturnCode.OK, "", json.dumps(dict(answer)).encode())

    def _sender(self, message: Any) -> str | None:
        """The member that a message comes from. The engine has checked token, signature and origin; the signature
        outlives an expulsion, so the token must still be a client's."""
        client = self.engine.client_manager.clients.get(message.get_header(CellMessageHeaderKeys.TOKEN))
        if client is None or client.name != message.get_header(CellMessageHeaderKeys.CLIENT_NAME):
            return None
        # The engine signs a token in the server's name too, and sends it along: a member's has that of its connection.
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        return client.name if origin == client.get_fqcn() == client.name else None

    def _may_register(self, peer: FLContext) -> None:
        """Refuse a second process with the identity of a present one, before it takes the place of the first."""
        told = str(peer.get_prop(SESSION, "") or "")[:200].partition(" ")
        name = str(peer.get_identity_name())[:80]  # as it says; its first sign of life has its certificate's
        head = {"event": "register", "client": name, "session": told[0], "replaces": told[2]}
        try:
            answer = Link.bridge.call({**head, "time": time.monotonic()}, timeout=ANSWER)
        except (Gone, TimeoutError):
            return
        if answer.get("code") == "lease":  # others learn it from their first sign of life
            raise NotAuthenticated(str(answer.get("why", "")))

    def _tick(self) -> None:
        while not Link.bridge.closed.wait(1.0):
            Link.each_second()
            Link.post(event="tick", time=time.monotonic())


class SitePart(_Part):
    """In a site's parent: only the coordinator's messages count, for the members of a federation reach each other."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.BEFORE_CLIENT_REGISTER:
            fl_ctx.set_prop(SESSION, os.environ.get("SHEPHERD_SESSION", ""), private=False, sticky=True)
        elif event_type == EventType.SYSTEM_START:
            self.cell = fl_ctx.get_engine().get_cell()
            for topic in OF_THE_COORDINATOR:
                self.cell.register_request_cb(channel=CHANNEL, topic=topic, cb=self._take)
            Link.up()

    def do(self, head: Head, data: bytes) -> Head | None:
        if head["do"] == "hello":  # each second
            Link.each_second()
        told = {name: head[name] for name in ("session", "replaces", "key", "note") if name in head}
        return self.send(SERVER, head["do"], told, data, 5.0 if head["do"] == "hello" else WAIT)

    def _received(self, message: Any) -> Any:
        if message.get_header(MessageHeaderKey.ORIGIN) != SERVER:
            return make_reply(ReturnCode.UNAUTHENTICATED, "only the coordinator")
        data = message.payload
        if not isinstance(data, bytes | bytearray | memoryview):
            return make_reply(ReturnCode.INVALID_REQUEST, "not bytes")
        limit = message.get_header("limit")  # of any type: it may be of a hostile coordinator
        head = {"event": message.get_header(MessageHeaderKey.TOPIC), "key": str(message.get_header("key") or "")[:200],
                "limit": limit if type(limit) is int and 0 <= limit < 2**63 else None}  # fmt: skip
        try:
            Link.bridge.post(head, data)
        except Gone:
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE, "the site ends")
        return make_reply(ReturnCode.OK, "", b'{"code": "ok"}')


def _keep_name(module: Any, name: str) -> None:
    """Let a module of NVFlare take the name of a site as it is: it takes "f" for a boolean and "7" for a number."""
    parse = module.parse_vars
    module.parse_vars = lambda items: {**parse(items), "uid": name}


def main(role: str, kit: str, descriptor: str, largest: str) -> int:
    """Run a parent until our process ends. largest: bytes of a message."""
    os.umask(0o077)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the end of our process is the end of this one
    Link.gate = Gate(role, Guard(int(largest)), Link.refused)
    Link.gate.install()
    Link.open(int(descriptor))
    common = ["--set", "secure_train=true", "org=shepherd", "config_folder=config"]
    if role == SERVER:
        from nvflare.private.fed.app.server import server_train as app

        sys.argv = ["server", "-m", kit, "-s", "fed_server.json", *common]
    else:
        from nvflare.private.fed.app import fl_conf
        from nvflare.private.fed.app.client import client_train as app

        name = read_site(Path(kit))
        for module in (app, fl_conf):
            _keep_name(module, name)
        sys.argv = ["site", "-m", kit, "-s", "fed_client.json", *common, f"uid={name}", "heart_beat_interval=2"]
    arguments = app.parse_arguments()
    return int(MainProcessMonitor.run(main_func=app.main, run_dir=arguments.workspace, args=arguments) or 0)
