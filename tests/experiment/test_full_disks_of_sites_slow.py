"""Disks that fill up in a run over the network: each side says so, nothing is lost, and with space the run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux"),
]
PROGRAM = Path(__file__).parents[1] / "helpers" / "full_disks_of_sites.py"
UNSHARE = ["unshare", "-Urm"]
REASON = {"volume": "No space left on device", "limit": "File too large"}
SAID = {"volume": "no space left on the disk", "limit": "a file may not grow further"}


def may_mount() -> bool:
    done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize("how", ["volume", "limit"])
def test_a_full_disk_of_a_site_or_of_the_coordinator_costs_waiting_and_no_bit(how, tmp_path):
    if how == "volume" and not may_mount():
        pytest.skip("no volume may be mounted here")
    command = [sys.executable, str(PROGRAM), json.dumps({"folder": str(tmp_path), "how": how})]
    ran = subprocess.run([*(UNSHARE if how == "volume" else []), *command], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout.splitlines()[-1])

    assert any("failed: cannot write" in line and REASON[how] in line for line in done["site"]), done["site"]
    assert done["waits"], "the coordinator waits for a site that is connected"
    assert done["status"] == 5, done["coordinator"]
    assert f"error: {SAID[how]}" in done["coordinator"] and "Traceback" not in done["coordinator"]
    assert f"rounds up to {done['committed']} are committed and intact" in done["coordinator"]
    assert "\nhint: " in done["coordinator"] and "shepherd resume " in done["coordinator"]
    assert done["broken"] == []
    assert done["again"] == 0
    assert done["sites"] == {"north": 0, "south": 0}, "no site had to be started again"
    assert done["ending"] == done["whole"]
