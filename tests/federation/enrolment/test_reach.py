"""Why a site reaches nobody, in a sentence for each cause; and invitations that cannot be used."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from federation_kits import Authority, free_port
from shepherd.errors import NetworkError, UsageError
from shepherd.federation.enrolment import (
    FederationFolder,
    Invitation,
    approve,
    complete,
    enrol,
    https,
    invite,
    listener,
    membership,
    new_federation,
    read_invitation,
    request,
)
from shepherd.federation.enrolment import members as lists
from shepherd.federation.enrolment.authority import fingerprint
from shepherd.federation.enrolment.invitation import write_invitation
from shepherd.federation.enrolment.reach import Unreachable, explain, post
from shepherd.federation.enrolment.requests import Answer, read, to_bytes

Invited = Callable[..., Invitation]


def why(invitation: Invitation) -> str:
    with pytest.raises(Unreachable) as found:
        post(invitation, "/enrol", b"{}")
    assert found.value.hint
    return found.value.sentence


def changed(invitation: Invitation, **fields: object) -> Invitation:
    return Invitation.model_validate({**dict(invitation), **fields}, by_name=True)


def test_a_name_that_does_not_resolve_and_a_port_without_listener(invited: Invited) -> None:
    invitation = invited("hospital-a")
    assert why(changed(invitation, host="no-such-host.invalid")) == (
        "the name no-such-host.invalid does not resolve on this machine"
    )
    assert why(invitation).startswith("nothing listens at localhost:")


def test_a_machine_that_does_not_answer(invited: Invited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shepherd.federation.enrolment.reach.PATIENCE", 0.2)
    invitation = invited("hospital-a")
    with socket.create_server(("127.0.0.1", invitation.enrolment_port)):
        assert "does not answer within" in why(invitation)


def test_a_busy_coordinator_is_not_taken_for_a_firewall(invited: Invited, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*given: object, **more: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(http.client.HTTPSConnection, "connect", lambda self: None)
    monkeypatch.setattr(http.client.HTTPSConnection, "request", busy)
    with pytest.raises(Unreachable, match="has the request, and no answer came within 10 s") as raised:
        post(invited("hospital-a").address, "/enrol", b"{}")
    assert "several sites join at once" in raised.value.hint


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_a_port_that_speaks_something_else(invited: Invited, first: bytes) -> None:
    invitation = invited("hospital-a")
    with socket.create_server(("127.0.0.1", invitation.enrolment_port)) as server:

        def serve() -> None:
            end, _ = server.accept()
            with end:
                end.recv(4096)
                end.sendall(first)

        thread = threading.Thread(target=serve)
        thread.start()
        sentence = why(invitation)
        thread.join()
    assert ("speaks something else" in sentence) if first else ("closes the connection" in sentence)


def served_with(invitation: Invitation, startup: Path) -> str:
    """Why a site leaves a server with the certificate in `startup`."""
    server = https.Server("localhost", invitation.enrolment_port, startup, lambda *_: (200, b""))
    try:
        return why(invitation)
    finally:
        server.stop()


def test_a_certificate_that_has_expired(invited: Invited, tmp_path: Path) -> None:
    Authority("lab").put(tmp_path, "server", server=True, days=-1)
    pem = (tmp_path / "startup" / "rootCA.pem").read_text()
    invitation = changed(invited("hospital-a"), authority=pem, fingerprint=fingerprint(pem.encode()))
    assert "has expired: this machine's clock says" in served_with(invitation, tmp_path / "startup")


def test_a_member_cannot_play_the_server(federation: FederationFolder, invited: Invited, tmp_path: Path) -> None:
    site = tmp_path / "site"
    complete(site, approve(federation, request(invited("hospital-b"), site, tmp_path)))
    startup = site / "kit" / "startup"
    for end in ("key", "crt"):
        (startup / f"client.{end}").rename(startup / f"server.{end}")
    assert "is for another host" in served_with(invited("hospital-a"), startup)


def test_other_failures_are_sentences_too(invited: Invited) -> None:
    invitation = invited("hospital-a")
    early = ssl.SSLCertVerificationError("")
    early.verify_code = 9
    assert "is not valid yet: this machine's clock" in explain(early, invitation)[0]
    assert "cannot be reached: No route to host" in explain(OSError(113, "No route to host"), invitation)[0]
    assert "speaks something else" in explain(http.client.BadStatusLine("x"), invitation)[0]
    assert "closes the connection" in explain(ConnectionResetError(), invitation)[0]


def test_a_clock_that_differs_is_said(
    federation: FederationFolder, invited: Invited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation, lines = invited("hospital-a"), list[str]()
    earlier = format_datetime(lists.now() - timedelta(minutes=7), usegmt=True)
    monkeypatch.setattr(https._Handler, "date_time_string", lambda _: earlier)
    with listener(federation, lambda _: None):
        enrol(invitation, tmp_path / "site", 20, lines.append)
    assert len(lines) == 1 and " s ahead of the coordinator's" in lines[0]


def test_a_coordinator_that_comes_later_is_waited_for(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    invitation, lines, first = invited("hospital-a"), list[str](), threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        first.set()

    thread = threading.Thread(target=lambda: enrol(invitation, tmp_path / "site", None, say))
    thread.start()
    assert first.wait(20)
    with listener(federation, lambda _: None):
        thread.join(30)
    assert lines == [lines[0]] and lines[0].endswith("Trying until it does.")
    assert membership(tmp_path / "site") is not None


def test_a_refusal_ends_the_wait_with_the_sites_sentence(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    old, lines = invited("hospital-a"), list[str]()
    invited("hospital-a")
    with (
        listener(federation, lines.append),
        pytest.raises(UsageError, match="lab refuses hospital-a: no open invitation of this site has this code"),
    ):
        enrol(old, tmp_path / "site", None, lines.append)
    assert "Enrolment: a request without the code of an open invitation for hospital-a, from 127.0.0.1." in lines


def test_invitations_that_cannot_be_used(
    federation: FederationFolder, invited: Invited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = invited("hospital-a")
    path = tmp_path / "hospital-a.invite"
    assert read_invitation(path) == invitation
    text = path.read_text()
    for wrong, reason in [
        (text.replace("code =", "cod ="), "its keys and values are others|code: Field required"),
        (text.replace('site = "hospital-a"', 'site = "../a"'), "site: String should match"),
        (text.replace(invitation.fingerprint, "0" * 64), "not the one of its fingerprint"),
        (text.replace("BEGIN CERT", "BEGIN CART"), "not the one of its fingerprint"),
        ("{}", "no TOML"), ("\xff" * 10, "no TOML"), ("# " + "x" * 20_000, "longer than"),
    ]:  # fmt: skip
        path.write_text(wrong, encoding="latin-1")
        with pytest.raises(UsageError, match=reason) as found:
            read_invitation(path)
        assert invitation.code not in str(found.value)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_invitation(tmp_path / "other.invite")
    late = lists.now() + timedelta(days=8)
    monkeypatch.setattr("shepherd.federation.enrolment.place.now", lambda: late)
    with pytest.raises(UsageError, match=r"the invitation expired at .* this machine's clock says"):
        enrol(invitation, tmp_path / "site", 0, print)
    assert write_invitation(invitation) == text.encode()


def test_a_folder_of_another_federation_or_site_is_left_as_it_is(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    complete(site, approve(federation, request(invited("hospital-a"), site, tmp_path)))
    other = new_federation(tmp_path / "other" / "lab", host="localhost", port=7100, enrolment_port=free_port())
    path = tmp_path / "other.invite"
    path.write_bytes(invite(other, "hospital-a"))
    before = (site / "kit" / "startup" / "client.key").read_bytes()
    with pytest.raises(UsageError, match="is the folder of hospital-a in another federation, lab"):
        enrol(read_invitation(path), site, 0, print)
    with pytest.raises(UsageError, match="and the invitation is for hospital-b"):
        enrol(invited("hospital-b"), site, 0, print)
    assert (site / "kit" / "startup" / "client.key").read_bytes() == before
    assert membership(site).address.fingerprint == federation.fingerprint


def test_an_answer_for_another_site_or_key_is_not_used(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with pytest.raises(UsageError, match="has no request that"):
        complete(site, Path(__file__))
    first = request(invited("hospital-a"), tmp_path / "first", tmp_path)
    signed = approve(federation, first)
    request(read_invitation(tmp_path / "hospital-a.invite"), site, tmp_path)
    with pytest.raises(UsageError, match="for another key than this site's"):
        complete(site, signed)
    foreign = Authority("lab").issue("hospital-a").public_bytes(serialization.Encoding.PEM).decode()
    answer = read(Answer, signed.read_bytes()).model_copy(update={"certificate": foreign})
    (tmp_path / "foreign.signed").write_bytes(to_bytes(answer))
    with pytest.raises(UsageError, match="not from the invitation's authority"):
        complete(site, tmp_path / "foreign.signed")
    request(invited("hospital-b"), site, tmp_path)
    with pytest.raises(UsageError, match="for another name than hospital-b"):
        complete(site, signed)
    with pytest.raises(UsageError, match="not the answer to a request"):
        complete(site, first)
    assert membership(site) is None
    with pytest.raises(NetworkError):
        enrol(read_invitation(tmp_path / "hospital-b.invite"), site, 0, print)
