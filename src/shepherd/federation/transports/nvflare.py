"""NVFlare's parent processes with a part of ours in them: messages go between the wire and a bridge to our process.

    main("server", kit, descriptor)       # or "site"; engine_process.py starts a process with it

The only file that imports nvflare. It rests on parts of 2.9 without a promise of stability (parents, cells, headers of
their messages, the list of clients), so another version is refused; tests/federation/transports/ holds what is relied
on. No job is ever submitted. Neither torch nor rows nor a model are in these processes, and what comes is bytes.
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
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamHeaderKey,
)
from nvflare.private.defs import CellChannelTopic, CellMessageHeaderKeys

from shepherd.federation.transports.bridge import Bridge, Gone, Head
from shepherd.federation.transports.guard import Guard
from shepherd.federation.transports.kits import SERVER, read_site

CHANNEL, SESSION = "shepherd", "shepherd_session"
TOPICS = ("hello", "answer", "progress", "message")
"""What a site sends; the coordinator sends "ask" and "tell"."""
OF_THE_ENGINE = (
    CellChannelTopic.Challenge, CellChannelTopic.Register, CellChannelTopic.HEART_BEAT, CellChannelTopic.Quit,
    CellChannelTopic.Bye,
)  # fmt: skip
SMALL = 2**16
"""Bytes of a message of the engine's own."""
WAIT = 15.0
"""Seconds without progress after which a message counts as not delivered."""
ANSWER = 4.0
"""Seconds in which our process answers; a site is answered "busy" after them."""


class Link:
    """The bridge to our process, and the part of NVFlare that it belongs to once that is made."""

    bridge: Bridge
    guard: Guard
    part: _Part | None = None

    @classmethod
    def open(cls, descriptor: int) -> None:
        cls.bridge = Bridge(Connection(descriptor), cls.handle, threads=64)
        threading.Thread(target=cls._end, daemon=True).start()

    @classmethod
    def handle(cls, head: Head, data: bytes) -> Head | None:
        if cls.part is None or cls.part.cell is None:
            return {"code": "not-up"}
        return cls.part.do(head, data)

    @classmethod
    def post(cls, **head: Any) -> None:
        with suppress(Gone):
            cls.bridge.post(head)

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

    def send(self, target: str, topic: str, headers: dict[str, Any], data: bytes, timeout: float = WAIT) -> Head:
        """Send a message, and return what the other side answers: a code, and what belongs to it."""
        reply = self.cell.send_request(
            channel=CHANNEL, topic=topic, target=target, request=new_cell_message(headers, data), timeout=timeout,
            optional=True,
        )  # fmt: skip
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.OK and reply.payload:
            return json.loads(bytes(reply.payload))
        return {"code": str(code), "why": str(reply.get_header(MessageHeaderKey.ERROR) or "")}

    def _dropped(self, origin: str, why: str) -> Any:
        Link.post(event="refused", code="message", why=f"a message from {origin[:80]!r} was dropped: {why}")
        return make_reply(ReturnCode.UNAUTHENTICATED, why)


class ServerPart(_Part):
    """In the coordinator's parent: who sends is who the engine has authenticated."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.CLIENT_REGISTER_RECEIVED:
            self._may_register(fl_ctx.get_peer_context())
        elif event_type == EventType.SYSTEM_START:
            self.engine = fl_ctx.get_engine()
            self.cell = self.engine.get_cell()
            for topic in TOPICS:
                self.cell.register_request_cb(channel=CHANNEL, topic=topic, cb=self._received)
            self.cell.core_cell.add_incoming_filter("*", "*", self._filter)
            threading.Thread(target=self._tick, daemon=True).start()
            Link.post(event="up")

    def do(self, head: Head, data: bytes) -> Head | None:
        if head["do"] == "expel":
            self.engine.disable_clients([head["client"]])
            return {"code": "ok"}
        target = next((c.get_fqcn() for c in self.engine.get_clients() if c.name == head["client"]), None)
        if target is None:
            return {"code": "absent"}
        return self.send(target, head["do"], {"key": head.get("key", "")}, data)

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
            answer = Link.bridge.call(head, bytes(data), timeout=ANSWER)
        except (Gone, TimeoutError):
            answer = {"code": "busy"}
        return make_reply(ReturnCode.OK, "", json.dumps(dict(answer)).encode())

    def _sender(self, message: Any) -> str | None:
        """The member that a message comes from. The engine has checked token, signature and origin; the signature
        outlives an expulsion, so the token must still be a client's."""
        client = self.engine.client_manager.clients.get(message.get_header(CellMessageHeaderKeys.TOKEN))
        if client is None or client.name != message.get_header(CellMessageHeaderKeys.CLIENT_NAME):
            return None
        return client.name if message.get_header(MessageHeaderKey.ORIGIN) == client.get_fqcn() else None

    def _may_register(self, peer: FLContext) -> None:
        """Refuse a second process with the identity of a present one, before it takes the place of the first."""
        told = str(peer.get_prop(SESSION, "") or "")[:200].partition(" ")
        head = {"event": "register", "client": peer.get_identity_name(), "session": told[0], "replaces": told[2]}
        try:
            answer = Link.bridge.call({**head, "time": time.monotonic()}, timeout=ANSWER)
        except (Gone, TimeoutError):
            return
        if answer.get("code") == "lease":  # others learn it from their first sign of life
            raise NotAuthenticated(str(answer.get("why", "")))

    def _filter(self, message: Any) -> Any:
        """Drop what no site of ours sends, before it is decoded or collected. NVFlare's filter has come first."""
        origin, cell = str(message.get_header(MessageHeaderKey.ORIGIN)), message.get_prop(MessagePropKey.ENDPOINT)
        if origin != message.get_prop(MessagePropKey.COMMON_NAME) or cell is None or cell.name != origin:
            return self._dropped(origin, "it came over the connection of another one")
        if message.get_header(MessageHeaderKey.DESTINATION) != SERVER:
            return self._dropped(origin, "it is for another site")
        if against := self._against(origin, message):
            return self._dropped(origin, against)
        return None

    def _against(self, origin: str, message: Any) -> str:
        channel, topic = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
        now, size = time.monotonic(), len(message.payload or b"")
        if (channel, topic) == (STREAM_CHANNEL, STREAM_DATA_TOPIC):
            return self._against_part(origin, message, now)
        if channel == STREAM_CHANNEL and topic in (STREAM_ACK_TOPIC, STREAM_ERROR_TOPIC):
            return "" if size < SMALL else "it is too large"
        if channel not in (CellChannel.SERVER_MAIN, CellChannel.CELLNET) or topic not in OF_THE_ENGINE:
            return f"its channel {str(channel)[:40]!r} is not in use"
        if size >= SMALL:
            return "it is too large"
        return "" if Link.guard.admits(origin, now) else "there are too many"

    def _against_part(self, origin: str, message: Any, now: float) -> str:
        """What is against a part of a message."""
        part = message.headers
        channel, topic = part.get(StreamHeaderKey.CHANNEL), str(part.get(StreamHeaderKey.TOPIC))
        ours = channel == CHANNEL and topic in TOPICS
        if not ours and (channel != CellChannel.RETURN_ONLY or not topic.startswith(f"{CHANNEL}:")):
            return f"its channel {str(channel)[:40]!r} is not in use"
        if part.get(StreamHeaderKey.PAYLOAD_ENCODING) not in (Encoding.BYTES, Encoding.NONE):
            return "it is not bytes"
        stream, size = str(part.get(StreamHeaderKey.STREAM_ID))[:40], part.get(StreamHeaderKey.SIZE)
        if type(size) is not int or size < 0:
            return "its size is not stated"
        if not part.get(StreamHeaderKey.SEQUENCE) and not Link.guard.admits(origin, now):
            return "there are too many"
        here = len(message.payload or b"")
        if size <= Link.guard.most // 2 and not Link.guard.collects(origin, stream, size, here, now):
            return "too much is on its way"  # one that is larger is refused by the streaming, which answers
        return ""

    def _tick(self) -> None:
        while not Link.bridge.closed.wait(1.0):
            Link.post(event="tick", time=time.monotonic())


class SitePart(_Part):
    """In a site's parent: only the coordinator's messages count, for the members of a federation reach each other."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.BEFORE_CLIENT_REGISTER:
            fl_ctx.set_prop(SESSION, os.environ.get("SHEPHERD_SESSION", ""), private=False, sticky=True)
        elif event_type == EventType.SYSTEM_START:
            self.cell = fl_ctx.get_engine().get_cell()
            self.cell.core_cell.add_incoming_filter("*", "*", self._filter)
            for topic in ("ask", "tell"):
                self.cell.register_request_cb(channel=CHANNEL, topic=topic, cb=self._received)
            Link.post(event="up")

    def do(self, head: Head, data: bytes) -> Head | None:
        told = {name: head[name] for name in ("session", "replaces", "key", "note") if name in head}
        return self.send(SERVER, head["do"], told, data, 5.0 if head["do"] == "hello" else WAIT)

    def _filter(self, message: Any) -> Any:
        """Drop what does not come from the coordinator, before it is decoded or collected."""
        origin = str(message.get_header(MessageHeaderKey.ORIGIN))
        if origin == SERVER:
            return None
        return self._dropped(origin, "only the coordinator sends messages to a site")

    def _received(self, message: Any) -> Any:
        if message.get_header(MessageHeaderKey.ORIGIN) != SERVER:
            return make_reply(ReturnCode.UNAUTHENTICATED, "only the coordinator")
        data = message.payload
        if not isinstance(data, bytes | bytearray | memoryview):
            return make_reply(ReturnCode.INVALID_REQUEST, "not bytes")
        head = {"event": message.get_header(MessageHeaderKey.TOPIC), "key": str(message.get_header("key") or "")}
        try:
            Link.bridge.post(head, bytes(data))
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
    Link.guard = Guard(int(largest))
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
