"""An invitation: where a federation is, the certificate of its authority, and a one-time code. It holds no key.

Who has the file of an invitation can enrol in its site's name, once, until it expires; the file is a secret until then.
The certificate in it is what the site trusts, so that who answers at the address must have been certified by it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from shepherd.errors import UsageError
from shepherd.federation.cards import NAME, Digest, Document
from shepherd.federation.enrolment.authority import fingerprint

Host = Annotated[
    str, Field(max_length=253, pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))*$")
]
"""A host by its DNS name or its IPv4 address."""
Port = Annotated[int, Field(ge=1, le=65535)]
MOST_BYTES = 16 * 1024


class Address(Document):
    """A federation as a site knows it: name, site, where it is, and its authority."""

    federation: str = Field(pattern=NAME)
    site: str = Field(pattern=NAME)
    host: Host
    port: Port
    """Where the sites of the federation connect."""
    enrolment_port: Port
    fingerprint: Digest
    """The sha256 of the authority's certificate: short enough to be compared over the telephone."""
    authority: str = Field(max_length=8192)
    """The authority's certificate, PEM."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Address:
        if fingerprint(self.authority.encode()) != self.fingerprint:
            raise ValueError("its certificate is not the one of its fingerprint")
        return self


class Invitation(Address):
    """One enrolment of one site."""

    schema_: Literal[1] = Field(1, alias="schema")
    code: str = Field(pattern=r"^[0-9a-f]{40}$")
    expires: AwareDatetime

    @property
    def address(self) -> Address:
        """The invitation without its code, which a site keeps."""
        return Address(**{name: getattr(self, name) for name in Address.model_fields})


def new_code() -> str:
    """160 random bits: it cannot be found by trying."""
    return secrets.token_hex(20)


def verifier_of(code: str) -> str:
    """What the coordinator keeps of a code: it shows that a request was made by who has the code, and not the code."""
    return hashlib.sha256(b"shepherd invitation\0" + code.encode()).hexdigest()


def proof_of(verifier: str, request: bytes) -> str:
    """The proof that a signing request was made with the code of an invitation: the code itself is sent nowhere, and
    a request that is intercepted cannot be exchanged for another."""
    return hmac.new(bytes.fromhex(verifier), request, hashlib.sha256).hexdigest()


def write_address(address: Address, title: str) -> bytes:
    """An address or an invitation as TOML that a person can read."""
    lines = [f"# {line}" for line in title.splitlines()]
    fields = address.model_dump(by_alias=True, exclude={"authority"})
    for name, value in sorted(fields.items(), key=lambda field: field[0] != "schema"):
        text = value.isoformat(timespec="seconds") if isinstance(value, datetime) else json.dumps(value)
        lines.append(f"{name} = {text}")
    return "\n".join([*lines, f'authority = """\n{address.authority.strip()}\n"""', ""]).encode()


def write_invitation(invitation: Invitation) -> bytes:
    """The file of an invitation."""
    return write_address(
        invitation,
        f"An invitation of the site {invitation.site} to the federation {invitation.federation}, for one enrolment\n"
        f"until {invitation.expires:%Y-%m-%d %H:%M} UTC. At the site:\n"
        f"    shepherd site join {invitation.site}.invite --data ROWS\n"
        "Who has this file can enrol in the site's name: send it on a way that only the site reads, and compare the\n"
        "fingerprint with the coordinator on another way. It holds no key.",
    )


def read_invitation(path: str | Path) -> Invitation:
    """The invitation in a file. Raises UsageError, which quotes nothing of it; it may have expired."""
    return _read(Path(path), Invitation, "an invitation", "get the file again from the coordinator, unchanged")


def read_address(path: Path) -> Address:
    """The address that a site keeps. Raises UsageError."""
    return _read(path, Address, "the address of a federation", "enrol again, or restore it from a backup")


Found = TypeVar("Found", bound=Address)


def _read(path: Path, kind: type[Found], what: str, hint: str) -> Found:
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", hint=hint) from None
    problem = f"longer than {MOST_BYTES:,} bytes"
    if len(data) <= MOST_BYTES:
        try:
            return kind.model_validate(tomllib.loads(data.decode("utf-8-sig")))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            known = {field.alias or name for name, field in kind.model_fields.items()}
            place = next((str(part) for part in first["loc"] if part in known), "")
            problem = f"{place}: {first['msg']}" if place else "its keys and values are others"
            if first["type"] == "value_error" and not place:
                problem = "the certificate in it is damaged, or not the one of its fingerprint"
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
            problem = "no TOML"
    raise UsageError(f"{path} is not {what}: {problem}", hint=hint)
