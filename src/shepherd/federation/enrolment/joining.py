"""The site's side of an enrolment: the key is made here and stays here; a certificate comes back.

expires = enrol(read_invitation("hospital-a.invite"), folder, wait=600, say=print)
path = request(invitation, folder); complete(folder, "hospital-a.signed")     # by files, without a connection
if renewal_due(folder): renew_site(folder, say=print)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from shepherd.errors import NetworkError, UsageError
from shepherd.federation.enrolment.authority import dates_of
from shepherd.federation.enrolment.folder import KIT_FILES
from shepherd.federation.enrolment.invitation import Address, Invitation
from shepherd.federation.enrolment.members import now
from shepherd.federation.enrolment.place import (
    ENROLMENT,
    PENDING,
    accept,
    member_of,
    pending,
    pending_renewal,
    present,
    settled,
)
from shepherd.federation.enrolment.reach import CONFIRM, ENROL, Unreachable, post
from shepherd.federation.enrolment.refusals import Refused
from shepherd.federation.enrolment.requests import MOST_BYTES, Confirmation, Request, read, to_bytes
from shepherd.store.disk import PRIVATE, write_whole

SKEW = 60.0
"""Seconds by which two clocks may differ without a word."""
Say = Callable[[str], None]


def enrol(invitation: Invitation, site_folder: str | Path, wait: float | None, say: Say) -> datetime:
    """Make the site a member, over the network; return until when its certificate is valid.

    wait: seconds for which the coordinator is tried, None: until it answers. Why nobody answers is said after the first
    attempt, of at most 20 s. A site that is a member already stays one. Raises UsageError where the coordinator refuses
    or the folder is another federation's, NetworkError after the wait.
    """
    with settled(site_folder) as folder:
        if (found := member_of(folder, invitation)) is not None:
            say(f"{invitation.site} is a member of {invitation.federation} already")
            return found.expires
        pending(folder, invitation)  # the key takes its time, which is none of the coordinator's

    def attempt() -> datetime:
        with settled(site_folder) as folder:
            if (found := member_of(folder, invitation)) is not None:
                return found.expires
            return _exchange(folder, invitation, pending(folder, invitation), say)

    return _try(attempt, invitation, wait, say)


def request(invitation: Invitation | None, site_folder: str | Path, to: Path | None = None) -> Path:
    """Write a request into the file `to`, or as SITE.request into that folder (the current one).

    invitation: None for the request of a renewal.
    """
    with settled(site_folder) as folder:
        if invitation is not None and member_of(folder, invitation) is not None:
            raise UsageError(f"{invitation.site} is a member of {invitation.federation} already")
        data = pending(folder, invitation) if invitation is not None else pending_renewal(folder)
        path = to or Path()
        path = path / f"{read(Request, data).site}.request" if path.is_dir() else path
        write_whole(PRIVATE, path, data)
    return path


def complete(site_folder: str | Path, signed: str | Path) -> datetime:
    """Take the certificate from the file that `approve` wrote; return until when it is valid. Raises UsageError."""
    try:
        with Path(signed).open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{signed} cannot be read: {error.strerror or error}") from None
    with settled(site_folder) as folder:
        if not (folder / ENROLMENT / PENDING).is_dir():
            raise UsageError(
                f"{folder} has no request that {signed} could answer",
                hint="`shepherd site join --request`, or `renew --request`, makes one",
            )
        return accept(folder, data)


def renew_site(site_folder: str | Path, say: Say, wait: float | None = 30.0) -> datetime:
    """Get a new certificate, for a new key, over the network; return until when it is valid. As `enrol` otherwise."""
    with settled(site_folder) as folder:
        address = present(folder).address
        pending_renewal(folder)

    def attempt() -> datetime:
        with settled(site_folder) as folder:
            return _exchange(folder, address, pending_renewal(folder), say)

    return _try(attempt, address, wait, say)


def _exchange(folder: Path, address: Address, data: bytes, say: Say) -> datetime:
    """Send a request, and install what is answered. Raises Refused and Unreachable."""
    answer, ahead = post(address, ENROL, data)
    expires = accept(folder, answer)
    _confirm(address, data)
    _compare_clocks(folder, ahead, say)
    return expires


def _try(attempt: Callable[[], datetime], address: Address, wait: float | None, say: Say) -> datetime:
    """Try until the coordinator answers, and say each new reason why it does not.

    Between attempts the folder is free for other processes, such as the one that serves the site.
    """
    end = None if wait is None else time.monotonic() + wait
    said, pause = "", 1.0
    while True:
        try:
            return attempt()
        except Refused as refused:
            sentence, hint = f"{address.federation} refuses {address.site}: {refused.why.site}", refused.why.hint
            if not refused.why.later:
                raise UsageError(sentence, hint=hint) from None
        except Unreachable as error:
            sentence, hint = error.sentence, error.hint
        rest = None if end is None else end - time.monotonic()
        if rest is not None and rest <= 0:
            raise NetworkError(sentence, hint=hint)
        if sentence != said:
            until = "until it does" if rest is None else f"for {rest:.0f} s more"
            say(f"No answer yet: {sentence} ({hint}). Trying {until}.")
            said = sentence
        time.sleep(pause if rest is None else min(pause, rest))
        pause = min(pause * 1.5, 10.0)


def _confirm(address: Address, data: bytes) -> None:
    """Report that the certificate is on this disk. If that is lost, the listener is open until the invitation ends."""
    made = read(Request, data)
    with suppress(Unreachable, Refused):
        post(address, CONFIRM, to_bytes(Confirmation(site=made.site, digest=made.digest)))


def _compare_clocks(folder: Path, ahead: float | None, say: Say) -> None:
    if ahead is not None and abs(ahead) > SKEW:
        relation = "behind" if ahead > 0 else "ahead of"
        say(f"This machine's clock is {abs(ahead):.0f} s {relation} the coordinator's: set both by one time server.")
    begins, _ = dates_of((folder / "kit" / "startup" / KIT_FILES["client"][1]).read_bytes())
    if now() < begins:
        say(f"The new certificate is valid from {begins:%Y-%m-%d %H:%M:%S} UTC on; until then no connection succeeds.")
