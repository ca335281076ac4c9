"""Which messages reach NVFlare's parents: ours and a few of the engine, from their true sender, in bounded parts."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")
if sys.platform.startswith("linux"):
    from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey, MessagePropKey
    from nvflare.fuel.f3.endpoint import Endpoint
    from nvflare.fuel.f3.message import Message
    from nvflare.fuel.f3.streaming.byte_receiver import RxTask
    from nvflare.fuel.f3.streaming.stream_const import (
        STREAM_ACK_TOPIC,
        STREAM_CHANNEL,
        STREAM_DATA_TOPIC,
        StreamHeaderKey,
    )
    from nvflare.private.defs import TrainingTopic

    from shepherd.federation.transports import nvflare
    from shepherd.federation.transports.bridge import MOST_HEAD_BYTES
    from shepherd.federation.transports.gate import MOST_CONNECTIONS, OF_THE_ENGINE, SMALL, Gate
    from shepherd.federation.transports.guard import OPEN, PER_SECOND, STALE, Guard
    from shepherd.federation.transports.refusals import NO_MEMBER

MIB = 2**20


class Door:
    """A gate, and what it refused."""

    def __init__(self, role: str, largest: int = 4 * MIB) -> None:
        self.refused: list[tuple[str, str]] = []
        self.gate = Gate(role, Guard(largest), lambda sender, why: self.refused.append((sender, why)))
        self.origin, self.target = ("a", "server") if role == "server" else ("server", "a")
        self.topic = "answer" if role == "server" else "ask"

    def __call__(
        self, channel: str, topic: str, payload: bytes = b"", kind: str = "req", *, over: str | None = None,
        cn: str | None = None, **head: object,
    ) -> str:  # fmt: skip
        """What is against a message. over, cn: the name of the cell and of the certificate that it came over."""
        head = {
            MessageHeaderKey.CHANNEL: channel, MessageHeaderKey.TOPIC: topic, MessageHeaderKey.MSG_TYPE: kind,
            MessageHeaderKey.ORIGIN: self.origin, MessageHeaderKey.DESTINATION: self.target, **head,
        }  # fmt: skip
        self.message = Message(head, payload)
        self.message.set_prop(MessagePropKey.ENDPOINT, Endpoint(over or self.origin))
        if cn != "":
            self.message.set_prop(MessagePropKey.COMMON_NAME, cn or self.origin)
        found = self.gate.judge(self.message)
        return "" if found is None else self.refused[-1][1]

    def part(
        self, stream: object = 1, size: object = 10, number: object = 0, payload: bytes = b"x" * 10,
        channel: str = "shepherd", topic: str = "", **head: object,
    ) -> str:  # fmt: skip
        """What is against a part of a message."""
        given = {
            StreamHeaderKey.CHANNEL: channel, StreamHeaderKey.TOPIC: topic or self.topic,
            StreamHeaderKey.STREAM_ID: stream, StreamHeaderKey.SIZE: size, StreamHeaderKey.SEQUENCE: number,
            StreamHeaderKey.PAYLOAD_ENCODING: Encoding.BYTES, **head,
        }  # fmt: skip
        return self(STREAM_CHANNEL, STREAM_DATA_TOPIC, payload, **given)


def commands() -> list[tuple[str, str]]:
    """What NVFlare's parents do at a request: jobs, folders, files, processes."""
    topics = [value for name, value in vars(TrainingTopic).items() if name.isupper()]
    channels = [value for name, value in vars(CellChannel).items() if name.isupper()]
    return [*((CellChannel.CLIENT_MAIN, topic) for topic in topics), *((channel, "x") for channel in channels),
            ("cellnet.channel", "bulk"), ("_cell_mgr", "stop"), (None, None)]  # fmt: skip


@pytest.mark.parametrize("role", ["server", "site"])
def test_no_command_of_the_engine_is_taken_from_anyone(role):
    door = Door(role)
    for channel, topic in commands():
        assert door(channel, topic) == "its channel is not in use", (channel, topic)
        assert door(channel, topic, kind="reply"), (channel, topic)
        if channel != "shepherd":
            assert door.part(channel=channel, topic=topic) == "its channel is not in use"


def test_a_site_takes_questions_and_replies_of_the_coordinator_and_nothing_else():
    site = Door("site")
    for topic in ("ask", "tell"):
        assert not site.part(topic=topic)
    assert not site.part(channel=CellChannel.RETURN_ONLY, topic="shepherd:hello")
    assert site.part(topic="hello")
    assert site.part(channel=CellChannel.RETURN_ONLY, topic="admin:x")
    for topic in OF_THE_ENGINE:
        assert not site(CellChannel.SERVER_MAIN, topic, kind="reply")
        assert site(CellChannel.SERVER_MAIN, topic) == "nobody waits for it"
    assert not site("cellnet.channel", "bye")
    assert site.part(over="b") == "only the coordinator sends messages to a site"
    site.origin = "b"
    assert site.part() == "only the coordinator sends messages to a site"


def test_the_coordinator_takes_a_message_only_over_the_connection_of_its_sender():
    server = Door("server")
    assert not server(CellChannel.SERVER_MAIN, OF_THE_ENGINE[0])
    for how in ({"over": "b"}, {"cn": "b"}, {"cn": ""}):
        assert server(CellChannel.SERVER_MAIN, OF_THE_ENGINE[0], **how) == "it came over the connection of another one"
    assert {sender for sender, _ in server.refused} == {"a", "b", ""}  # of certificates, not as a message claims
    server.target = "b"
    assert server(CellChannel.SERVER_MAIN, OF_THE_ENGINE[0]) == "it is for another site"


class Replies(list):
    """A cell, and the answers that it sends."""

    def _send_reply(self, reply: object, endpoint: object) -> None:
        self.append(reply)


def test_the_coordinator_decodes_nothing_of_a_removed_site_which_has_no_allowance():
    server = Door("server")
    server.gate.members, server.gate.cell = frozenset("bc"), Replies()
    for topic in OF_THE_ENGINE:
        assert server(CellChannel.SERVER_MAIN, topic, **{MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}) == NO_MEMBER
    assert server.part() == server("cellnet.channel", "bye") == NO_MEMBER
    assert server(CellChannel.SERVER_MAIN, OF_THE_ENGINE[0], cn="b") == "it came over the connection of another one"
    assert not server.gate.guard._members.keys() - {""}
    for _ in range(1000):
        server.part()
    assert len(server.gate.cell) < 300, "the answers have an allowance"
    server.gate.members = frozenset("ab")
    assert not server.part()
    assert not server(CellChannel.SERVER_MAIN, OF_THE_ENGINE[1])
    site, answer = Door("site"), server.gate.cell[0]
    assert site("", "", kind=answer.get_header(MessageHeaderKey.MSG_TYPE), **answer.headers) == NO_MEMBER
    assert site.refused == [("server", NO_MEMBER)]
    assert site("", "", over="b", **answer.headers) == "only the coordinator sends messages to a site"


@pytest.mark.parametrize("role", ["server", "site"])
def test_nothing_but_bytes_is_decoded_on_our_channel(role):
    door = Door(role)
    assert not door.part()
    assert door.part(**{MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}) == "it is not bytes"
    assert door.part(**{StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}) == "it is not bytes"
    assert door(STREAM_CHANNEL, STREAM_ACK_TOPIC, **{MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS})
    assert door("cellnet.channel", "bye", **{MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS})
    assert door.part(**{MessageHeaderKey.ENCRYPTED: True}) == "it is encrypted apart"


@pytest.mark.parametrize("role", ["server", "site"])
def test_a_message_has_no_more_parts_and_bytes_than_its_size_says(role):
    server = Door(role)
    assert not server.part(1, 2 * MIB, 0, bytes(MIB))
    assert not server.part(1, 2 * MIB, 2, b"")
    assert not server.part(1, 2 * MIB, 3, b"")
    for against in (
        server.part(1, 2 * MIB, 4, b""), server.part(2, 0, 0, b"x"), server.part(3, 10, 0, bytes(11)),
        server.part(4, 4 * MIB, 1, bytes(MIB + 1)), server.part(5, 10, -1), server.part(6, 10, None),
        server.part(7, "10"), server.part(8, True), server.part(None), server.part("x" * 65), server.part(b"1"),
    ):  # fmt: skip
        assert against


def test_a_coordinator_has_two_of_the_largest_questions_on_their_way_to_a_site():
    site = Door("site")
    assert [site.part(number, 4 * MIB, 0, b"") for number in range(3)] == ["", "", "too much is on its way"]
    assert site.part(4, SMALL, 0, b"", topic="tell") == "it is too large"
    assert [site.part(number, 0, 0, b"") for number in range(10, 100)][-1] == "too many are on their way"


def test_only_an_answer_is_large_and_one_above_the_limit_is_answered_without_its_bytes():
    server = Door("server")
    assert not server.part(1, 4 * MIB, 0, bytes(MIB))
    for number, topic in enumerate(("hello", "progress", "message")):
        assert server.part(10 + number, SMALL, 0, b"", topic=topic) == "it is too large"
    assert not server.part(2, 10**12, 0, bytes(MIB))
    assert not server.message.payload
    assert server.part(2, 10**12, 1, bytes(MIB)) == "it is too large"


def test_messages_that_never_end_take_the_place_of_few_and_go_in_half_a_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("shepherd.federation.transports.gate.time.monotonic", lambda: now[0])
    server = Door("server")
    tasks = {("a", number): RxTask(number, "a", None) for number in range(OPEN)}
    monkeypatch.setattr(RxTask, "rx_task_map", dict(tasks))
    final = {StreamHeaderKey.DATA_TYPE: 2}
    assert not any(server.part(number, 10, 1, **final) for number in range(OPEN))  # each says that it is over
    now[0] += 5
    assert server.part(OPEN, 10, 1) == "too many are on their way"
    now[0] += STALE
    server.gate.drop_stale(now[0])
    assert not RxTask.rx_task_map
    assert all(task.failed for task in tasks.values())
    assert not server.part(OPEN, 10, 0)
    now[0] += 5
    assert not server.part(OPEN + 1, 10, 0)  # that one is not held: it has come


def test_a_reply_counts_for_many_since_the_engine_keeps_something_of_it():
    server = Door("server")
    reply = {"channel": CellChannel.RETURN_ONLY, "topic": "shepherd:ask", StreamHeaderKey.RELIABLE: True,
             StreamHeaderKey.RETRY_TIMEOUT: 3600.0}  # fmt: skip
    assert sum(not server.part(number, **reply) for number in range(100)) < PER_SECOND
    assert StreamHeaderKey.RETRY_TIMEOUT not in server.message.headers
    assert Door("server").part(**{StreamHeaderKey.RELIABLE: True}) == "it is to be kept"


class Connection:
    """A connection with a certificate."""

    def __init__(self, name: str) -> None:
        self.name, self.cancelled = name, False

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": [self.name.encode()]} if self.name else {}

    def cancel(self) -> None:
        self.cancelled = True


def test_connections_of_one_certificate_take_the_place_of_its_oldest_ones_only():
    gate = Door("server").gate
    ours = [Connection("a") for _ in range(MOST_CONNECTIONS + 2)]
    served = [gate.connected(each, lambda: iter([b"x", b"y"])) for each in [Connection("b"), *ours]]
    assert [next(each) for each in served] == [b"x"] * len(served)
    assert [each.cancelled for each in ours] == [True, True, *[False] * MOST_CONNECTIONS]
    for each in served:
        assert list(each) == [b"y"]
    assert not any(gate._connections.values())


@pytest.mark.parametrize("limit", ["x" * 2**17, 1 << 20_000, -1, True, 0.5, {"a": b"b"}, b"1", None], ids=range(8))
def test_a_limit_of_a_hostile_coordinator_that_is_none_does_not_end_the_engine_of_a_site(limit, monkeypatch):
    heads = []
    monkeypatch.setattr(nvflare.Link, "bridge", SimpleNamespace(post=lambda head, data: heads.append(head)), False)
    head = {MessageHeaderKey.ORIGIN: "server", MessageHeaderKey.TOPIC: "ask", "key": "k" * 2**17, "limit": limit}
    nvflare.SitePart()._received(Message(head, b"question"))
    assert heads[0]["limit"] is None
    assert len(json.dumps(heads[0])) < MOST_HEAD_BYTES
    nvflare.SitePart()._received(Message({**head, "limit": 7}, b"question"))
    assert heads[1]["limit"] == 7
