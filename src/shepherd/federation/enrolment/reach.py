"""The site's connection to the listener: TLS 1.3, nothing but the invitation's authority trusted, and why it fails.

Nothing is sent before the certificate at the other end was found to be issued by that authority, for that host.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from shepherd.federation.enrolment.invitation import Address
from shepherd.federation.enrolment.members import now
from shepherd.federation.enrolment.refusals import REFUSALS, Refused
from shepherd.federation.enrolment.requests import MOST_BYTES

ENROL, CONFIRM = "/enrol", "/confirm"
PATIENCE = 10.0
"""Seconds for a connection, and for each part of an answer."""
_EXPIRED, _NOT_YET, _HOST = 10, 9, (62, 64)
"""Codes of OpenSSL's verification: the certificate has expired, is not valid yet, is for another host or address."""


class Unreachable(Exception):
    """Nobody who can enrol a site answers: a sentence, and what to do."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.sentence, self.hint = sentence, hint


class Answered(NamedTuple):
    """The bytes of an answer, and by how many seconds the other machine's clock is ahead; None where it is unknown."""

    data: bytes
    ahead: float | None


def post(address: Address, path: str, data: bytes) -> Answered:
    """Send a request. Raises Refused with the coordinator's code, or Unreachable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=address.authority)
    connection = http.client.HTTPSConnection(address.host, address.enrolment_port, timeout=PATIENCE, context=context)
    connected = False
    try:
        connection.connect()  # the handshake, in which the certificate is verified, before anything of ours is sent
        connected = True
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = Answered(response.read(MOST_BYTES + 1), _ahead(response.getheader("Date")))
    except (OSError, http.client.HTTPException) as error:
        if connected and isinstance(error, TimeoutError):
            busy = f"{_place(address)} has the request, and no answer came within {PATIENCE:.0f} s"
            raise Unreachable(busy, "it is busy, as when several sites join at once: it helps to wait") from None
        raise Unreachable(*explain(error, address)) from None
    finally:
        connection.close()
    if response.status == http.client.OK and len(answer.data) <= MOST_BYTES:
        return answer
    try:
        code = json.loads(answer.data)["refused"]
    except (ValueError, LookupError, TypeError, RecursionError):
        code = ""
    if not isinstance(code, str) or code not in REFUSALS:
        raise Unreachable(f"{_place(address)} answers, but not as an enrolment does", _OTHER_SERVICE)
    raise Refused(code)


def explain(error: Exception, address: Address) -> tuple[str, str]:
    """Why a connection failed, in a sentence, and what to do about it."""
    place = _place(address)
    if isinstance(error, socket.gaierror):
        return f"the name {address.host} does not resolve on this machine", "ask the coordinator, or your network's DNS"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nothing listens at {place}",
            "the coordinator answers while it serves a run (`shepherd run … --federation`), if an invitation or a "
            "renewal is open",
        )
    if isinstance(error, TimeoutError):
        return (
            f"{place} does not answer within {PATIENCE:.0f} s",
            "a firewall may drop the connection: this site connects outwards to that host and port, by TCP",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error, place)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError, http.client.RemoteDisconnected)):
        return f"{place} closes the connection", _OTHER_SERVICE
    if isinstance(error, (ssl.SSLError, http.client.HTTPException)):
        return f"{place} speaks something else than this enrolment, which is HTTPS with TLS 1.3", _OTHER_SERVICE
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return f"{place} cannot be reached: {reason}", "check this machine's network"


_OTHER_SERVICE = "check the port; or a proxy lies in between, or there are too many connections: then it helps to wait"


def _certificate(error: ssl.SSLCertVerificationError, place: str) -> tuple[str, str]:
    clock = f"this machine's clock says {now():%Y-%m-%d %H:%M} UTC"
    if error.verify_code == _NOT_YET:
        return f"the certificate at {place} is not valid yet: {clock}", "set the clocks of both machines"
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate at {place} has expired: {clock}",
            "if the clock is right, the coordinator renews its certificate by its next start",
        )
    if error.verify_code in _HOST:
        return (
            f"the certificate at {place} is for another host",
            "the federation was made with another `--host`: ask the coordinator for an invitation with the right one",
        )
    return (
        f"{place} shows another certificate than the invitation's",
        "another machine answers, or a proxy that opens TLS: nothing was sent. Compare the fingerprint with the "
        "coordinator",
    )


def _place(address: Address) -> str:
    return f"{address.host}:{address.enrolment_port}"


def _ahead(date: str | None) -> float | None:
    try:
        return (parsedate_to_datetime(date) - now()).total_seconds() if date else None
    except (ValueError, TypeError, IndexError):
        return None
