"""The coordinator's side of an enrolment: invitations, and which requests are granted. No network.

    text = invite(folder, "hospital-a")      # the file of an invitation
    answer = grant(folder, data)             # a request over the network; Refused with a code
    path = approve(folder, "hospital-a.request")
    renew(folder, "hospital-a"); remove(folder, "hospital-a")

A request is granted once: to who proves to have the code of an open invitation, or the key of a certificate whose
renewal is due. The same request again has the same answer, so that a lost one costs nothing; certificates are public.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from shepherd.errors import ResourceError, ShepherdError, UsageError, did_you_mean
from shepherd.federation.enrolment import members as lists
from shepherd.federation.enrolment.authority import BadRequest, check_request, dates_of, is_signed, issue, serial_of
from shepherd.federation.enrolment.folder import FederationFolder
from shepherd.federation.enrolment.invitation import (
    Invitation,
    new_code,
    proof_of,
    verifier_of,
    write_invitation,
)
from shepherd.federation.enrolment.members import Invited, Member, now
from shepherd.federation.enrolment.names import check_name
from shepherd.federation.enrolment.refusals import Refused
from shepherd.federation.enrolment.requests import (
    Answer,
    Confirmation,
    Request,
    decoded,
    read,
    renewal_message,
    to_bytes,
)
from shepherd.store.disk import PRIVATE, write_whole

REPEATED = timedelta(days=1)
"""How long the answer to a renewal is repeated over the network, when the site has not confirmed that it has it."""


def invite(folder: FederationFolder, site: str, days: float = 7, *, again: bool = False) -> bytes:
    """Open an enrolment of `site`, and return the file of its invitation; an earlier one is void.

    again: though the name is that of a removed site whose certificate is valid; who still has its key is let in.
    Raises UsageError where the name cannot be one of a site, or is that of a member or of a former one.
    """
    if not 0 < days <= 90:
        raise UsageError(f"an invitation cannot be open for {days:g} days", hint="choose up to 90 days")
    with folder.lock():
        members, at = dict(folder.members), now()
        check_name(site, folder.settings.host, members, at, again)
        code, expires = new_code(), (at + timedelta(days=days)).replace(microsecond=0)
        authority = folder.certificate.decode()
        settings = folder.settings
        invitation = Invitation(
            federation=folder.name, site=site, host=settings.host, port=settings.port, code=code, expires=expires,
            enrolment_port=settings.enrolment_port, fingerprint=folder.fingerprint, authority=authority,
        )  # fmt: skip
        invited = Invited(verifier=verifier_of(code), expires=expires)
        members[site] = Member(state="invited", since=at, invitation=invited)
        lists.save(folder.path, members)
        folder.record("invited", site=site, expires=expires.isoformat())
    return write_invitation(invitation)


def grant(folder: FederationFolder, data: bytes, way: str = "network") -> bytes:
    """The answer to a request: the bytes of an Answer. Raises Refused; a wrong proof is counted first."""
    request = read(Request, data)
    signing = request.zip
    if request.federation != folder.name or request.fingerprint != folder.fingerprint:
        raise Refused("federation")
    try:
        # Who has no proof is refused without the lock: strangers must not hold up the coordinator's own commands.
        try:
            _judge(folder.members, request, signing)
        except Refused as why:
            if why.code == "proof":
                _count(folder, request.site)
            raise
        with folder.lock():
            return _grant(folder, request, signing, way)
    except ResourceError as error:
        raise Refused("authority", error.message) from None
    except (ShepherdError, OSError) as error:  # the lock is held, the list is damaged, the disk is full
        raise Refused("busy", str(error)) from None


def _judge(members: Mapping[str, Member], request: Request, signing: bytes) -> Member:
    """The member whose request is granted, or has been. Raises Refused: without a proof nobody learns more."""
    member, at = members.get(request.site), now()
    proof = decoded(request.proof) if request.kind == "renew" else b""  # first: the same refusal for every name
    if member is not None and member.state == "member" and hmac.compare_digest(member.request, request.digest):
        return member
    if request.kind == "renew":
        pem = member.certificate.encode() if member is not None else b""
        if member is None or not pem or not is_signed(pem, renewal_message(signing), proof):
            raise Refused("key-proof")
        if member.state != "member":
            raise Refused("removed")
        if not member.renewable(at):
            raise Refused("late" if member.expires is not None and at >= member.expires else "not-due")
        return member
    invited = member.invitation if member is not None else None
    # A name without an invitation takes as long as one with another code.
    expected = proof_of(invited.verifier if invited is not None else "00" * 32, signing)
    if not hmac.compare_digest(expected.encode(), request.proof.encode()) or member is None or invited is None:
        raise Refused("proof")
    if member.state == "member":
        raise Refused("used")
    if at >= invited.expires:
        raise Refused("expired")
    if not member.invitation_open(at):
        raise Refused("closed")
    return member


def _count(folder: FederationFolder, site: str) -> None:
    """Count a request without the right proof against the open invitation of a site, if there is one.

    The refusal of an invited name takes longer by this write to the disk, so who has the fingerprint may learn by the
    time whether a name is invited; ten such requests close the invitation, and the coordinator sees it in the log.
    """

    def tried(member: Member) -> Member:
        invited = member.invitation
        if invited is None or not member.invitation_open(now()):
            return member
        return member.model_copy(update={"invitation": invited.model_copy(update={"tries": invited.tries + 1})})

    member = folder.members.get(site)
    if member is None or not member.invitation_open(now()) or not _change(folder, site, tried):
        return
    if not folder.members[site].invitation_open(now()):
        folder.record("closed", site=site, tries=lists.MOST_TRIES)


def _grant(folder: FederationFolder, request: Request, signing: bytes, way: str) -> bytes:
    members, at = dict(folder.members), now()
    member = _judge(members, request, signing)
    if member.state == "member" and member.request == request.digest:
        return _answer(folder, request.site, member)
    try:
        check_request(signing, folder.name, request.site)
    except BadRequest as error:
        raise Refused(error.code) from None
    days = folder.settings.certificate_days
    certificate = issue(folder.authority, signing, federation=folder.name, name=request.site, days=days)
    _, expires = dates_of(certificate)
    first = request.kind == "enrol"
    until = member.invitation.expires if first and member.invitation is not None else at + REPEATED
    joined = Member(
        state="member",
        since=at if first else member.since,
        invitation=member.invitation if first else None,
        certificate=certificate.decode(),
        serial=serial_of(certificate),
        issued=at,
        expires=expires,
        name_until=max(expires, member.name_until or expires),
        request=request.digest,
        repeat_until=until if way == "network" else None,
    )
    lists.save(folder.path, {**members, request.site: joined})
    event = "enrolled" if first else "renewed"
    folder.record(event, site=request.site, serial=joined.serial, expires=expires.isoformat(), way=way)
    return _answer(folder, request.site, joined)


def _answer(folder: FederationFolder, site: str, member: Member) -> bytes:
    authority = folder.certificate.decode()
    return to_bytes(Answer(federation=folder.name, site=site, certificate=member.certificate, authority=authority))


def confirm(folder: FederationFolder, data: bytes) -> None:
    """Note that a site has its certificate, so that the listener need not stay open for it."""
    confirmation = read(Confirmation, data)

    def change(member: Member) -> Member:
        same = hmac.compare_digest(member.request, confirmation.digest)
        return member.model_copy(update={"repeat_until": None}) if same else member

    member = folder.members.get(confirmation.site)
    if member is not None and member.repeat_until is not None:
        _change(folder, confirmation.site, change)


def approve(folder: FederationFolder, request: str | Path) -> Path:
    """Grant the request in a file, and write the answer next to it, as SITE.signed. Raises UsageError."""
    path = Path(request)
    try:
        with path.open("rb") as stream:
            data = stream.read(2**16)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        answer, site = grant(folder, data, way="file"), read(Request, data).site
    except Refused as error:
        kind = ResourceError if error.why.later else UsageError
        raise kind(f"{path} is refused: {error.why.coordinator}", hint=error.why.hint) from None
    target = path.with_name(f"{site}.signed")
    write_whole(PRIVATE, target, answer)
    return target


def renew(folder: FederationFolder, site: str, days: float = 7) -> None:
    """Allow a member to renew its certificate within `days`, though it is not due; its old key signs the request."""
    until = now() + timedelta(days=days)

    def change(member: Member) -> Member:
        if member.state != "member":
            raise UsageError(f"{site} is not a member: it is {member.state}", hint="`shepherd federation invite` does")
        return member.model_copy(update={"renewal": until})

    _change(folder, site, change)
    folder.record("renewal-opened", site=site, until=until.isoformat(timespec="seconds"))


def remove(folder: FederationFolder, site: str) -> None:
    """Remove a site from the list: from now on it may not connect, with any certificate."""

    def change(member: Member) -> Member:
        if member.state == "removed":
            return member
        closed = {"state": "removed", "since": now(), "invitation": None, "repeat_until": None, "renewal": None}
        return member.model_copy(update=closed)

    if _change(folder, site, change):
        folder.record("removed", site=site)


def _change(folder: FederationFolder, site: str, change: Callable[[Member], Member]) -> bool:
    with folder.lock():
        members = dict(folder.members)
        if site not in members:
            raise UsageError(
                f"{folder.name} has no site {site!r}.{did_you_mean(site, members)}",
                hint=f"sites: {', '.join(members) or 'none'}",
            )
        changed = change(members[site])
        if changed == members[site]:
            return False
        lists.save(folder.path, {**members, site: changed})
        return True
