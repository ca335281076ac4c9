"""Which names a site may have. NVFlare's certificates are good for both ends of a connection, and its rights go by
name: a site with a name of the server could play it, and one with the name of a former site would let that one in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from shepherd.errors import UsageError
from shepherd.federation.cards import NAME
from shepherd.federation.enrolment.authority import LOCAL_NAMES
from shepherd.federation.enrolment.members import Member
from shepherd.federation.transports.kits import SERVER

MOST_SITES = 1000


def check_host(host: str, members: Mapping[str, Member], settings: Path) -> None:
    """Raise UsageError where a site has the name of the host: its certificate would be good for the server's name."""
    taken = next((name for name in members if name.casefold() == host.casefold()), None)
    if taken is not None:
        raise UsageError(
            f"{settings}: the host {host} is the name of a site, {taken}, which could play the server",
            hint="give the server another DNS name, or its IPv4 address",
        )


def check_name(site: str, host: str, members: Mapping[str, Member], at: datetime, again: bool) -> None:
    """Raise UsageError unless `site` can be invited: names that differ by case are one. again: see `invite`."""
    if not re.fullmatch(NAME, site):
        raise UsageError(
            f"{site!r} cannot be the name of a site",
            hint="up to 64 letters, digits and hyphens; the first and the last are letters or digits",
        )
    if site.casefold() in {name.casefold() for name in (SERVER, host, *LOCAL_NAMES)}:
        raise UsageError(f"{site!r} is a name of the server", hint="choose another name for the site")
    taken = next((name for name in members if name.casefold() == site.casefold()), None)
    if taken is None:
        if len(members) >= MOST_SITES:
            raise UsageError(f"the federation has {MOST_SITES:,} sites already, the most that it can have")
        return
    member = members[taken]
    if member.state == "member":
        raise UsageError(
            f"the name {site} is taken: {taken} is a member since {member.since:%Y-%m-%d}",
            hint=f"choose another name; `shepherd federation renew {taken}` for a new certificate",
        )
    if not again and member.state == "removed" and member.name_until is not None and at < member.name_until:
        raise UsageError(
            f"the name {site} is not free before {member.name_until:%Y-%m-%d %H:%M} UTC: a certificate of the removed "
            f"{taken} is valid until then, and would let it in again",
            hint="choose another name; from Python, invite(…, again=True) if that key is destroyed",
        )
    if taken != site:
        raise UsageError(f"the name {site} is taken: there is {taken}", hint=f"invite {taken}, or choose another name")
