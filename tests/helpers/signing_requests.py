"""Signing requests of strangers: names, kinds and keys that NVFlare's tool would not put into one."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from federation_kits import key


def signing_request(
    site: str = "hospital-a",
    *,
    names: tuple[str, ...] = ("hospital-a",),
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None,
    facts: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """A zip file as NVFlare's `cert request` writes one. names: common names of the subject."""
    private = private or key("stranger")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    hash_ = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(private, hash_)  # type: ignore[arg-type]
    stated = {"project": "lab", "name": site, "kind": "site", "cert_type": "client", **(facts or {})}
    content = {
        "request.json": json.dumps(stated).encode(),
        f"{site}.csr": csr.public_bytes(serialization.Encoding.PEM),
        **(files or {}),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as members:
        for name, data in content.items():
            members.writestr(name, data)
    return out.getvalue()
