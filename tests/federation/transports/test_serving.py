"""What is refused before an engine starts: kits, locks, ports, systems and versions; and what a kit contains."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import sys
import threading

import pytest

from federation_kits import Kits
from network_sites import EchoSite
from shepherd.errors import ResourceError, UsageError
from shepherd.federation.transports.engine_process import check_engine
from shepherd.federation.transports.holding import hold
from shepherd.federation.transports.kits import FRAME, write_limits
from shepherd.federation.transports.serving import _enable, serve_federation, serve_site
from shepherd.store.disk import PrivateDisk


@pytest.fixture
def kits(tmp_path):
    return Kits(tmp_path)


def test_nothing_in_a_kit_allows_a_job_a_shell_or_a_class_of_others(kits):
    for kit in (kits.server(), kits.site("a")):
        resources = json.loads((kit / "local" / "resources.json").read_text())
        assert [component["id"] for component in resources["components"]] == ["shepherd"]
        assert resources["class_list_enforcement_mode"] == "enforce"
        assert all(name.startswith("shepherd.") for name in resources["class_allow_list"])
        assert resources["allow_log_streaming"] is False
        roles = json.loads((kit / "local" / "authorization.json").read_text())["permissions"]
        assert set(roles) == {"project_admin", "org_admin", "lead", "member"}
        assert {right for rights in roles.values() for right in rights.values()} == {"none"}
        assert {"submit_job", "shell_commands", "byoc"} <= roles["project_admin"].keys()
    server = json.loads((kits.folder / "server" / "startup" / "fed_server.json").read_text())["servers"][0]
    assert server["connection_security"] == "mtls"
    assert server["admin_host"] == "127.0.0.1"


def test_the_limits_of_the_wire_are_those_of_the_run_and_the_files_are_private(kits):
    kit = kits.server()
    (kit / "local" / "comm_config.json").touch(mode=0o644)
    write_limits(kit, 12345)
    limits = json.loads((kit / "local" / "comm_config.json").read_text())
    assert limits["streaming_max_blob_size"] == 12345
    assert ["grpc.max_receive_message_length", FRAME] in limits["grpc"]["options"]
    assert limits["internal"]["resources"]["listen_host"] == "127.0.0.1"
    assert {path.stat().st_mode & 0o777 for path in (kit / "local").iterdir()} == {0o600}


def test_one_process_has_a_kit_and_names_the_one_before_only_in_its_own_folder(kits):
    kit = kits.site("a")
    with hold(kit, "session-one") as former:
        assert former == ""
        with pytest.raises(UsageError, match="is in use by process"), hold(kit, "two"):
            pass
    copies = kits.folder / "copies"
    copies.mkdir()
    shutil.copytree(kit, copies / "a")
    assert not [file for file in (copies / "a").rglob("*") if file.is_file() and b"session-one" in file.read_bytes()]
    note = kits.folder / "a-session.json"
    shutil.copy(note, copies)  # as with the whole folder of a site
    with hold(copies / "a", "three") as former:
        assert former == ""
    with hold(kit, "two") as former:
        assert former == "session-one"
    assert note.stat().st_mode & 0o777 == 0o600
    note.write_text("[]")
    with hold(kit, "four") as former:
        assert former == ""


def test_no_file_of_the_coordinators_kit_has_a_session(kits):
    with hold(kits.server()) as former:
        assert former == ""
    assert not list(kits.folder.rglob("*session*"))


def test_a_folder_without_a_kit_or_with_a_damaged_one_is_refused(kits, tmp_path):
    with pytest.raises(UsageError, match="is not a kit of a federation"), serve_federation(tmp_path, limit=1):
        pass
    kit = kits.site("a")
    (kit / "startup" / "fed_client.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        serve_site(kit, EchoSite(), stop=threading.Event())


def test_a_port_that_is_taken_is_refused(kits):
    kit = kits.server()
    with (
        socket.create_server(("127.0.0.1", kits.port)),
        pytest.raises(ResourceError, match=f"port {kits.port}: Address already in use"),
        serve_federation(kit, limit=1),
    ):
        pass


@pytest.mark.parametrize(
    "times, why",
    [({"days": -1}, "own certificate expired on"), ({"days": 3, "begins": 2}, "own certificate is not valid yet")],
    ids=["expired", "not valid yet"],
)
def test_a_coordinator_whose_own_certificate_is_out_of_its_time_is_refused_with_the_reason(kits, times, why):
    kit = kits.server()
    kits.authority.put(kit, "server", server=True, **times)
    with pytest.raises(UsageError, match=why), serve_federation(kit, limit=1):
        pass


def test_another_system_or_version_and_a_missing_engine_are_refused(monkeypatch):
    check_engine()
    versions = {"nvflare": "2.10.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UsageError, match=r"nvflare 2\.10\.0 is installed, and sites need 2\.9\.x"):
        check_engine()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UsageError, match="needs the optional package 'nvflare'"):
        check_engine()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UsageError, match="needs Linux"):
        check_engine()


def test_a_member_that_was_removed_once_is_let_in_by_the_list(tmp_path):
    path = tmp_path / "disabled_clients.json"
    _enable(tmp_path, {"a"})
    assert not path.exists()
    path.write_text(json.dumps({"disabled_clients": ["a", "b"]}))
    _enable(tmp_path, {"a"})
    assert json.loads(path.read_text()) == {"disabled_clients": ["b"]}


def test_an_end_in_mid_write_leaves_the_list_of_the_removed_which_the_engine_needs_to_start(tmp_path, monkeypatch):
    path = tmp_path / "disabled_clients.json"
    path.write_text('{"disabled_clients": ["a", "b"]}')

    def ends(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PrivateDisk, "sync", ends)
    with pytest.raises(KeyboardInterrupt):
        _enable(tmp_path, {"a"})
    assert json.loads(path.read_text()) == {"disabled_clients": ["a", "b"]}
