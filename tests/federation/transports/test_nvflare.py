"""What Shepherd relies on in NVFlare 2.9, and what it adds, over a federation of processes with real certificates."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from federation_kits import Authority, Kits
from network_sites import EchoSite, Events, RawMember, ServedSite, Way, until
from shepherd.federation.transport import Reply, Transport
from shepherd.federation.transports import serving
from shepherd.federation.transports.serving import serve_federation

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")
LIMIT = 4 * 2**20


@dataclass
class Federation:
    """A federation that runs: a coordinator, sites `a` and `b`, and `c`, whose kit a hostile process has."""

    kits: Kits
    transport: Transport
    events: Events
    names: set[str]
    sites: dict[str, ServedSite] = field(default_factory=dict)

    def ask(self, *names: str, data: bytes = b"?", deadline: float = 30.0) -> dict[str, bytes | None]:
        """The answers to one question for each site."""
        return {reply.client: reply.data for reply in self.replies(dict.fromkeys(names, data), deadline)}

    def replies(self, messages: dict[str, bytes], deadline: float = 30.0) -> Iterator[Reply]:
        answered: set[str] = set()
        observe = lambda client, data: self.events("progress", site=client, data=data)  # noqa: E731
        for reply in self.transport.ask(messages, deadline, lambda: answered >= messages.keys(), LIMIT, observe):
            answered.add(reply.client)
            yield reply

    def engine(self, role: str, kit: str) -> psutil.Process:
        """The engine's process of a kit."""
        folder = str(self.kits.folder / kit)
        return next(
            child for child in psutil.Process().children(recursive=True)
            if child.is_running() and role in child.cmdline() and folder in child.cmdline()
        )  # fmt: skip

    def await_sites(self, *names: str) -> None:
        until(lambda: self.transport.present().keys() >= set(names))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    kits, events = Kits(tmp_path_factory.mktemp("federation")), Events()
    names = set("abcde")
    with serve_federation(kits.server(), limit=LIMIT, members=lambda: names, on_event=events) as transport:
        one = Federation(kits, transport, events, names)
        one.sites = {name: ServedSite(kits.site(name)) for name in "ab"}
        kits.site("c")
        one.await_sites("a", "b")
        yield one
        for site in one.sites.values():
            site.end()


@contextmanager
def member(federation: Federation, name: str = "c", **registration: str) -> Iterator[RawMember]:
    """A hostile process with the certificate of a member."""
    raw = RawMember(federation.kits.folder / name, federation.kits.port)
    try:
        assert raw("register", **registration) == {"code": "ok"}
        yield raw
    finally:
        raw.end()


def handshake(
    federation: Federation, kit: str = "", *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, port: int = 0
) -> str:
    """The version of TLS that is agreed on with the certificate of a kit; empty where the connection is refused."""
    startup = federation.kits.folder / "a" / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if kit:
        startup = federation.kits.folder / kit / "startup"
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    with (
        suppress(OSError),
        socket.create_connection(("localhost", port or federation.kits.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return str(connection.version()) if connection.recv(1) else ""
    return ""


def test_questions_and_answers_arrive_whole_under_the_names_of_the_certificates(federation):
    data = os.urandom(3 * 2**20)
    assert federation.ask("a", "b", data=data) == {"a": b"re:" + data, "b": b"re:" + data}
    assert {"site": "a", "data": b"at work"} in federation.events.of("progress")


def test_a_message_without_an_answer_arrives_and_one_of_a_site_comes_with_the_next_question(federation):
    federation.transport.tell("a", b"bye")
    until(lambda: b"bye" in federation.sites["a"].site.seen)


def test_only_tls_1_3_with_a_certificate_of_the_federation_is_accepted(federation):
    federation.kits.site("foreign", Authority("another"))
    federation.kits.site("old", days=-1)
    assert handshake(federation, "a") == "TLSv1.3"
    for kit, version in (("a", ssl.TLSVersion.TLSv1_2), ("", None), ("foreign", None), ("old", None)):
        assert not handshake(federation, kit, version=version or ssl.TLSVersion.TLSv1_3), kit
    reasons = ("does not speak TLS 1.3", "has no certificate", "of another authority", "has expired")
    until(lambda: all(reason in federation.events.reasons() for reason in reasons))


def test_a_certificate_is_good_for_its_own_name_only(federation):
    swapped = RawMember(federation.kits.folder / "c", federation.kits.port, "b")
    try:
        assert swapped("register")["code"] == "refused"
    finally:
        swapped.end()
    until(lambda: "with the certificate of 'c' wanted the name 'b'" in federation.events.reasons())
    assert set(federation.ask("b")) == {"b"}


def test_a_member_cannot_take_the_name_or_the_token_of_another_or_reach_a_site(federation):
    before = list(federation.sites["b"].site.seen)
    with member(federation, session="one") as raw:
        assert '"code": "ok"' in raw(headers={"session": "one"})["payload"]
        for forged in ({"origin": "b"}, {"name": "b"}, {"token": "x"}, {"signature": "x"}):
            assert raw(headers={"session": "one"}, forged=forged, timeout=0.3)["code"] == "timeout", forged
        for channel in ("aux_communication", "admin", "server_command", "server_parent_listener", "client_main"):
            assert raw(channel=channel, topic="submit_job", timeout=0.3)["code"] != "ok", channel
        assert raw(fobs=True, timeout=0.3)["code"] == "timeout"
        assert raw(target="b", topic="ask", headers={"key": "k"}, timeout=0.3)["code"] == "timeout"
    reasons = federation.events.reasons()
    for reason in ("the connection of another one", "invalid auth token signature", "is not in use", "is not bytes",
                   "for another site"):  # fmt: skip
        assert reason in reasons
    assert federation.sites["b"].site.seen == before


def test_a_message_above_the_limit_is_refused_before_it_is_held_and_disturbs_nobody(federation):
    engine = federation.engine("server", "server")
    before = engine.memory_info().rss
    peak = [before]
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.02):
            peak[0] = max(peak[0], engine.memory_info().rss)

    threading.Thread(target=watch, daemon=True).start()
    with member(federation, session="one") as raw:
        answer = raw(topic="answer", size=500_000_000, timeout=20.0)
        assert "exceeds configured limit" in answer["why"]
        raw(topic="answer", size=100_000_000, core=True, timeout=2.0)  # past the streaming: a frame of 100 MB
        assert set(federation.ask("a", "b")) == {"a", "b"}
    watching.set()
    assert peak[0] - before < 100e6
    assert math.isfinite(peak[0])


def test_an_answer_that_is_too_large_costs_one_site_its_answer(federation):
    site = federation.sites["a"].site
    honest = site.handle
    site.handle = lambda data, report: bytes(50_000_000)
    try:
        begin = time.monotonic()
        answers = federation.ask("a", "b")
    finally:
        site.handle = honest
    assert len(answers["a"]) == LIMIT + 1  # what the reader of messages refuses as too large
    assert answers["b"] == b"re:?"
    assert time.monotonic() - begin < 20


def test_a_flood_of_messages_is_cut_off(federation):
    with member(federation, session="one") as raw:
        codes = [raw(headers={"session": "one"}, timeout=0.2)["code"] for _ in range(2)]
        answer = raw("flood", count=600)

        def cut_off() -> bool:  # one line for many refusals, of which the first may be for messages on their way
            return "there are too many" in federation.events.reasons() or not raw("flood", count=600)

        until(cut_off)
    assert codes == ["ok", "ok"]
    assert answer["code"] == "ok"
    assert set(federation.ask("a")) == {"a"}


def test_a_second_process_with_one_identity_is_refused_and_learns_it(federation):
    copy = federation.kits.folder / "copy"
    shutil.copytree(federation.kits.folder / "a", copy)
    session = federation.transport.present()["a"].session
    assert not [file for file in copy.rglob("*") if file.is_file() and session.encode() in file.read_bytes()]
    second = ServedSite(copy)
    until(lambda: "another process uses this identity" in second.events.reasons())
    second.end()
    same = ServedSite(federation.kits.folder / "a")
    until(lambda: same.error)
    assert "is in use by process" in str(same.error)
    assert federation.transport.present()["a"].session == session
    assert federation.ask("a") == {"a": b"re:?"}
    assert {"site": "a", "code": "lease"}.items() <= federation.events.of("refused")[-1].items()


def test_the_engine_of_a_site_or_of_the_coordinator_is_killed_in_mid_question_and_nothing_is_lost(federation):
    release = threading.Event()
    for site in federation.sites.values():
        site.site.work = lambda data: release.wait(30)
        site.site.seen.clear()
    answers = {}
    asking = threading.Thread(target=lambda: answers.update(federation.ask("a", "b", data=b"!", deadline=60)))
    asking.start()
    until(lambda: all(site.site.seen for site in federation.sites.values()))
    federation.engine("site", "a").send_signal(signal.SIGKILL)
    until(lambda: federation.sites["a"].events.all[-1][0] in ("lost", "connected"))
    federation.engine("server", "server").send_signal(signal.SIGKILL)
    until(lambda: federation.events.of("restarting"))
    release.set()
    asking.join(60)
    for site in federation.sites.values():
        site.site.work = lambda data: None
    assert answers == {"a": b"re:!", "b": b"re:!"}
    assert [site.site.seen for site in federation.sites.values()] == [[b"!"], [b"!"]]  # no work was done twice


def test_torch_is_not_in_the_engines_processes_and_a_site_does_not_listen(federation):
    """NVFlare's parents listen on loopback without TLS, and take commands there from a sender named as the server."""
    ports = {}
    for role, kit in (("server", "server"), ("site", "a")):
        engine = federation.engine(role, kit)
        maps = Path(f"/proc/{engine.pid}/maps").read_text()
        assert "grpc" in maps
        assert "torch" not in maps
        ports[role] = [c.laddr for c in engine.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert ports["site"] == []
    assert {address.ip.removeprefix("::ffff:") for address in ports["server"]} == {"127.0.0.1"}
    for address in ports["server"]:
        assert handshake(federation, "a", port=address.port) == "TLSv1.3"
        assert not handshake(federation, port=address.port)


def test_a_cut_without_a_word_is_noticed_and_the_answer_arrives_over_a_new_connection(federation, monkeypatch):
    monkeypatch.setattr(serving, "SILENCE", 3.0)
    way = Way(federation.kits.port)
    kit = Kits(federation.kits.folder, way.port, federation.kits.authority).site("d")
    release = threading.Event()
    site = ServedSite(kit, EchoSite(lambda data: release.wait(30)))
    try:
        federation.await_sites("d")
        answers = {}
        asking = threading.Thread(target=lambda: answers.update(federation.ask("d", deadline=60)))
        asking.start()
        until(lambda: site.site.seen)
        way.mode = "silent"
        until(lambda: site.events.of("lost"))
        release.set()
        time.sleep(0.5)
        way.mode = "open"  # the old connection stays cut
        asking.join(60)
        assert answers == {"d": b"re:?"}
        assert site.events.of("restarting") == [{"why": "nobody answers"}]
        way.left = 700_000  # a cut in mid-message
        assert federation.ask("d", data=bytes(2**20), deadline=60) == {"d": b"re:" + bytes(2**20)}
    finally:
        site.end()
        way.end()
    until(lambda: "d" not in federation.transport.present(), 3.0)  # it has said goodbye


def test_a_name_that_is_not_in_the_list_of_members_is_refused_at_the_next_second(federation):
    """Also one that NVFlare takes for a boolean, as it takes every setting."""
    site = ServedSite(federation.kits.site("f"))
    until(lambda: site.error)
    assert "no longer, a member" in str(site.error)
    federation.names.discard("b")
    until(lambda: "b" not in federation.transport.present())
    until(lambda: federation.sites["b"].error)


def test_a_removed_site_is_refused_at_once_and_learns_why(federation):
    site = ServedSite(federation.kits.site("e"))
    federation.await_sites("e")
    federation.transport.expel("e")
    until(lambda: site.error)
    assert "no longer, a member" in str(site.error)
    assert "e" not in federation.transport.present()
    raw = RawMember(federation.kits.folder / "e", federation.kits.port)
    assert raw("register")["code"] == "refused"
    assert raw(core=True, fobs=True, timeout=0.3)["code"] != "ok"
    raw.end()
    until(lambda: "a message from 'e' was dropped: this site is not" in federation.events.reasons())
    assert '"e"' in (federation.kits.folder / "server" / "disabled_clients.json").read_text()
