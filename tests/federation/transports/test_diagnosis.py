"""Why a site has no connection, named at the site: certificates, clocks, hosts, ports and silence."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from federation_kits import Authority, Kits, free_port
from shepherd.federation.transports import diagnosis
from shepherd.federation.transports.diagnosis import diagnose, fault_of_certificate
from shepherd.federation.transports.kits import write_site_kit


@contextmanager
def listener(kits: Kits, authority: Authority | None = None, **certificate: object) -> Iterator[None]:
    """Something that listens as a coordinator does. authority: whose certificates it accepts."""
    server = kits.folder / "listener"
    kits.authority.put(server, "server", server=True, **certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version, context.verify_mode = ssl.TLSVersion.TLSv1_3, ssl.CERT_REQUIRED
    context.load_cert_chain(server / "startup" / "server.crt", server / "startup" / "server.key")
    other = kits.folder / "accepted"
    (authority or kits.authority).put(other, "x")
    context.load_verify_locations(other / "startup" / "rootCA.pem")
    listening = socket.create_server(("127.0.0.1", kits.port))

    def serve() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listening.accept()
                with suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as connection:
                    connection.sendall(b"settings")
                    connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture
def kits(tmp_path):
    return Kits(tmp_path)


def test_nothing_is_in_the_way_of_a_member(kits):
    with listener(kits):
        assert diagnose(kits.site("a")) is None


def test_nobody_listens(kits):
    fault = diagnose(kits.site("a"))
    assert fault.code == "unreachable"
    assert f"nobody listens at localhost:{kits.port}" in fault.why


def test_a_host_without_an_address(kits):
    kit = kits.site("a")
    write_site_kit(kit, federation="lab", site="a", host="nowhere.invalid", port=kits.port)
    assert diagnose(kit).code == "host"


def test_a_listener_that_stays_silent(kits, monkeypatch):
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", kits.port)):
        assert "no answer from" in diagnose(kits.site("a")).why


def test_a_listener_other_than_a_coordinator(kits):
    def answer() -> None:
        with plain.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", kits.port)) as plain:
        threading.Thread(target=answer, daemon=True).start()
        assert "not a coordinator" in diagnose(kits.site("a")).why


def test_a_site_whose_certificate_has_expired_or_is_of_another_federation(kits):
    assert "expired on" in diagnose(kits.site("a", days=-1)).why
    kit = kits.site("b")
    Authority("another").put(kit, "b")
    kits.authority.put(kits.folder / "right", "b")
    (kit / "startup" / "rootCA.pem").write_bytes((kits.folder / "right" / "startup" / "rootCA.pem").read_bytes())
    assert diagnose(kit).code == "foreign"


def test_a_clock_that_is_behind(kits):
    startup = kits.site("a") / "startup"
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    fault = fault_of_certificate(startup / "client.crt", startup / "rootCA.pem", "a", past)
    assert "this machine's clock is behind" in fault.why


def test_a_coordinator_whose_certificate_has_expired(kits):
    with listener(kits, days=-1):
        assert "the coordinator's certificate has expired" in diagnose(kits.site("a")).why


def test_a_coordinator_of_another_federation(kits):
    with listener(kits):
        assert "a certificate of another federation" in diagnose(kits.site("a", Authority("another"))).why


def test_a_coordinator_at_another_address_than_its_certificate_says(kits):
    kit = kits.site("a")
    write_site_kit(kit, federation="lab", site="a", host="127.0.0.2", port=kits.port)
    listening = Kits(kits.folder, kits.port, kits.authority)
    with listener(listening), pytest.MonkeyPatch.context() as patch:
        connect = socket.create_connection
        patch.setattr(socket, "create_connection", lambda place, patience: connect(("127.0.0.1", place[1]), patience))
        assert "is not for 127.0.0.2" in diagnose(kit).why


def test_a_coordinator_that_does_not_accept_the_certificate(kits):
    with listener(kits, Authority("another")):
        assert "does not accept this site's certificate" in diagnose(kits.site("a")).why


def test_a_key_that_a_renewal_is_replacing_is_waited_for_and_one_that_stays_damages_the_kit(kits, monkeypatch):
    kit = kits.site("a")
    key = kit / "startup" / "client.key"
    whole, other = key.read_bytes(), (kits.site("b") / "startup" / "client.key").read_bytes()
    key.write_bytes(other)
    threading.Timer(0.1, key.write_bytes, [whole]).start()
    assert "nobody listens" in diagnose(kit).why
    key.write_bytes(other)
    monkeypatch.setattr(diagnosis, "SETTLING", 0.0)
    with pytest.raises(ssl.SSLError, match="MISMATCH"):
        diagnose(kit)


def test_free_ports_differ():
    assert free_port() != 0
