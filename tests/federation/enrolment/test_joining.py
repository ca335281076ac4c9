"""A site becomes a member, over the network and by files: its key stays, and each machine keeps what it needs."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from shepherd.errors import NetworkError, UsageError
from shepherd.federation.enrolment import (
    FederationFolder,
    Invitation,
    approve,
    complete,
    enrol,
    invite,
    listener,
    membership,
    remove,
    renew,
    renew_site,
    request,
)
from shepherd.federation.enrolment import members as lists

Invited = Callable[..., Invitation]


@pytest.fixture
def member(federation: FederationFolder, invited: Invited, tmp_path: Path) -> Path:
    """The folder of a member, hospital-a, that was enrolled by files."""
    site = tmp_path / "sites" / "hospital-a"
    path = request(invited("hospital-a"), site, tmp_path)
    complete(site, approve(federation, path))
    return site


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_site_enrols_over_the_network_and_the_port_is_closed_again(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    invitation, site = invited("hospital-a"), tmp_path / "sites" / "hospital-a"
    lines: list[str] = []
    with listener(federation, lines.append) as door:
        assert door.open
        expires = enrol(invitation, site, 20, lines.append)
        assert expires == federation.members["hospital-a"].expires == membership(site).expires
        closed = threading.Event()
        while door.open and not closed.wait(0.05):
            pass
    assert lines == [
        f"Enrolment is open at localhost:{federation.settings.enrolment_port}.",
        "Enrolment: hospital-a has its certificate, from 127.0.0.1.",
        "Enrolment is closed: nobody is awaited.",
    ]
    assert federation.allowed() == {"hospital-a"}
    assert enrol(invitation, site, 0, lines.append) == expires
    assert lines[-1] == "hospital-a is a member of lab already"


def test_keys_and_codes_stay_and_files_are_their_owners(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    invitation, site = invited("hospital-a"), tmp_path / "sites" / "hospital-a"
    out = tmp_path / "out"
    out.mkdir()
    path = request(invitation, site, out)
    signed = approve(federation, path)
    complete(site, signed)
    key = (site / "kit" / "startup" / "client.key").read_bytes()
    assert b"PRIVATE KEY" in key
    coordinator = all_bytes(federation.path) + all_bytes(out)
    assert key.splitlines()[5] not in coordinator
    assert invitation.code.encode() not in coordinator + all_bytes(site)
    assert b"PRIVATE KEY" not in all_bytes(out)
    authority = (federation.path / "authority" / "rootCA.key").read_bytes()
    assert authority.splitlines()[5] not in all_bytes(site) + all_bytes(out) + all_bytes(federation.kit)
    for folder in (federation.path, site):
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        ours = {path for path in modes if path.suffix in (".key", ".crt", ".pem", ".json", ".toml", ".jsonl")}
        assert {path.name: oct(modes[path]) for path in ours
                if modes[path] != 0o600 and "kit" not in path.parts and "server" not in path.parts} == {}  # fmt: skip
        assert all(modes[path] == 0o600 for path in ours if path.suffix == ".key")


def test_a_member_renews_by_files_and_over_the_network_with_a_new_key_each(
    federation: FederationFolder, invited: Invited, member: Path, tmp_path: Path
) -> None:
    key = member / "kit" / "startup" / "client.key"
    first, keys = federation.members["hospital-a"], [key.read_bytes()]
    path = request(None, member, tmp_path)
    with pytest.raises(UsageError, match="a renewal that is not due"):
        approve(federation, path)
    renew(federation, "hospital-a")
    complete(member, approve(federation, path))
    keys.append(key.read_bytes())
    renew(federation, "hospital-a")
    lines: list[str] = []
    with listener(federation, lines.append):
        assert renew_site(member, lines.append) == membership(member).expires
    keys.append(key.read_bytes())
    assert len(set(keys)) == 3
    last = federation.members["hospital-a"]
    assert last.state == "member" and last.serial != first.serial and last.since == first.since
    invited("hospital-b")  # so that the port is open
    with pytest.raises(UsageError, match="too much time left to be renewed"), listener(federation, lines.append):
        renew_site(member, lines.append, wait=0)


@pytest.mark.parametrize("days, due", [(59, False), (61, True), (90 + 13, True), (90 + 15, False)])
def test_a_renewal_is_due_in_the_last_third_and_two_weeks_after(
    federation: FederationFolder, member: Path, days: int, due: bool
) -> None:
    found = federation.members["hospital-a"]
    assert found.renewable(found.issued + timedelta(days=days)) is due
    assert found.awaited(found.issued + timedelta(days=days)) is due


def test_a_removed_site_is_refused_by_name_until_its_certificate_has_expired(
    federation: FederationFolder, member: Path, invited: Invited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewal = request(None, member, tmp_path)
    remove(federation, "hospital-a")
    assert federation.allowed() == FederationFolder(federation.path).allowed() == frozenset()
    with pytest.raises(UsageError, match="that was removed"):
        approve(federation, renewal)
    with pytest.raises(UsageError, match=r"not free before .*would let it in again"):
        invited("hospital-a")
    assert invite(federation, "hospital-a", again=True)
    remove(federation, "hospital-a")
    later = lists.now() + timedelta(days=91)
    monkeypatch.setattr("shepherd.federation.enrolment.desk.now", lambda: later)
    assert invited("hospital-a").site == "hospital-a"


def test_a_lost_answer_is_repeated_for_the_same_request_only(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    invitation, site = invited("hospital-a"), tmp_path / "site"
    path = request(invitation, site, tmp_path)
    first = approve(federation, path).read_bytes()
    assert approve(federation, path).read_bytes() == first
    assert [json.loads(line)["event"] for line in (federation.path / "enrolment.jsonl").read_text().splitlines()] == [
        "invited", "enrolled",
    ]  # fmt: skip
    other = request(invitation, tmp_path / "other", tmp_path)
    with pytest.raises(UsageError, match="an invitation that was used before"):
        approve(federation, other)


def test_nobody_there_is_said_at_once_and_is_an_error_after_the_wait(invited: Invited, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(NetworkError, match="nothing listens at localhost"):
        enrol(invited("hospital-a"), tmp_path / "site", 0.2, lines.append)
    assert len(lines) == 1 and lines[0].startswith("No answer yet: nothing listens at localhost:")
