"""The list of a federation's sites, `members.json`: invited, member, removed. It is the one source of who may connect.

    with folder.lock(): save(folder, {**folder.members, "hospital-a": member})

A certificate says that its holder once was a member; this list says who is. So a site is removed by a line here, at
once and for good, and its name cannot be used again while a certificate in it is valid: NVFlare goes by names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError

from shepherd.errors import UsageError
from shepherd.federation.cards import Digest, Document
from shepherd.store.disk import PRIVATE, write_whole

MEMBERS = "members.json"
MOST_TRIES = 10
"""Requests without the right proof after which an invitation is closed."""
RENEWABLE = 1 / 3
"""A certificate can be renewed in the last third of its time, …"""
RENEWABLE_AFTER = timedelta(days=14)
"""… and for some days after it has expired: the key still shows whose it is."""


def now() -> datetime:
    """The time by which everything here expires, UTC."""
    return datetime.now(UTC)


class Invited(Document):
    """What is kept of an invitation; its code is not."""

    verifier: Digest
    expires: AwareDatetime
    tries: int = Field(0, ge=0)


class Member(Document):
    """A site by name, in one of three states."""

    state: Literal["invited", "member", "removed"]
    since: AwareDatetime
    invitation: Invited | None = None
    certificate: str = ""
    """The newest one, PEM."""
    serial: str = ""
    issued: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    """Until when the newest certificate is valid."""
    name_until: AwareDatetime | None = None
    """Until when any certificate in this name is valid."""
    request: str = ""
    """The sha256 of the signing request of that certificate: the same request has the same answer, if it was lost."""
    repeat_until: AwareDatetime | None = None
    """Until when that answer is repeated over the network; None: the site has confirmed that it has it."""
    renewal: AwareDatetime | None = None
    """Until when the coordinator allows a renewal that is not due."""

    def invitation_open(self, at: datetime) -> bool:
        """Whether the invitation can still be used."""
        invited = self.invitation
        return self.state == "invited" and invited is not None and at < invited.expires and invited.tries < MOST_TRIES

    @property
    def is_renewed(self) -> bool:
        """Whether the newest certificate is that of a renewal."""
        return self.state == "member" and self.invitation is None

    def renewable(self, at: datetime) -> bool:
        """Whether the certificate may be renewed: by the coordinator's word, or near its end."""
        if self.state != "member" or self.issued is None or self.expires is None:
            return False
        due = self.expires - (self.expires - self.issued) * RENEWABLE
        return due <= at < self.expires + RENEWABLE_AFTER or (self.renewal is not None and at < self.renewal)

    def awaited(self, at: datetime) -> bool:
        """Whether the listener is open for this site."""
        repeat = self.state == "member" and self.repeat_until is not None and at < self.repeat_until
        return repeat or self.invitation_open(at) or self.renewable(at)


class _Members(Document):
    schema_: Literal[1] = Field(1, alias="schema")
    members: Mapping[str, Member]


def load(folder: Path) -> dict[str, Member]:
    """The members by name, sorted. Raises UsageError where the list is damaged: then nobody is a member."""
    path = folder / MEMBERS
    try:
        return dict(sorted(_Members.model_validate_json(path.read_bytes()).members.items()))
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its content is damaged"
        raise UsageError(f"{path} cannot be read: {reason}", hint="restore it from a backup of the folder") from None


def save(folder: Path, members: Mapping[str, Member]) -> None:
    """Replace the list, atomically and durably."""
    document = _Members(members=dict(sorted(members.items())))
    text = json.dumps(document.model_dump(mode="json", by_alias=True), indent=1)
    write_whole(PRIVATE, folder / MEMBERS, text.encode() + b"\n")
