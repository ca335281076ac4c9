"""The listener against strangers: it goes on answering sites, keeps little, and repeats no word of theirs."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation_kits import Authority
from shepherd.errors import NetworkError
from shepherd.federation.enrolment import FederationFolder, Invitation, enrol, https, listener
from shepherd.federation.enrolment.listener import Door
from shepherd.federation.enrolment.reach import Unreachable, post

Invited = Callable[..., Invitation]


@pytest.fixture
def door(
    federation: FederationFolder, invited: Invited, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Door]:
    monkeypatch.setattr(https, "SECONDS", 0.5)
    invited("hospital-a")
    with listener(federation, lines.append) as opened:
        yield opened


@pytest.fixture
def lines() -> list[str]:
    return []


def trusting() -> ssl.SSLContext:
    """What a stranger uses: nothing is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def connected(federation: FederationFolder, context: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", federation.settings.enrolment_port), timeout=10) as plain:
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain) as secure:
                yield secure


def answer_to(federation: FederationFolder, data: bytes, context: ssl.SSLContext | None) -> bytes:
    """All that comes back; nothing where the connection is cut."""
    answer = b""
    with contextlib.suppress(OSError), connected(federation, context) as end:
        with contextlib.suppress(OSError):
            end.sendall(data)
        while part := end.recv(65536):
            answer += part
    return answer


def post_of(body: bytes, path: str = "/enrol", head: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


HOSTILE = {
    "nothing": (b"", b""),
    "a line": (b"GET\r\n\r\n", b""),
    "another method": (b"DELETE /enrol HTTP/1.1\r\n\r\n", b"400"),
    "a look": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "another path": (post_of(b"", "/etc/passwd"), b"404"),
    "no length": (b"POST /enrol HTTP/1.1\r\n\r\nabc", b"411"),
    "a negative length": (b"POST /enrol HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
    "a length in other digits": ("POST /enrol HTTP/1.1\r\nContent-Length: ١٢\r\n\r\n".encode(), b"411"),
    "chunks": (b"POST /enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", b"411"),
    "a large length": (b"POST /enrol HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"411"),
    "a body of 17 kB": (post_of(bytes(17 * 1024)), b"413"),
    "a body that is none": (post_of(b"{}"), b"403"),
    "deep JSON": (post_of(b"[" * 15000), b"403"),
    "a long line": (b"POST /" + b"a" * 100_000, b""),
    "long headers": (b"POST /enrol HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b""),
    "a confirmation of nothing": (post_of(b"{}", "/confirm"), b"403"),
    "two requests": (post_of(b"{}") * 2, b"403"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_each_hostile_request_has_a_short_refusal_or_none(
    federation: FederationFolder, door: Door, lines: list[str], what: str
) -> None:
    data, status = HOSTILE[what]
    answer = answer_to(federation, data, trusting())
    assert len(answer) < 400 and answer.count(b"HTTP/1.0") <= 1
    if status:
        assert answer.split()[:2] == [b"HTTP/1.0", status]
    assert b"Python" not in answer and b"passwd" not in answer
    assert post_refused(federation)
    assert not [line for line in lines if "passwd" in line or "fault" in line]


def post_refused(federation: FederationFolder) -> bool:
    """Whether the listener still judges a request."""
    return answer_to(federation, post_of(b"{}"), trusting()).endswith(b'{"refused": "format"}')


def test_random_bytes_before_and_within_tls_leave_no_trace(
    federation: FederationFolder, door: Door, lines: list[str]
) -> None:
    draw = random.Random(0)
    for number in range(50):
        data = draw.randbytes(draw.randrange(1, 3000))
        head = draw.choice([b"", b"POST /enrol HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01", post_of(b"x")[:-1]])
        answer = answer_to(federation, head + data, trusting() if number % 2 else None)
        assert len(answer) < 400
    assert post_refused(federation)
    assert not [line for line in lines if "fault" in line]
    assert federation.members["hospital-a"].invitation.tries == 0


def test_slow_clients_are_cut_off_and_hold_up_nobody(federation: FederationFolder, door: Door) -> None:
    with contextlib.ExitStack() as held:
        ends = [held.enter_context(connected(federation)) for _ in range(https.MOST_OF_ONE - 1)]
        ends[0].sendall(b"\x16\x03\x01")
        assert post_refused(federation), "one connection is free"
        begin = time.monotonic()
        dripping = held.enter_context(connected(federation, trusting()))
        with contextlib.suppress(OSError):  # how a cut shows depends on the moment
            while time.monotonic() - begin < 30:
                dripping.sendall(b"P")
                time.sleep(0.1)
        assert time.monotonic() - begin < 10
        for end in ends:
            assert end.recv(10) == b"", "cut off"
    assert post_refused(federation)


def test_more_connections_than_one_address_may_have_are_closed_at_once(
    federation: FederationFolder, door: Door
) -> None:
    with contextlib.ExitStack() as held:
        ends = [held.enter_context(connected(federation)) for _ in range(https.MOST_OF_ONE + 5)]
        time.sleep(0.3)
        closed = 0
        for end in ends:
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                closed += end.recv(10) == b""
        assert closed == 5
        assert len([each for each in threading.enumerate() if "_serve" in each.name]) <= https.MOST_OF_ONE


def test_a_thousand_refusals_have_thirty_lines_and_little_memory(
    federation: FederationFolder, door: Door, lines: list[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        status, _ = door._answer("/enrol", b"{" + bytes(16000), "192.0.2.1")
        assert status == 403
    assert len([line for line in lines if "no readable request" in line]) == 30
    assert (federation.path / "enrolment.jsonl").read_text().count("refused") == 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


def test_no_more_than_the_limit_is_read_of_a_connection() -> None:
    class Endless:
        def recv_into(self, buffer: memoryview) -> int:
            buffer[:] = b"a" * len(buffer)
            return len(buffer)

    limited = io.BufferedReader(https._Limited(Endless(), 1000))  # type: ignore[arg-type]
    assert limited.readline() == b"a" * 1000 and limited.read() == b""


def test_tls_before_1_3_is_refused(federation: FederationFolder, door: Door) -> None:
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), connected(federation, context):
        pass


def test_the_port_is_open_only_while_an_invitation_is(
    federation: FederationFolder, invited: Invited, lines: list[str]
) -> None:
    with listener(federation, lines.append) as door:
        assert not door.open and lines == []
        with pytest.raises(ConnectionRefusedError), connected(federation):
            pass
        invited("hospital-a")
        while not door.open:
            time.sleep(0.05)
        assert post_refused(federation)
    with pytest.raises(ConnectionRefusedError), connected(federation):
        pass


def test_a_taken_port_is_a_sentence(federation: FederationFolder, invited: Invited) -> None:
    invited("hospital-a")
    with (
        socket.create_server(("127.0.0.1", federation.settings.enrolment_port)),
        pytest.raises(NetworkError, match="is in use by another process"),
        listener(federation, print),
    ):
        pass


def test_a_fault_of_ours_ends_neither_the_listener_nor_the_run(
    federation: FederationFolder, door: Door, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> bytes:
        raise KeyError("SECRET")

    monkeypatch.setattr("shepherd.federation.enrolment.desk.grant", fault)
    assert answer_to(federation, post_of(b"{}"), trusting()).endswith(b'{"refused": "busy"}')
    assert [line for line in lines if "KeyError" in line] and not [line for line in lines if "SECRET" in line]


def test_a_site_sends_nothing_to_a_machine_with_another_certificate(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    invitation = invited("hospital-a")
    Authority("lab").put(tmp_path / "foreign", "server", server=True)
    received: list[tuple[str, bytes, str]] = []

    def answer(*request: object) -> tuple[int, bytes]:
        received.append(request)  # type: ignore[arg-type]
        return 200, b""

    server = https.Server("localhost", invitation.enrolment_port, tmp_path / "foreign" / "startup", answer)
    try:
        with pytest.raises(NetworkError, match="another certificate than the invitation's"):
            enrol(invitation, tmp_path / "site", 0, print)
        answer_to(federation, post_of(b"x"), trusting())
    finally:
        server.stop()
    assert [body for _, body, _ in received] == [b"x"], "the server works, and had nothing of the site"


def test_a_site_takes_no_answer_but_codes_that_it_knows(federation: FederationFolder, invited: Invited) -> None:
    invitation = invited("hospital-a")
    replies = iter([(403, b'{"refused": "run rm"}'), (403, b'{"refused": {}}'), (500, b"x"), (200, bytes(20000))])
    server = https.Server("localhost", invitation.enrolment_port, federation.kit / "startup", lambda *_: next(replies))
    try:
        for _ in range(4):
            with pytest.raises(Unreachable, match="not as an enrolment does"):
                post(invitation, "/enrol", b"{}")
    finally:
        server.stop()
