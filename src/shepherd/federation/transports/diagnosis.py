"""Why a site has no connection: the engine tries again without a word, so the way is tried here, step by step.

if fault := diagnose(kit): print(fault.code, fault.why)
"""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from shepherd.federation.transports.kits import read_address, read_site

PATIENCE = 4.0
SETTLING = 2.0
"""Seconds in which a renewal replaces the key and then the certificate: in between they do not belong together."""
SWAPPED = "name"
"""Code of the certificate of another site; the handshake is not refused for it, but what comes after it is."""
_VERIFICATION = {
    9: ("clock", "the coordinator's certificate is not valid yet: compare the clocks of the two machines"),
    10: ("certificate", "the coordinator's certificate has expired; it is renewed at the coordinator's next start"),
    62: ("host", "the coordinator's certificate is not for {host}: the invitation names another host"),
    64: ("host", "the coordinator's certificate is not for {host}: the invitation names another host"),
}
"""Numbers of OpenSSL's X509_V_ERR_…"""


class Fault(NamedTuple):
    """What is in the way: a code, and a sentence for a person."""

    code: str
    why: str


def diagnose(kit: Path) -> Fault | None:
    """What keeps the site of a kit from its coordinator, or None. Takes up to some seconds.

    Raises OSError, ValueError or LookupError where the kit cannot be read, also after the time of a renewal.
    """
    end = time.monotonic() + SETTLING
    while True:
        try:
            return _diagnose(kit)
        except (OSError, ValueError, LookupError):
            if time.monotonic() >= end:
                raise
        time.sleep(0.2)


def _diagnose(kit: Path) -> Fault | None:
    host, port = read_address(kit)
    startup = kit / "startup"
    own = fault_of_certificate(startup / "client.crt", startup / "rootCA.pem", read_site(kit))
    # Also with a certificate that is refused: the coordinator's log is to have a line about it.
    handshake = _handshake(startup, host, port)
    return own or handshake


def _handshake(startup: Path, host: str, port: int) -> Fault | None:
    """What a handshake with the coordinator fails at."""
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with (
            socket.create_connection((host, port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            if connection.recv(1):
                return None
    except OSError as error:
        return _fault(error, host, port)
    return Fault("refused", f"{host}:{port} closes the connection: it does not accept this site's certificate")


def fault_of_certificate(
    path: Path, authority: Path, name: str, now: datetime.datetime | None = None, whose: str = "this site's"
) -> Fault | None:
    """What is wrong with the certificate of a site, or with the coordinator's own one, as far as its holder can see."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    now = now or datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        day = certificate.not_valid_after_utc.date().isoformat()
        return Fault("expired", f"{whose} certificate expired on {day}, or this machine's clock is ahead")
    if now < certificate.not_valid_before_utc:
        return Fault("clock", f"{whose} certificate is not valid yet: this machine's clock is behind")
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.read_bytes()))
    except (InvalidSignature, ValueError, TypeError):
        return Fault("foreign", f"{whose} certificate is that of another federation")
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [name]:
        return Fault(SWAPPED, f"{whose} certificate is that of {', '.join(names)!r}, and the kit is that of {name!r}")
    return None


def _fault(error: OSError, host: str, port: int) -> Fault:
    place = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        other = "foreign", "{host} has a certificate of another federation"
        code, why = _VERIFICATION.get(error.verify_code, other)
        return Fault(code, why.format(host=place))
    if isinstance(error, ssl.SSLError):
        return Fault("tls", f"{place} is not a coordinator, or does not accept this site's certificate")
    if isinstance(error, socket.gaierror):
        return Fault("host", f"the name {host!r} cannot be resolved on this machine")
    if isinstance(error, ConnectionRefusedError):
        return Fault("unreachable", f"nobody listens at {place}: the coordinator does not run at present")
    if isinstance(error, TimeoutError):
        return Fault("unreachable", f"no answer from {place}: a firewall may be in between, or the address is wrong")
    return Fault("unreachable", f"no connection to {place}: {error.strerror or type(error).__name__}")
