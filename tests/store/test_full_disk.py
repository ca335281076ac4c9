"""A disk that fills up ends a run with a sentence; nothing half written is seen, and with space it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shepherd.recipe import to_toml

HELPERS = Path(__file__).parents[1] / "helpers"
SETTINGS = (
    "federation.rounds=3", "evaluation.arms=base,federated,centralised", "evaluation.generate=1",
    "evaluation.max_new_tokens=2", "data.held_out_per_category=1",
)  # fmt: skip
SAID = {"limit": ("a file may not grow further", "File too large"), "volume": ("no space left on the disk",)}
# What does not fit: partition.json; the adapter's tokenizer; the report, when all else is written.
LIMITS, VOLUMES = [1 << 10, 12 << 10, 64 << 10], [128 << 10]


@cache
def may_mount() -> bool:
    try:
        done = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def fill(config, folder: Path, how: str, sizes: list[int]) -> dict:
    recipe = folder / "recipe.toml"
    recipe.write_text(to_toml(config))
    spec = {"recipe": str(recipe), "folder": str(folder), "how": how, "sizes": sizes}
    command = [sys.executable, str(HELPERS / "full_disk_runs.py"), json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    unshare = ["unshare", "-Urm"] if how == "volume" else []
    done = subprocess.run([*unshare, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX systems do")
@pytest.mark.parametrize(
    ("how", "sizes"),
    [
        ("limit", LIMITS),
        ("volume", VOLUMES),
        pytest.param("limit", [700 * 13**i // 10**i for i in range(24)], marks=pytest.mark.slow),
        pytest.param("volume", list(range(16 << 10, 600 << 10, 20 << 10)), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_ends_a_run_with_a_sentence_and_with_space_it_ends_with_the_same_bytes(
    small_config, tmp_path, how, sizes
):
    if how == "volume" and not may_mount():
        pytest.skip("no volume may be mounted here")
    result = fill(small_config(*SETTINGS), tmp_path, how, sizes)
    places = set()
    for run in result["runs"]:
        said = run["said"]
        if run["status"] == 0:
            assert run["size"] > 100_000
            continue
        assert run["status"] == 5, (run["size"], said)
        assert "\nhint: " in said, (run["size"], said)
        assert any(f"error: {reason}" in said for reason in SAID[how]), said
        assert "Traceback" not in said + run["then"]
        assert run["broken"] == [], run["size"]
        unfinished = [name for name in run["left"] if any(part in name for part in (".tmp-", ".new", ".part", ".old-"))]
        assert unfinished == []
        assert "report.html" not in run["left"]
        if "identity.json" in run["left"]:
            assert "shepherd resume " in said
        assert run["again"] == 0, run["then"]
        assert run["report"], run["then"]
        assert run["ending"] == result["whole"], run["size"]
        places.add(said.split("error: ")[1].split(" was not written")[0].rsplit("/", 1)[-1])
    print(json.dumps([(run["size"], run["status"], run["said"].split("error: ")[-1][:160]) for run in result["runs"]]))
    assert len(places) >= min(3, len(sizes)), places
