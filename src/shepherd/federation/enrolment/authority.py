"""The authority of a federation: NVFlare's own file tool makes it, and makes and signs signing requests.

    make_authority(folder, "lab", days=3650)                     # rootCA.pem, rootCA.key, ca.json
    make_request(folder, "lab", "hospital-a")                    # hospital-a.key stays, hospital-a.request.zip goes
    pem = issue(folder, zip, federation="lab", name="hospital-a", days=90)

The tool runs as a process: this room imports nothing of NVFlare. Its keys are RSA of 2048 bits, the only kind that the
registration of a site in NVFlare 2.9 can sign with. It takes the kind of a certificate (site, server, person) from the
request, so `check_request` refuses others before, and `issue` judges the certificate that comes out, whatever was read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from shepherd.errors import ResourceError, missing_extra
from shepherd.federation.transports.kits import SERVER
from shepherd.store.disk import PRIVATE, TEMPORARY

AUTHORITY, AUTHORITY_KEY = "rootCA.pem", "rootCA.key"
ORGANISATION = "shepherd"
LOCAL_NAMES = ("localhost", "127.0.0.1")
"""Names in every server certificate next to its host: processes of the same machine connect by them."""
KEY_BITS = range(2048, 4097)
MOST_REQUEST_BYTES = 16 * 1024
_MOST_MEMBER = 16 * 1024
_PATIENCE = 120.0
"""Seconds for one call of the tool, which takes less than one."""
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


class BadRequest(Exception):
    """A signing request that must not be signed; `code` is "format", "federation", "name" or "key"."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def make_authority(folder: Path, federation: str, days: int) -> None:
    """Make the key and the certificate of an authority in the existing `folder`."""
    profile = _write_yaml(folder / "profile.yaml", _profile(federation))
    _tool("init", "--profile", str(profile), "-o", str(folder), "--valid-days", str(days), home=folder)
    os.chmod(folder / AUTHORITY, 0o600)


def make_request(folder: Path, federation: str, name: str, hosts: Sequence[str] = ()) -> bytes:
    """Make a key, `NAME.key`, in the existing `folder`; return the signing request, a zip file.

    hosts: where the server is, for a request of the name SERVER.
    """
    participant: dict[str, object] = {"name": name, "type": "client", "org": ORGANISATION}
    if name == SERVER:
        participant |= {"type": "server", "host_names": list(dict.fromkeys([*hosts, *LOCAL_NAMES]))}
    definition = _write_yaml(folder / "participant.yaml", {"name": federation, "participants": [participant]})
    _tool("request", "-p", str(definition), "--out", str(folder), home=folder)
    return (folder / f"{name}.request.zip").read_bytes()


def check_request(data: bytes, federation: str, site: str) -> None:
    """Refuse a signing request that is not for a site's certificate of this name, by a key of the known kind."""
    if len(data) > MOST_REQUEST_BYTES:
        raise BadRequest("format")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            names = members.namelist()
            if len(names) > 8 or len(set(names)) < len(names) or f"{site}.csr" not in names:
                raise BadRequest("name")
            facts = json.loads(_member(members, "request.json"))
            csr = x509.load_pem_x509_csr(_member(members, f"{site}.csr"))
        stated = [facts[key] for key in ("project", "name", "kind", "cert_type")]
        key = csr.public_key()
        known = isinstance(key, rsa.RSAPublicKey) and key.key_size in KEY_BITS and key.public_numbers().e == 65537
        signed = known and csr.is_signature_valid
    except BadRequest:
        raise
    except Exception:  # the parsers of zip, JSON and ASN.1 have many errors, and a stranger chooses among them
        raise BadRequest("format") from None
    if stated[0] != federation:
        raise BadRequest("federation")
    if stated[1:] != [site, "site", "client"] or _common_names(csr.subject) != [site]:
        raise BadRequest("name")
    if not known:
        raise BadRequest("key")
    if not signed:
        raise BadRequest("format")


def issue(authority: Path, data: bytes, *, federation: str, name: str, days: int) -> bytes:
    """The certificate for a signing request, PEM. Raises ResourceError where the tool or the authority's key fails."""
    if not (authority / AUTHORITY_KEY).is_file():
        raise ResourceError(
            f"the key of the authority is not in {authority}: no certificate can be issued",
            hint=f"put {AUTHORITY_KEY} back from its backup for as long as sites are enrolled",
        )
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=authority) as place:
        folder = Path(place)
        request, signed = folder / f"{name}.request.zip", folder / f"{name}.signed.zip"
        PRIVATE.write(request, data)
        profile = _write_yaml(folder / "profile.yaml", _profile(federation))
        _tool("approve", str(request), "-c", str(authority), "--profile", str(profile), "--valid-days", str(days),
              "--out", str(signed), home=folder)  # fmt: skip
        with zipfile.ZipFile(signed) as members:
            certificate = _member(members, f"{name}.crt") if f"{name}.crt" in members.namelist() else b""
    check_certificate(certificate, (authority / AUTHORITY).read_bytes(), name, days)
    return certificate


def check_certificate(pem: bytes, authority: bytes, name: str, days: int) -> None:
    """Raise ResourceError unless a certificate says what was to be certified, and no more."""
    right = False
    with suppress(ValueError, x509.ExtensionNotFound):
        certificate = x509.load_pem_x509_certificate(pem)
        role = [part.value for part in certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraint = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        right = (
            _common_names(certificate.subject) == [name]
            and role == ["server" if name == SERVER else "client"]
            and (name == SERVER or list(names) == [x509.DNSName(name)])
            and not constraint.ca
            and certificate.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=days, minutes=5)
            and is_issued_by(pem, authority)
        )
    if not right:
        raise ResourceError(
            f"NVFlare issued another certificate for {name} than was requested; it is not used",
            hint="the installed NVFlare must be 2.9",
        )


def is_issued_by(pem: bytes, authority: bytes) -> bool:
    """Whether a certificate has the signature of the authority; its dates and names are not judged."""
    try:
        issuer = x509.load_pem_x509_certificate(authority)
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_of(pem: bytes) -> list[str]:
    """The common names of a certificate's subject."""
    return _common_names(x509.load_pem_x509_certificate(pem).subject)


def dates_of(pem: bytes) -> tuple[datetime, datetime]:
    """From when until when a certificate is valid, in UTC."""
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def serial_of(pem: bytes) -> str:
    return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"


def fingerprint(pem: bytes) -> str:
    """The sha256 of a certificate in its binary form, 64 hexadecimal digits. Raises ValueError where it is none."""
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)).hexdigest()


def is_pair(key: bytes, certificate: bytes) -> bool:
    """Whether a private key belongs to a certificate. Raises ValueError where one of them is damaged."""
    return _private(key).public_key() == x509.load_pem_x509_certificate(certificate).public_key()


def sign(key: bytes, message: bytes) -> bytes:
    """The RSA-PSS signature of a message by a private key."""
    return _private(key).sign(message, _PSS, hashes.SHA256())


def _private(key: bytes) -> rsa.RSAPrivateKey:
    # Whether its numbers are primes takes 0.1 s to find out, and the key was made on this machine.
    private = serialization.load_pem_private_key(key, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise ValueError("another kind of key")
    return private


def is_signed(certificate: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature of a message is by the key of a certificate."""
    public = x509.load_pem_x509_certificate(certificate).public_key()
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, message, _PSS, hashes.SHA256())
            return True
    except InvalidSignature:
        pass
    return False


def _common_names(subject: x509.Name) -> list[str]:
    return [str(part.value) for part in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _member(members: zipfile.ZipFile, name: str) -> bytes:
    with members.open(name) as stream:
        data = stream.read(_MOST_MEMBER + 1)
    if len(data) > _MOST_MEMBER:
        raise BadRequest("format")
    return data


def _profile(federation: str) -> dict[str, object]:
    # NVFlare wants the server's name as its host. The ports are for `nvflare package`, which is not used.
    server = {"host": SERVER, "fed_learn_port": 8002, "admin_port": 8003}
    return {"name": federation, "scheme": "grpc", "connection_security": "mtls", "server": server}


def _write_yaml(file: Path, table: dict[str, object]) -> Path:
    PRIVATE.write(file, json.dumps(table).encode())  # JSON is YAML in which a name "on" or "12" stays a name
    return file


def _tool(*arguments: str, home: Path) -> None:
    """Run `nvflare cert`, with its records of requests in `home` instead of the person's home folder."""
    if importlib.util.find_spec("nvflare") is None:
        raise missing_extra("nvflare", "federation")
    command: Sequence[str] = (sys.executable, "-P", "-m", "nvflare.cli", "cert", *arguments, "--format", "json")
    try:
        done = subprocess.run(
            command, env={**os.environ, "HOME": str(home)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ResourceError(f"`nvflare cert {arguments[0]}` did not end within {_PATIENCE:.0f} s") from None
    if done.returncode == 0:
        return
    try:
        reply = json.loads(done.stdout.splitlines()[-1])
        reason = " ".join(str(reply[part]) for part in ("message", "detail", "reason") if reply.get(part))
    except (ValueError, IndexError, AttributeError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise ResourceError(f"NVFlare's tool refused (`nvflare cert {arguments[0]}`): {reason}")
