"""Kits of a federation for tests: an authority, certificates of the server and of sites, on a free port of loopback."""

from __future__ import annotations

import datetime
import socket
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shepherd.federation.transports.kits import write_server_kit, write_site_kit


def free_port() -> int:
    """A port of loopback that is free at present."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


@cache
def key(name: str) -> rsa.RSAPrivateKey:
    """A key; one for each name, so that few are made."""
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Authority:
    """An authority. name: two of one name are two authorities with the same name where their keys differ."""

    name: str = "authority"
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = self.issue(self.name, ca=True)

    def issue(
        self, subject: str, *, ca: bool = False, days: float = 1, server: bool = False, begins: float | None = None
    ) -> x509.Certificate:
        """A certificate. days: until it expires, or since it has where negative; begins: days until it is valid."""
        now = datetime.datetime.now(datetime.UTC)
        name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
        end = now + datetime.timedelta(days=days)
        begin = min(now, end) - datetime.timedelta(days=1)
        if begins is not None:
            begin = now + datetime.timedelta(days=begins)
        public = key(f"{self.name}/{'' if ca else subject}").public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(self.name))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        signs = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage)
        authority = key(f"{self.name}/")
        builder = builder.add_extension(signs, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        if not ca:
            purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
            names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            for extension in (
                x509.ExtendedKeyUsage([purpose]),
                x509.SubjectAlternativeName(names if server else [x509.DNSName(subject)]),
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            ):
                builder = builder.add_extension(extension, critical=False)
        return builder.sign(authority, hashes.SHA256())

    def put(
        self, folder: Path, subject: str, *, server: bool = False, days: float = 1, begins: float | None = None
    ) -> None:
        """Write the certificate of a kit with its key and the authority's certificate."""
        startup, role = folder / "startup", "server" if server else "client"
        startup.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = serialization.Encoding.PEM
        (startup / "rootCA.pem").write_bytes(self.certificate.public_bytes(pem))
        (startup / f"{role}.crt").write_bytes(
            self.issue(subject, server=server, days=days, begins=begins).public_bytes(pem)
        )
        private = key(f"{self.name}/{subject}").private_bytes(
            pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (startup / f"{role}.key").write_bytes(private)
        (startup / f"{role}.key").chmod(0o600)


@dataclass
class Kits:
    """The kits of a federation in a folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    authority: Authority = field(default_factory=Authority)
    host: str = "localhost"

    def server(self) -> Path:
        """The coordinator's kit."""
        kit = self.folder / "server"
        self.authority.put(kit, "server", server=True)
        write_server_kit(kit, federation="lab", host=self.host, port=self.port)
        return kit

    def site(
        self, name: str, authority: Authority | None = None, subject: str = "", days: float = 1,
        begins: float | None = None,
    ) -> Path:  # fmt: skip
        """A site's kit. subject: the name in its certificate, where that is another one."""
        kit = self.folder / name
        (authority or self.authority).put(kit, subject or name, days=days, begins=begins)
        write_site_kit(kit, federation="lab", site=name, host=self.host, port=self.port)
        return kit
