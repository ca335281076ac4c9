"""A site's folder, so far as its membership goes: the key, the pending request, the certificate, the kit.

    enrolment/address.toml    the federation whose member the site is
    enrolment/pending/        a key without a certificate, and the request that is sent until it is answered
    enrolment/identity/       a key with its certificate, until both are in the kit
    kit/                      what NVFlare's client starts from: startup/, local/

Each of the folders appears as a whole. A process that ends between two of them leaves what the same call goes on with.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from shepherd.errors import UsageError
from shepherd.federation.enrolment.authority import (
    dates_of,
    is_issued_by,
    is_pair,
    is_signed,
    make_request,
    names_of,
    sign,
)
from shepherd.federation.enrolment.folder import IDENTITY, KIT_FILES, alone_in, fill_identity, install
from shepherd.federation.enrolment.invitation import (
    Address,
    Invitation,
    proof_of,
    read_address,
    verifier_of,
    write_address,
)
from shepherd.federation.enrolment.members import RENEWABLE, RENEWABLE_AFTER, now
from shepherd.federation.enrolment.refusals import Refused
from shepherd.federation.enrolment.requests import (
    Answer,
    Request,
    decoded,
    encoded,
    read,
    renewal_message,
    to_bytes,
)
from shepherd.federation.transports.kits import write_site_kit
from shepherd.store.disk import PRIVATE, discard, make_folders, remove_tree, sweep, temporary, write_whole

ENROLMENT, PENDING, ADDRESS = "enrolment", "pending", "address.toml"
_TITLE = "The federation of which this site is a member."


@dataclass(frozen=True)
class Membership:
    """A site's place in a federation, as its folder has it."""

    address: Address
    kit: Path
    begins: datetime
    expires: datetime
    """From when until when its certificate is valid."""

    @property
    def due(self) -> datetime:
        """From when on it can be renewed."""
        return self.expires - (self.expires - self.begins) * RENEWABLE

    @property
    def stage(self) -> Literal["early", "due", "expired", "late"]:
        """early, late: the coordinator has to allow a renewal; expired: no connection, and a renewal is granted."""
        at = now()
        if at < self.due:
            return "early"
        if at < self.expires:
            return "due"
        return "expired" if at < self.expires + RENEWABLE_AFTER else "late"


def membership(site_folder: str | Path) -> Membership | None:
    """The federation of which the site in this folder is a member, or None. Raises UsageError for a damaged folder."""
    folder = Path(site_folder)
    if (folder / ENROLMENT / IDENTITY).is_dir():
        settle(folder)
    return _membership(folder)


def _membership(folder: Path) -> Membership | None:
    place, kit = folder / ENROLMENT, folder / "kit"
    if not (place / ADDRESS).is_file():
        return None
    address = read_address(place / ADDRESS)
    startup = kit / "startup"
    try:
        key, pem = ((startup / name).read_bytes() for name in KIT_FILES["client"])
        if not is_pair(key, pem) or not is_issued_by(pem, address.authority.encode()):
            raise ValueError
        begins, expires = dates_of(pem)
    except (OSError, ValueError, TypeError):
        raise UsageError(
            f"the key and the certificate in {startup} do not belong together, or not to {address.federation}",
            hint="restore the folder of the site from its backup",
        ) from None
    return Membership(address, kit, begins, expires)


def renewal_due(site_folder: str | Path) -> bool:
    """Whether the certificate is in the last third of its time, or has expired."""
    found = membership(site_folder)
    return found is not None and found.stage != "early"


def settle(site_folder: str | Path) -> None:
    """Make the kit of a member ready to start, after an interruption too. Call it before each start of the site."""
    with settled(site_folder) as folder:
        if (folder / ENROLMENT / ADDRESS).is_file():
            _write_kit(folder, read_address(folder / ENROLMENT / ADDRESS))


def is_unsettled(site_folder: str | Path) -> bool:
    """Whether a new key and certificate lie ready and are not, or not both, in the kit: `settle` completes them."""
    return (Path(site_folder) / ENROLMENT / IDENTITY).is_dir()


@contextmanager
def settled(site_folder: str | Path) -> Iterator[Path]:
    """The site's folder, settled, with no other process at its enrolment."""
    folder = Path(site_folder)
    make_folders(PRIVATE, folder / ENROLMENT)
    with alone_in(folder / ENROLMENT):
        sweep(PRIVATE, folder / ENROLMENT)
        _settle(folder)
        yield folder


def _settle(folder: Path) -> None:
    place = folder / ENROLMENT
    source = place / IDENTITY
    if not source.is_dir():
        return
    address = read_address(source / ADDRESS)
    install(place, folder / "kit" / "startup", "client", address.authority.encode())
    _write_kit(folder, address)
    write_whole(PRIVATE, place / ADDRESS, (source / ADDRESS).read_bytes())
    discard(PRIVATE, place / PENDING)  # by its name first: what is left of a folder must not look like one
    discard(PRIVATE, source)


def _write_kit(folder: Path, address: Address) -> None:
    write_site_kit(
        folder / "kit", federation=address.federation, site=address.site, host=address.host, port=address.port
    )


def member_of(folder: Path, invitation: Invitation) -> Membership | None:
    """The membership that the invitation is for. Raises UsageError where it is another, or the invitation expired."""
    found = _membership(folder)
    if found is not None and found.address.fingerprint != invitation.fingerprint:
        raise UsageError(
            f"{folder} is the folder of {found.address.site} in another federation, {found.address.federation}",
            hint="give this federation another folder, or leave the other one first; nothing was changed",
        )
    if found is not None and found.address.site != invitation.site:
        raise UsageError(
            f"{folder} is the folder of {found.address.site}, and the invitation is for {invitation.site}",
            hint="give each site its folder",
        )
    if found is not None and now() < found.expires:
        return found
    if now() >= invitation.expires:
        raise UsageError(
            f"the invitation expired at {invitation.expires:%Y-%m-%d %H:%M} UTC; this machine's clock says "
            f"{now():%Y-%m-%d %H:%M}",
            hint="get a new one from the coordinator (`shepherd federation invite`)",
        )
    return None


def present(folder: Path) -> Membership:
    found = _membership(folder)
    if found is None:
        raise UsageError(f"{folder} is not the folder of a member", hint="`shepherd site join` makes one")
    return found


def pending(folder: Path, invitation: Invitation) -> bytes:
    """The request for an enrolment, of the present key if it is for this invitation."""
    verifier = verifier_of(invitation.code)

    def fits(made: Request) -> bool:
        return (made.kind, made.site, made.fingerprint, made.proof) == (
            "enrol", invitation.site, invitation.fingerprint, proof_of(verifier, made.zip),
        )  # fmt: skip

    return _made(folder, fits) or _make(folder, invitation.address, "enrol", lambda data: proof_of(verifier, data))


def pending_renewal(folder: Path) -> bytes:
    """The request for a renewal: by a new key, signed by the present one."""
    found = present(folder)
    key, pem = ((found.kit / "startup" / name).read_bytes() for name in KIT_FILES["client"])

    def fits(made: Request) -> bool:
        return made.kind == "renew" and is_signed(pem, renewal_message(made.zip), decoded(made.proof))

    return _made(folder, fits) or _make(
        folder, found.address, "renew", lambda data: encoded(sign(key, renewal_message(data)))
    )


def _made(folder: Path, fits: Callable[[Request], bool]) -> bytes | None:
    with suppress(OSError, Refused):
        data = (folder / ENROLMENT / PENDING / "request").read_bytes()
        return data if fits(read(Request, data)) else None
    return None


def _make(folder: Path, address: Address, kind: str, proof: Callable[[bytes], str]) -> bytes:
    target = folder / ENROLMENT / PENDING
    making = temporary(target.with_name("request"))
    PRIVATE.make_folder(making)
    try:
        signing = make_request(making, address.federation, address.site)
        data = to_bytes(
            Request.model_validate(
                {"kind": kind, "federation": address.federation, "fingerprint": address.fingerprint,
                 "site": address.site, "request": encoded(signing), "proof": proof(signing)}
            )
        )  # fmt: skip
        key = (making / f"{address.site}.key").read_bytes()
        for entry in sorted(making.iterdir()):
            remove_tree(PRIVATE, entry)
        for name, content in ("key", key), ("request", data), (ADDRESS, write_address(address, _TITLE)):
            write_whole(PRIVATE, making / name, content)
        discard(PRIVATE, target)
        PRIVATE.rename(making, target)
        PRIVATE.sync_folder(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return data


def accept(folder: Path, data: bytes) -> datetime:
    """Install the certificate of an answer. Raises UsageError unless it is the one that was requested."""
    pending = folder / ENROLMENT / PENDING
    address, key = read_address(pending / ADDRESS), (pending / "key").read_bytes()
    problem = "it is not the answer to a request"
    with suppress(Refused, ValueError):
        answer = read(Answer, data)
        pem = answer.certificate.encode()
        problem = _problem(answer, address, key, pem)
        if not problem:
            making = temporary(folder / ENROLMENT / IDENTITY)
            PRIVATE.make_folder(making)
            more = {ADDRESS: (pending / ADDRESS).read_bytes()}
            fill_identity(making, key, pem, folder / ENROLMENT / IDENTITY, more)
            _settle(folder)
            return dates_of(pem)[1]
    raise UsageError(
        f"the coordinator's answer is not used: {problem}", hint="nothing was changed; ask the coordinator"
    )


def _problem(answer: Answer, address: Address, key: bytes, pem: bytes) -> str:
    """What is wrong with a certificate that was issued, or an empty string. Raises ValueError where it is damaged."""
    if not is_issued_by(pem, address.authority.encode()):
        return "its certificate is not from the invitation's authority"
    if answer.site != address.site or names_of(pem) != [address.site]:
        return f"its certificate is for another name than {address.site}"
    if not is_pair(key, pem):
        return "its certificate is for another key than this site's"
    if now() >= dates_of(pem)[1]:
        return "its certificate has expired"
    return ""
