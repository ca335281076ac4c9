"""One federation for all tests of the enrolment, copied for each. Only it is made by NVFlare's tool in a
process; for the tests the tool runs in theirs, which saves the start of Python for each call."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from enrolment_tool import run_here
from federation_kits import free_port
from shepherd.federation.enrolment import FederationFolder, Invitation, invite, new_federation, read_invitation


@pytest.fixture(autouse=True)
def tool_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shepherd.federation.enrolment.authority.subprocess", SimpleNamespace(
        run=run_here, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired))  # fmt: skip


@pytest.fixture(scope="session")
def first_federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coordinator") / "federations" / "lab"
    return new_federation(path, host="localhost", port=7100, enrolment_port=7101).path


@pytest.fixture
def federation(first_federation: Path, tmp_path: Path) -> FederationFolder:
    """A federation without sites, with a free port for enrolments."""
    path = tmp_path / "federations" / "lab"
    shutil.copytree(first_federation, path)
    settings = path / "federation.toml"
    settings.write_text(settings.read_text().replace("7101", str(free_port())))
    return FederationFolder(path)


@pytest.fixture
def invited(federation: FederationFolder, tmp_path: Path) -> Callable[..., Invitation]:
    """A new invitation of a site, read from its file."""

    def new(site: str, days: float = 7) -> Invitation:
        path = tmp_path / f"{site}.invite"
        path.write_bytes(invite(federation, site, days))
        return read_invitation(path)

    return new
