"""A coordinator's folder, `federations/NAME/`, 0700: the authority, the server's kit, the list of members.

federation.toml     name, host, ports, days
authority/          rootCA.pem, rootCA.key: who has the key can make members; best kept elsewhere between enrolments
server/             the kit of NVFlare's server: startup/, local/
members.json        members.py
enrolment.jsonl     what happened: invited, enrolled, renewed, removed, refused
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import Field, ValidationError

from shepherd.errors import ResourceError, UsageError
from shepherd.federation.cards import NAME, Document
from shepherd.federation.enrolment import members as lists
from shepherd.federation.enrolment.authority import (
    AUTHORITY,
    AUTHORITY_KEY,
    dates_of,
    fingerprint,
    is_issued_by,
    is_pair,
    issue,
    make_authority,
    make_request,
)
from shepherd.federation.enrolment.invitation import Host, Port
from shepherd.federation.enrolment.members import RENEWABLE, Member, now
from shepherd.federation.enrolment.names import check_host
from shepherd.federation.transports.kits import SERVER, write_server_kit
from shepherd.store.disk import PRIVATE, TEMPORARY, discard, make_folders, remove_tree, sweep, temporary, write_whole
from shepherd.store.lines import line_of
from shepherd.store.lock import locked

SETTINGS, LOG = "federation.toml", "enrolment.jsonl"
IDENTITY = "identity"
"""A key with its certificate, on the way to the kit: the next process installs what an interrupted one left."""
KIT_FILES = {"server": ("server.key", "server.crt"), "client": ("client.key", "client.crt")}


class Settings(Document):
    """`federation.toml`."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = Field(pattern=NAME)
    host: Host
    port: Port
    enrolment_port: Port
    certificate_days: int = Field(90, ge=1, le=3650)
    """How long a site's certificate and the server's are valid."""
    authority_days: int = Field(3650, ge=1, le=7300)


class FederationFolder:
    """A federation that was made by `new_federation`. Raises UsageError where there is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = _read_settings(self.path / SETTINGS)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def kit(self) -> Path:
        return self.path / "server"

    @property
    def authority(self) -> Path:
        return self.path / "authority"

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, PEM."""
        try:
            return (self.authority / AUTHORITY).read_bytes()
        except OSError as error:
            raise ResourceError(
                f"{self.authority / AUTHORITY} cannot be read: {error.strerror}",
                hint="restore the folder from its backup",
            ) from None

    @property
    def fingerprint(self) -> str:
        """The sha256 of the authority's certificate: which federation this is, wherever its folder lies."""
        return fingerprint(self.certificate)

    @property
    def members(self) -> Mapping[str, Member]:
        """The sites by name, as they are now."""
        return lists.load(self.path)

    def allowed(self) -> frozenset[str]:
        """The names that may connect, as they are now: every other one is refused, with any certificate."""
        return frozenset(name for name, member in self.members.items() if member.state == "member")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The only writer of the list of members, for the moment of a change: a run does not hold it."""
        with alone_in(self.authority, patience=30.0):
            yield

    def record(self, event: str, **facts: object) -> None:
        """Add a line to the log of the enrolment."""
        PRIVATE.append(self.path / LOG, line_of({"at": now().isoformat(timespec="seconds"), "event": event, **facts}))

    def prepare(self) -> None:
        """Make the server's kit ready to start: a certificate with time left, and NVFlare's files. Call it before each
        start of the server. Raises ResourceError where a new certificate is due and the authority's key is away, and
        UsageError where the host has the name of a site."""
        with self.lock():
            self._prepare()

    def _prepare(self) -> None:
        sweep(PRIVATE, self.path)
        sweep(PRIVATE, self.authority)
        check_host(self.settings.host, self.members, self.path / SETTINGS)
        startup = self.kit / "startup"
        rest = _time_left(startup / "server.crt", self.certificate)
        away = not (self.authority / AUTHORITY_KEY).is_file()
        # With the key away, a certificate that is still valid does.
        if (rest <= 0 if away else rest <= RENEWABLE) and not (self.path / IDENTITY).exists():
            _make_identity(self.path, self.settings, self.authority)
        install(self.path, startup, "server", self.certificate)
        discard(PRIVATE, self.path / IDENTITY)
        write_server_kit(self.kit, federation=self.name, host=self.settings.host, port=self.settings.port)


@contextmanager
def alone_in(folder: Path, patience: float = 1.0) -> Iterator[None]:
    """Hold the write lock of a folder. Raises UsageError, which names the other process, after `patience` seconds."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder, patience, PRIVATE))
        except UsageError as error:
            raise UsageError(error.message, hint="wait until it has ended, or stop it") from None
        yield


def new_federation(
    path: str | Path, *, host: str, port: int, enrolment_port: int, certificate_days: int = 90,
    authority_days: int = 3650,
) -> FederationFolder:  # fmt: skip
    """Make the authority and the server of a federation in the folder `path`, whose name is the federation's.

    It is there as a whole or not at all; a second call with the same settings completes what a first one began. Raises
    UsageError for a name, host or port that cannot be used, and for a folder that exists.
    """
    path = Path(path)
    try:
        settings = Settings(
            name=path.name, host=host, port=port, enrolment_port=enrolment_port,
            certificate_days=certificate_days, authority_days=authority_days,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"a federation cannot have the {first['loc'][0]} {first['input']!r}: {first['msg']}",
            hint="names have letters, digits and hyphens, a host is a DNS name or an IPv4 address",
        ) from None
    if port == enrolment_port:
        raise UsageError(f"port and enrolment port are both {port}", hint="give the enrolment another port")
    if path.exists():
        if not (path / SETTINGS).is_file() or _read_settings(path / SETTINGS) != settings:
            raise UsageError(f"{path} exists already", hint="choose another name, or remove the folder")
    else:
        _build(path, settings)
    folder = FederationFolder(path)
    folder.prepare()
    return folder


def _build(path: Path, settings: Settings) -> None:
    make_folders(PRIVATE, path.parent)
    pending = temporary(path)
    for former in path.parent.glob(f"{TEMPORARY}{path.name}-*"):
        remove_tree(PRIVATE, former)
    try:
        for folder in (pending, pending / "authority", pending / "server"):
            PRIVATE.make_folder(folder)
        make_authority(pending / "authority", settings.name, settings.authority_days)
        _make_identity(pending, settings, pending / "authority")
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.model_dump(by_alias=True).items())
        write_whole(PRIVATE, pending / SETTINGS, text.encode())
        lists.save(pending, {})
        PRIVATE.rename(pending, path)
        PRIVATE.sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise


def _make_identity(place: Path, settings: Settings, authority: Path) -> None:
    """A new key of the server and its certificate in `place`/identity, which is there as a whole or not at all."""
    pending = temporary(place / IDENTITY)
    PRIVATE.make_folder(pending)
    try:
        request = make_request(pending, settings.name, SERVER, [settings.host])
        days = settings.certificate_days
        certificate = issue(authority, request, federation=settings.name, name=SERVER, days=days)
        fill_identity(pending, (pending / f"{SERVER}.key").read_bytes(), certificate, place / IDENTITY)
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def fill_identity(
    pending: Path, key: bytes, certificate: bytes, target: Path, more: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Reduce a folder in the making to a key, its certificate and `more` files, and give it its name."""
    for entry in sorted(pending.iterdir()):
        remove_tree(PRIVATE, entry)
    for name, data in {"key": key, "certificate": certificate, **more}.items():
        write_whole(PRIVATE, pending / name, data)
    PRIVATE.sync_folder(pending)
    PRIVATE.rename(pending, target)
    PRIVATE.sync_folder(target.parent)


def install(place: Path, startup: Path, role: str, authority: bytes) -> None:
    """Copy the identity in `place`, if there is one, to the kit's `startup`; the caller removes it afterwards."""
    make_folders(PRIVATE, startup)
    sweep(PRIVATE, startup)
    if not (startup / AUTHORITY).is_file() or (startup / AUTHORITY).read_bytes() != authority:
        write_whole(PRIVATE, startup / AUTHORITY, authority)
    source = place / IDENTITY
    if not source.is_dir():
        return
    key, certificate = KIT_FILES[role]
    write_whole(PRIVATE, startup / key, (source / "key").read_bytes())
    write_whole(PRIVATE, startup / certificate, (source / "certificate").read_bytes())


def _time_left(certificate: Path, authority: bytes) -> float:
    """The share of its time that a certificate has left; 0 where it is not there, damaged, or of another key."""
    try:
        pem = certificate.read_bytes()
        begin, end = dates_of(pem)
        fits = is_issued_by(pem, authority) and is_pair(certificate.with_suffix(".key").read_bytes(), pem)
        return (end - now()) / (end - begin) if fits else 0.0
    except (OSError, ValueError, TypeError):
        return 0.0


def _read_settings(path: Path) -> Settings:
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(
            f"there is no federation in {path.parent}",
            hint=f"`shepherd federation new {path.parent.name}` makes one; `ls federations` shows those that are here",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its content is not that of a federation"
        raise UsageError(f"{path} cannot be read: {reason}", hint="restore it from a backup of the folder") from None
