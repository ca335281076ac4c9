"""A process killed at any change of the disk leaves a folder in which the same call completes the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from killed_processes import each_step
from shepherd.federation.enrolment import (
    FederationFolder,
    Invitation,
    approve,
    complete,
    invite,
    membership,
    new_federation,
    remove,
    renew,
    request,
    settle,
)
from shepherd.federation.enrolment.authority import make_request
from shepherd.federation.enrolment.folder import IDENTITY
from shepherd.store.disk import PrivateDisk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is killed is forked")
Invited = Callable[..., Invitation]


@pytest.fixture
def one_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of sites are copies of one: making them takes most of the time."""
    made: dict[str, Path] = {}

    def copied(folder: Path, federation: str, name: str) -> bytes:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("made")
            make_request(made[name], federation, name)
        shutil.copytree(made[name], folder, dirs_exist_ok=True)
        return (folder / f"{name}.request.zip").read_bytes()

    monkeypatch.setattr("shepherd.federation.enrolment.place.make_request", copied)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the medium: processes end here, not the power."""
    for name in "sync", "sync_folder":
        monkeypatch.setattr(PrivateDisk, name, lambda *_: None)


def fresh(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def nothing_is_left(folder: Path) -> bool:
    return not list(folder.rglob(".tmp-*"))


def test_a_request_and_its_completion(
    federation: FederationFolder, invited: Invited, tmp_path: Path, one_key: None
) -> None:
    invitation, site, out = invited("hospital-a"), tmp_path / "site", tmp_path / "out"
    out.mkdir()
    for _ in each_step(lambda: request(invitation, site, out), lambda: shutil.rmtree(site, ignore_errors=True)):
        path = request(invitation, site, out)
        assert request(invitation, site, out).read_bytes() == path.read_bytes()
        assert nothing_is_left(site)
    signed = approve(federation, request(invitation, site, out))
    saved = tmp_path / "saved"
    fresh(site, saved)
    for _ in each_step(lambda: complete(site, signed), lambda: fresh(saved, site)):
        if (site / "enrolment" / "pending").is_dir() and not (site / "enrolment" / IDENTITY).is_dir():
            complete(site, signed)
        settle(site)
        assert membership(site).expires == federation.members["hospital-a"].expires
        assert nothing_is_left(site) and not (site / "enrolment" / "pending").exists()
        assert (site / "kit" / "startup" / "fed_client.json").stat().st_size


def test_an_invitation_an_approval_and_a_removal(
    federation: FederationFolder, invited: Invited, tmp_path: Path, one_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, site = tmp_path / "saved", tmp_path / "site"
    fresh(federation.path, saved)
    for _ in each_step(lambda: invite(federation, "hospital-a"), lambda: fresh(saved, federation.path)):
        assert invite(federation, "hospital-a")
        assert set(federation.members) == {"hospital-a"} and federation.allowed() == frozenset()
    path = request(invited("hospital-a"), site, tmp_path)
    fresh(federation.path, saved)
    answer = approve(federation, path).read_bytes()
    certificate = federation.members["hospital-a"].certificate.encode()
    monkeypatch.setattr("shepherd.federation.enrolment.desk.issue", lambda *_, **__: certificate)
    for _ in each_step(lambda: approve(federation, path), lambda: fresh(saved, federation.path)):
        assert approve(federation, path).read_bytes() == answer
        assert federation.allowed() == {"hospital-a"}
    fresh(federation.path, saved)
    for _ in each_step(lambda: remove(federation, "hospital-a"), lambda: fresh(saved, federation.path)):
        remove(federation, "hospital-a")
        assert federation.allowed() == frozenset()


def test_a_renewal_keeps_a_key_with_its_certificate(
    federation: FederationFolder, invited: Invited, tmp_path: Path, one_key: None
) -> None:
    site, saved = tmp_path / "site", tmp_path / "saved"
    complete(site, approve(federation, request(invited("hospital-a"), site, tmp_path)))
    first = membership(site).expires
    renew(federation, "hospital-a")
    signed = approve(federation, request(None, site, tmp_path))
    fresh(site, saved)
    for _ in each_step(lambda: complete(site, signed), lambda: fresh(saved, site)):
        assert membership(site).expires in (first, federation.members["hospital-a"].expires)
        if (site / "enrolment" / "pending").is_dir():
            complete(site, signed)
        assert membership(site).expires == federation.members["hospital-a"].expires


def test_a_new_federation(first_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "shepherd.federation.enrolment.folder."
    old = first_federation
    monkeypatch.setattr(place + "make_authority", lambda folder, *_: shutil.copytree(
        old / "authority", folder, dirs_exist_ok=True))  # fmt: skip
    monkeypatch.setattr(place + "make_request", lambda folder, *_: shutil.copy(
        old / "server" / "startup" / "server.key", folder / "server.key"))  # fmt: skip
    certificate = (old / "server" / "startup" / "server.crt").read_bytes()
    monkeypatch.setattr(place + "issue", lambda *_, **__: certificate)
    path = tmp_path / "federations" / "lab"

    def make() -> FederationFolder:
        return new_federation(path, host="localhost", port=7100, enrolment_port=7101)

    for _ in each_step(make, lambda: shutil.rmtree(path.parent, ignore_errors=True)):
        make()
        assert nothing_is_left(path.parent) and not (path / IDENTITY).exists()
        names = {found.name for found in (path / "server" / "startup").iterdir()}
        assert names == {"fed_server.json", "rootCA.pem", "server.crt", "server.key"}
