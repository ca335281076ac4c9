"""Which of NVFlare's messages reach its parents: those of our channel and five of the engine. Nothing else is decoded.

    Gate("server", Guard(2**20), refused).install()       # before a cell is made

A parent of NVFlare also takes commands: deploy a job, delete a folder, stop. It takes them from a sender that says to
be the server, and over a listener on loopback without TLS, which every person on the machine reaches. So the gate is in
place before a cell connects, that listener is not opened, and at a site the coordinator has no other channel than ours.
A removed site has a valid certificate for a while: its messages are dropped at the coordinator before they are decoded.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    Encoding,
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
    ReturnCode,
)
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.drivers.grpc_driver import Servicer
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_CHUNK_SIZE,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.f3.streaming.stream_types import StreamError
from nvflare.private.defs import CellChannelTopic

from shepherd.federation.transports.guard import Guard, Stream
from shepherd.federation.transports.kits import SERVER
from shepherd.federation.transports.refusals import NO_MEMBER

CHANNEL = "shepherd"
OF_SITES, OF_THE_COORDINATOR = ("hello", "answer", "progress", "message"), ("ask", "tell")
"""Topics of our channel."""
LARGE = ("answer", "ask")
OF_THE_ENGINE = (
    CellChannelTopic.Challenge, CellChannelTopic.Register, CellChannelTopic.HEART_BEAT, CellChannelTopic.Quit,
)  # fmt: skip
"""What a site's engine asks that of the coordinator."""
SMALL = 2**16
"""Bytes of a message of the engine's own, and of ours but a question and its answer."""
MOST_CONNECTIONS = 4
"""Connections with one certificate at a time, each of which takes a thread; a site has one."""
COST_OF_A_REPLY = 10.0
"""For how many messages a reply counts: the engine keeps a thread for 15 s after each (kits.RETRY)."""


class Gate:
    """A filter of all that comes to a parent. role: server or site. refused: takes who sent it, and what is against.

    members: the names whose messages the coordinator takes, replaced as a whole; None: those of every certificate.
    """

    def __init__(self, role: str, guard: Guard, refused: Callable[[str, str], None]) -> None:
        self.role, self.guard, self.refused = role, guard, refused
        self.members: frozenset[str] | None = None
        self.cell: Any = None
        self._lock = threading.Lock()
        self._connections: defaultdict[str, list[Any]] = defaultdict(list)

    def install(self) -> None:
        """Filter every cell of this process from before its start, and let none listen without TLS."""
        start = CoreCell.start

        def guarded(cell: Any) -> None:
            self.cell = cell
            cell.add_incoming_filter("*", "*", self.judge)
            start(cell)

        serve = Servicer.Stream
        CoreCell.start = guarded
        CoreCell._create_internal_listener = lambda *_, **__: None
        Servicer.Stream = lambda servicer, frames, context: self.connected(
            context, lambda: serve(servicer, frames, context)
        )

    def connected(self, context: Any, serve: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Serve a connection; the oldest ones of the same certificate end, such as those a network has cut silently."""
        name = b"".join(context.auth_context().get("x509_common_name", ())[:1]).decode(errors="replace")
        with self._lock:
            mine = self._connections[name]
            oldest = mine[: max(0, len(mine) + 1 - MOST_CONNECTIONS)]
            mine.append(context)
        for each in oldest:
            each.cancel()
        try:
            yield from serve()
        finally:
            with self._lock, suppress(ValueError):
                mine.remove(context)

    def judge(self, message: Any) -> Any:
        """None for a message that may pass; otherwise NVFlare drops it."""
        sender, against = self._sender(message)
        if not against and self.role == SERVER and self.members is not None and sender not in self.members:
            against = NO_MEMBER
            self._answer_stranger(sender, message)
        against = against or self._against(sender, message)
        if not against:
            return None
        self.refused(sender, against)
        return make_reply(ReturnCode.UNAUTHENTICATED, against)

    def _answer_stranger(self, sender: str, message: Any) -> None:
        """Answer that the sender is not a member: so a removed site ends. All of them together have one allowance."""
        if self.cell is None or not self.guard.admits("", time.monotonic()):
            return
        reply = make_reply(ReturnCode.UNAUTHENTICATED, NO_MEMBER)
        reply.add_headers(
            {
                MessageHeaderKey.FROM_CELL: SERVER,
                MessageHeaderKey.TO_CELL: sender,
                MessageHeaderKey.ORIGIN: SERVER,
                MessageHeaderKey.DESTINATION: sender,
                MessageHeaderKey.REQ_ID: message.get_header(MessageHeaderKey.REQ_ID, ""),
                MessageHeaderKey.MSG_TYPE: MessageType.REPLY,
            }
        )
        self.cell._send_reply(reply, message.get_prop(MessagePropKey.ENDPOINT))

    def drop_stale(self, now: float) -> None:
        """Drop messages whose parts no longer come, with what the engine holds of them."""
        for origin, stream in self.guard.stale(now):
            task = RxTask.rx_task_map.get((origin, stream))
            if task is not None and not task.completed:
                task.stop(StreamError("its parts do not come"), notify=False)
                task.out_seq_chunks.clear()
                task._remove_task()

    def done(self, message: Any) -> None:
        """Count a message no more: our process has it."""
        self.guard.done(str(message.get_header(MessageHeaderKey.ORIGIN)), message.get_header(StreamHeaderKey.STREAM_ID))

    def _sender(self, message: Any) -> tuple[str, str]:
        """Whose connection a message came over, and what is against it."""
        cell, origin = message.get_prop(MessagePropKey.ENDPOINT), message.get_header(MessageHeaderKey.ORIGIN)
        if self.role != SERVER:
            known = origin == SERVER and cell is not None and cell.name == SERVER
            return SERVER, "" if known else "only the coordinator sends messages to a site"
        sender = str(message.get_prop(MessagePropKey.COMMON_NAME) or "")
        if not sender or sender != origin or cell is None or cell.name != sender:
            return sender, "it came over the connection of another one"
        return sender, "" if message.get_header(MessageHeaderKey.DESTINATION) == SERVER else "it is for another site"

    def _against(self, sender: str, message: Any) -> str:
        head = message.get_header
        channel, topic, size = head(MessageHeaderKey.CHANNEL), head(MessageHeaderKey.TOPIC), len(message.payload or b"")
        kind, encoding = head(MessageHeaderKey.MSG_TYPE), head(MessageHeaderKey.PAYLOAD_ENCODING)
        if self.role != SERVER and head(MessageHeaderKey.ERROR) == NO_MEMBER:
            return NO_MEMBER
        if head(MessageHeaderKey.ENCRYPTED):
            return "it is encrypted apart"
        of_the_engine = channel == CellChannel.SERVER_MAIN and topic in OF_THE_ENGINE
        if not of_the_engine and encoding not in (None, Encoding.BYTES, Encoding.NONE):
            return "it is not bytes"
        if kind != (MessageType.REPLY if of_the_engine and self.role != SERVER else MessageType.REQ):
            return "nobody waits for it"
        if (channel, topic) == (STREAM_CHANNEL, STREAM_DATA_TOPIC):
            return self._against_part(sender, message, size)
        if channel == STREAM_CHANNEL and topic in (STREAM_ACK_TOPIC, STREAM_ERROR_TOPIC):
            return "" if size < SMALL else "it is too large"
        if not of_the_engine and (channel, topic) != (CellChannel.CELLNET, CellChannelTopic.Bye):
            return "its channel is not in use"
        if self.role != SERVER:
            return ""
        if size >= SMALL:
            return "it is too large"
        return "" if self.guard.admits(sender, time.monotonic()) else "there are too many"

    def _against_part(self, sender: str, message: Any, length: int) -> str:
        """What is against a part of a message."""
        part = message.headers
        channel, topic = part.get(StreamHeaderKey.CHANNEL), str(part.get(StreamHeaderKey.TOPIC))
        ours = channel == CHANNEL and topic in (OF_SITES if self.role == SERVER else OF_THE_COORDINATOR)
        if not ours and (channel != CellChannel.RETURN_ONLY or not topic.startswith(f"{CHANNEL}:")):
            return "its channel is not in use"
        if part.get(StreamHeaderKey.PAYLOAD_ENCODING) not in (Encoding.BYTES, Encoding.NONE):
            return "it is not bytes"
        stream, size, number = (
            part.get(key) for key in (StreamHeaderKey.STREAM_ID, StreamHeaderKey.SIZE, StreamHeaderKey.SEQUENCE)
        )
        if type(size) is not int or size < 0:
            return "its size is not stated"
        if type(stream) is not int and (type(stream) is not str or len(stream) > 64):
            return "it has no number"
        if type(number) is not int or not 0 <= number <= size // STREAM_CHUNK_SIZE + 1:
            return "it has more parts than its size"
        if length > min(size, STREAM_CHUNK_SIZE):
            return "a part is larger than it may be"
        if ours and part.get(StreamHeaderKey.RELIABLE):
            return "it is to be kept"
        if ours and topic not in LARGE and size >= SMALL:
            return "it is too large"
        for key in (StreamHeaderKey.RETRY_TIMEOUT, StreamHeaderKey.RETRY_WAIT):  # how long the engine keeps it
            part.pop(key, None)
        now, cost = time.monotonic(), 1.0 if ours else COST_OF_A_REPLY
        if size > self.guard.most // 2:
            message.payload = None  # refused by the streaming, which answers to the first part
            return "" if number == 0 and self.guard.admits(sender, now, cost) else "it is too large"
        return self.guard.collects(sender, stream, size, now, lambda one: self._holds(sender, one), cost)

    @staticmethod
    def _holds(sender: str, stream: Stream) -> bool:
        task = RxTask.rx_task_map.get((sender, stream))
        return task is not None and not task.completed
