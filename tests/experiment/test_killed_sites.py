"""Processes of a federation over the network that are killed, come late, leave and are ended: the same adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")
PROGRAM = Path(__file__).parents[1] / "helpers" / "kill_sites.py"
PLAN = [["trainer", "work"], ["site engine", "work"], ["coordinator", "upload"], ["server engine", "work"],
        ["site", "upload"]]  # fmt: skip


def kill_sites(folder: Path, **spec: object) -> dict:
    told = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps({"folder": str(folder), **spec})], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return kill_sites(tmp_path_factory.mktemp("sites"), rounds=6, plan=PLAN, visits=True)


def test_each_process_killed_in_mid_round_or_between_upload_and_commit_leaves_the_adapter_as_it_is(done):
    (run,) = done["runs"]
    assert [kill[:2] for kill in run["kills"]] == PLAN
    assert all(when == phase for _, when, _, phase in run["kills"])
    assert run["ending"] == done["whole"]
    assert run["ended"] == [], "nobody but the killer ends a process"
    assert run["orphans"] == []


def test_a_late_site_joins_the_running_federation_and_one_that_was_away_is_in_a_round_again(done):
    assert done["visits"]["left"] == 0
    assert done["visits"]["again"] == [], "no process ended but by a signal"


def test_sigterm_ends_everything_in_order(done):
    visits = done["visits"]
    assert (visits["ended"], visits["state"]) == (143, "stopped")
    assert visits["at work"] == ["north", "south"], "sites wait for their coordinator"
    assert visits["sites ended"] == [0, 0]
    assert visits["orphans"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_random_kills_leave_the_adapter_as_it_is(tmp_path):
    done = kill_sites(tmp_path, rounds=25, kills=100, seed=1)
    kills = [kill for run in done["runs"] for kill in run["kills"]]
    assert len(kills) == 100
    assert min(Counter(victim for victim, *_ in kills).values()) >= 10
    assert sum(phase == "upload" for *_, phase in kills) >= 10
    assert [run["ending"] for run in done["runs"]] == [done["whole"]] * len(done["runs"])
    assert [run["orphans"] for run in done["runs"]] == [[]] * len(done["runs"])
