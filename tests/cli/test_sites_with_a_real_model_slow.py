"""A federation over TLS of two sites that tune the real small model, against the simulation of its recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from federation_kits import free_port
from program_processes import Machine
from shepherd.experiment.run import run
from shepherd.experiment.sites import folders
from shepherd.experiment.sites.joining import write_site
from shepherd.experiment.sites.site_file import NewSite
from shepherd.recipe import load, to_toml
from sites import write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="federations of sites need Linux"),
]
ROWS = {"north": 14, "south": 11}
SETTINGS = (
    "model.base=smollm2-135m", "model.device=cpu", "model.dtype=float32", "data.template=auto", "data.max_length=128",
    "data.rows_per_category=0", "data.held_out_per_category=1", "partition.name=files", "federation.rounds=2",
    "federation.min_updates=2", "training.local_steps=2", "training.batch_size=4", "training.tokens_per_pass=2048",
    "run.threads=1", "evaluation.arms=base,federated", "evaluation.generate=0",
)  # fmt: skip


def test_two_sites_tune_the_real_model_for_two_rounds_to_the_bytes_of_the_simulation(tmp_path):
    rows = write_rows(tmp_path / "rows", ROWS)
    config = load(None, [f"data.source={rows}", *SETTINGS])
    place = tmp_path / "machine"
    place.mkdir()
    machine = Machine(place)
    (place / "recipe.toml").write_text(to_toml(config), encoding="utf-8")
    try:
        for site in ROWS:
            policy = {"approve": "policy", "least_group": 1}
            new = NewSite(site, str(rows / f"{site}.jsonl"), "smollm2-135m", threads=1, policy=policy)
            write_site(place / folders.SITES / site, new)
            file = place / folders.SITES / site / "site.toml"
            more = 'dtype = "float32"\ndevice = "cpu"\ntokens_per_pass = 2048\n'
            file.write_text(file.read_text().replace("threads = 1", f"{more}threads = 1"))
        ports = ("--port", free_port(), "--enrolment-port", free_port())
        assert machine.call("federation", "new", "lab", "--invite", ",".join(ROWS), *ports).returncode == 0
        sites = [machine.start("site", "join", f"{site}.invite", "--once", log=f"{site}.log") for site in ROWS]
        done = machine.start("run", "recipe.toml", "--federation", "lab", "--plain", log="run.log")
        assert done.wait(1800) == 0, (place / "run.log").read_text()
        assert [site.wait(120) for site in sites] == [0, 0]
    finally:
        machine.end()
    (made,) = (place / "runs").iterdir()
    expected = run(config, lambda event: None, tmp_path / "simulated")
    adapter = Path("adapter/adapter_model.safetensors")
    assert (made / adapter).read_bytes() == (expected.path / adapter).read_bytes()
    losses = [json.loads((folder / "summary.json").read_text())["arms"] for folder in (made, expected.path)]
    assert losses[0]["federated"]["loss"] == pytest.approx(losses[1]["federated"]["loss"], abs=1e-6)
