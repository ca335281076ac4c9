"""A site's certificate is renewed: at once on request, and by the process that serves when it is due.

until = renew(folder, wait=0, say=print)            # NetworkError, UsageError: why not, and what would help
until = take(folder, Path("hospital-a.signed"))     # by files
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd.errors import NetworkError, ShepherdError, UsageError

if TYPE_CHECKING:
    from shepherd.federation.enrolment import Membership

Say = Callable[[str], None]


def renew(folder: Path, wait: float, say: Say) -> datetime:
    """Get a new certificate over the network; until when it is valid.

    wait: seconds for which the coordinator is tried. Raises NetworkError where it does not answer, with what to ask of
    it, and UsageError where it refuses or the folder is that of no member; the present certificate stays.
    """
    from shepherd.federation.enrolment import renew_site

    member = member_of(folder)
    say(_state(member))
    try:
        return renew_site(folder, say, wait)
    except NetworkError as error:
        raise NetworkError(error.message, hint=f"{error.hint}; {_advice(member)}") from None


def request(folder: Path, to: Path, say: Say) -> Path:
    """Write a request for a renewal to a file, or into a folder; the file. Raises UsageError without a membership."""
    from shepherd.federation import enrolment

    say(_state(member_of(folder)))
    return enrolment.request(None, folder, to)


def take(folder: Path, signed: Path) -> datetime:
    """Install the certificate of the coordinator's answer in a file; until when it is valid. Raises UsageError."""
    from shepherd.federation.enrolment import complete

    member_of(folder)
    return complete(folder, signed)


def renew_if_due(folder: Path, say: Say) -> bool:
    """Renew a certificate in the last third of its time, or after its end; whether it was renewed, at the first try.

    What prevents it is said: it ends no site.
    """
    from shepherd.federation.enrolment import renew_site, renewal_due

    try:
        if not renewal_due(folder):
            return False
        until = renew_site(folder, say, wait=0.0)
    except (ShepherdError, OSError) as error:  # a full disk too; the certificate is valid for weeks
        why = error.message if isinstance(error, ShepherdError) else error.strerror or str(error)
        say(f"the certificate is due and was not renewed: {why}; the next try is in an hour")
        return False
    say(f"the certificate was renewed: it is valid until {until:%Y-%m-%d}")
    return True


def member_of(folder: Path) -> Membership:
    """The membership of a site's folder. Raises UsageError without one."""
    from shepherd.federation.enrolment import membership

    found = membership(folder)
    if found is None:
        raise UsageError(
            f"{folder} is not the site of a member yet", hint="shepherd site join SITE.invite, or SITE.signed"
        )
    return found


def _state(member: Membership) -> str:
    day = f"{member.expires:%Y-%m-%d}"
    return {
        "early": f"the certificate is valid until {day}; its renewal is due from {member.due:%Y-%m-%d} on, or when the "
        "coordinator allows it",
        "due": f"the certificate is valid until {day}; its renewal is due",
        "expired": f"the certificate expired on {day}; it can be renewed",
        "late": f"the certificate expired on {day}, more than 14 days ago: the coordinator has to allow its renewal",
    }[member.stage]


def _advice(member: Membership) -> str:
    name = member.address.site
    if member.stage in ("early", "late"):
        return f"ask it for `shepherd federation renew {name}`, which allows a renewal for 7 days"
    return f"or renew by files: shepherd site renew --site {name} --request {name}.request"
