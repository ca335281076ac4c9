"""The two documents of an enrolment, over the network or as files: a site's request, the coordinator's answer.

Neither holds a key or a code: a request carries a signing request and a proof that its sender may make it, which is of
no use to others; an answer carries certificates.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from shepherd.federation.cards import NAME, Digest, Document
from shepherd.federation.enrolment.refusals import Refused

MOST_BYTES = 16 * 1024
"""The longest request, and answer."""


class Request(Document):
    """kind enrol: the proof is that of the invitation's code; renew: a signature by the key of the old certificate."""

    schema_: Literal[1] = Field(1, alias="schema")
    kind: Literal["enrol", "renew"]
    federation: str = Field(pattern=NAME)
    fingerprint: Digest
    """The federation's authority: two federations may have one name."""
    site: str = Field(pattern=NAME)
    request: str
    """NVFlare's signing request, a zip file, in base64."""
    proof: str
    """Hexadecimal digits for enrol, base64 for renew."""

    @property
    def zip(self) -> bytes:
        """Raises Refused "format"."""
        return decoded(self.request)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.zip).hexdigest()


class Answer(Document):
    """A certificate that was issued, and that of the authority, PEM."""

    schema_: Literal[1] = Field(1, alias="schema")
    federation: str = Field(pattern=NAME)
    site: str = Field(pattern=NAME)
    certificate: str
    authority: str


class Confirmation(Document):
    """The site has the answer to the request of this digest on its disk."""

    schema_: Literal[1] = Field(1, alias="schema")
    site: str = Field(pattern=NAME)
    digest: Digest


def renewal_message(data: bytes) -> bytes:
    """What the old key signs: a signature for another purpose is none for this one."""
    return b"shepherd renewal\0" + data


def to_bytes(document: Document) -> bytes:
    return document.model_dump_json(by_alias=True).encode()


Found = TypeVar("Found", bound=Document)


def read(kind: type[Found], data: bytes) -> Found:
    """A document of a kind. Raises Refused "format", which quotes nothing."""
    if len(data) > MOST_BYTES:
        raise Refused("format")
    try:
        return kind.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError):
        raise Refused("format") from None


def decoded(text: str) -> bytes:
    """The bytes of base64. Raises Refused "format"."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("format") from None


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
