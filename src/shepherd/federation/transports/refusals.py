"""What a line of the engine's log says of a refused connection, as a code and a sentence.

NVFlare and gRPC have no event for these: a certificate that is refused in the handshake, a name that is not that of the
certificate, a registration that is turned down.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NO_MEMBER = "this site is not, or no longer, a member of the federation"
"""What the coordinator answers to others than members."""


class Refusal(NamedTuple):
    """A refusal. code: certificate, tls, name, lease, removed, federation, message."""

    code: str
    why: str


_OURS_REFUSED = Refusal(
    "certificate",
    "a peer does not accept the coordinator's certificate: it is of another federation, or compare the clocks",
)
_HANDSHAKE = {
    "certificate has expired": Refusal(
        "certificate", "a peer's certificate has expired, or this machine's clock is ahead"
    ),
    "certificate is not yet valid": Refusal(
        "certificate", "a peer's certificate is not valid yet: compare the clocks of the two machines"
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Refusal("certificate", "a peer has no certificate"),
    "CERTIFICATE_VERIFY_FAILED": Refusal("certificate", "a peer's certificate is that of another authority"),
    "ALERT": _OURS_REFUSED,
    "BAD_PACKET_LENGTH": _OURS_REFUSED,  # an alert of OpenSSL, as BoringSSL reads it
    "NO_SHARED_CIPHER": Refusal("tls", "a peer does not speak TLS 1.3"),
    "UNSUPPORTED_PROTOCOL": Refusal("tls", "a peer does not speak TLS 1.3"),
    "WRONG_VERSION_NUMBER": Refusal("tls", "a peer does not speak TLS"),
    "HTTP_REQUEST": Refusal("tls", "a peer does not speak TLS"),
}
_REJECTED = {
    "is disabled": Refusal("removed", "this site has been removed from the federation"),
    "register_client unauthenticated": Refusal("lease", "another process uses this identity"),
    "does not match the current server task": Refusal("federation", "the kit is that of another federation"),
    "": Refusal("registration", "the coordinator does not accept this site"),
}


def refusal_in(line: str) -> Refusal | None:
    """The refusal that a line is about."""
    if "Handshake failed" in line:
        return next((refusal for text, refusal in _HANDSHAKE.items() if text in line), None)
    if found := re.search(r"authenticated as '([^']*)' but claimed endpoint '([^']*)'", line):
        certificate, name = (part[:80] for part in found.groups())
        return Refusal("name", f"a process with the certificate of {certificate!r} wanted the name {name!r}")
    if found := re.search(r"unauthenticated msg \(.*\) received from (\S+): (.*)", line):
        sender, why = (part[:200] for part in found.groups())
        return Refusal("message", f"a message from {sender!r} was dropped: {why}")
    if found := re.search(r"registration rejected: (.*)", line):
        return next(refusal for text, refusal in _REJECTED.items() if text in found[1])
    return None
