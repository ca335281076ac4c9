"""What lines of the engine's log say of a refusal, and which events have a line in the audit log."""

from __future__ import annotations

import json

import pytest

from network_sites import Events
from shepherd.federation.transports import audit as audits
from shepherd.federation.transports.audit import Audit
from shepherd.federation.transports.refusals import refusal_in

HANDSHAKE = "I1130 1 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:1:SSL routines:x:"


@pytest.mark.parametrize("line, code, part", [
    (HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: certificate has expired", "certificate", "has expired"),
    (HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "certificate", "compare the clocks"),
    (HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: unable to get issuer", "certificate", "another authority"),
    (HANDSHAKE + "PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid context", "certificate", "has no certificate"),
    (HANDSHAKE + "NO_SHARED_CIPHER: Invalid context", "tls", "does not speak TLS 1.3"),
    (HANDSHAKE + "BAD_PACKET_LENGTH: Invalid certificate verification context", "certificate",
     "does not accept the coordinator's certificate"),
    (HANDSHAKE + "TLSV1_ALERT_UNKNOWN_CA", "certificate", "does not accept the coordinator's certificate"),
    ("ERROR x: Code: BAD_DATA Error: connection CN1 authenticated as 'b' but claimed endpoint 'c' requires", "name",
     "the certificate of 'b' wanted the name 'c'"),
    ("ERROR x: unauthenticated msg (channel='c' topic='t') received from b: bound to origin a", "message",
     "'b' was dropped: bound to origin a"),
    ("ERROR x: registration rejected: Client 'b' is disabled", "removed", "has been removed"),
    ("ERROR x: registration rejected: register_client unauthenticated", "lease", "another process"),
    ("ERROR x: registration rejected: Requested task does not match the current server task", "federation", "another"),
    ("ERROR x: registration rejected: Maximum number of clients reached", "registration", "does not accept"),
])  # fmt: skip
def test_a_line_about_a_refusal_has_a_code_and_a_sentence(line, code, part):
    refusal = refusal_in(line)
    assert refusal.code == code
    assert part in refusal.why


@pytest.mark.parametrize("line", ["", "INFO x: Server started", HANDSHAKE + "SOMETHING_ELSE", "INFO x: registered"])
def test_any_other_line_is_none(line):
    assert refusal_in(line) is None


def test_events_have_a_line_each_and_a_refusal_that_repeats_is_counted(tmp_path, monkeypatch):
    events = Events()
    audit = Audit(tmp_path, events)
    audit("connected", site="a")
    for _ in range(5):
        audit("refused", code="tls", why="x")
    audit("refused", code="tls", why="y")
    monkeypatch.setattr(audits, "AGAIN", 0.0)
    audit("refused", code="tls", why="x")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("why"), line.get("times")) for line in lines] == [
        ("connected", None, None), ("refused", "x", None), ("refused", "y", None), ("refused", "x", 4),
    ]  # fmt: skip
    assert [kind for kind, _ in events.all] == [line["event"] for line in lines]


def test_a_full_audit_log_moves_aside_and_a_full_disk_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "MOST_BYTES", 10)
    audit = Audit(tmp_path, Events())
    audit("connected", site="a")
    audit("lost", site="a")
    assert "connected" in (tmp_path / "audit.jsonl.1").read_text()
    assert "lost" in (tmp_path / "audit.jsonl").read_text()
    events = Events()
    Audit(tmp_path / "nowhere", events)("lost", site="a")
    assert events.of("lost")
