"""A private federation over TLS by its commands: both units, repeatable and secret noise, and a site that refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from federation_kits import free_port
from program_processes import PATIENCE, Machine
from shepherd.experiment.run import run
from shepherd.experiment.sites import folders
from shepherd.recipe import to_toml
from shepherd.updates.privacy.ledger import read_releases
from sites import CLIENT, EXAMPLE, SETTINGS, write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="federations of sites need Linux"),
]
ROWS = {"north": 30, "south": 20}
ADAPTER = Path("adapter/adapter_model.safetensors")
SITE = 'threads = 1\ndtype = "float32"\ndevice = "cpu"\ntokens_per_pass = 512\n'


def test_both_units_of_privacy_by_the_commands(small_config, model_folder, tmp_path):
    rows, own = write_rows(tmp_path / "rows", ROWS), write_rows(tmp_path / "own", {"own": 4}) / "own.jsonl"
    (tmp_path / "machine").mkdir()
    machine = Machine(tmp_path / "machine")

    def recipe(name, *settings):
        given = (f"data.source={rows}", f"data.held_out_source={own}", *SETTINGS, f"run.name={name}", *settings)
        config = small_config(*given)
        (machine.place / f"{name}.toml").write_text(to_toml(config), encoding="utf-8")
        return config

    def serve(site):
        return machine.start("site", "start", "--site", site, "--yes", log=f"{site}.log")

    def over_sites(name):
        done = machine.call("run", f"{name}.toml", "--federation", "lab", "--plain")
        assert done.returncode == 0, done.stderr
        return machine.place / "runs" / name, done.stdout + done.stderr

    try:
        ports = ("--port", free_port(), "--enrolment-port", free_port())
        assert machine.call("federation", "new", "lab", "--invite", ",".join(ROWS), *ports).returncode == 0
        joining = [
            machine.start("site", "join", f"{site}.invite", "--data", rows / f"{site}.jsonl", "--base",
                          model_folder("llama"), "--yes", log=f"{site}.log")
            for site in ROWS
        ]  # fmt: skip
        config = recipe("client-test", *CLIENT, "privacy.repeatable_noise=true")
        first = machine.start("run", "client-test.toml", "--federation", "lab", "--plain", log="refused.log")
        machine.text("refused.log", "north: refused: fewer sites in a round than the policy allows")
        for process in (first, *joining):
            process.terminate()
            assert process.wait(PATIENCE) == 143
        for site in ROWS:
            file = machine.place / folders.SITES / site / "site.toml"
            text = (
                file.read_text()
                .replace("least_cohort = 2", "least_cohort = 1")
                .replace("rows_round = 8", "rows_round = 1")
            )
            file.write_text("".join(SITE if line.startswith("threads =") else line for line in text.splitlines(True)))
        serving = [serve(site) for site in ROWS]
        assert machine.call("resume", "runs/client-test", "--plain").returncode == 0
        made = machine.place / "runs" / "client-test"
        expected = run(config, lambda event: None, tmp_path / "simulated")
        assert (made / ADAPTER).read_bytes() == (expected.path / ADAPTER).read_bytes()
        assert json.loads((made / "privacy.json").read_text())["private"] is False

        config = recipe("example-test", *EXAMPLE, "privacy.delta=0.02", "privacy.repeatable_noise=true")
        made, said = over_sites("example-test")
        expected = run(config, lambda event: None, tmp_path / "simulated")
        assert (made / ADAPTER).read_bytes() == (expected.path / ADAPTER).read_bytes()
        assert "Not private: cohorts and noise follow from run.seed" in " ".join(said.split())
        recipe("example", *EXAMPLE, "privacy.delta=0.02")
        made, said = over_sites("example")
        assert (made / ADAPTER).read_bytes() != (expected.path / ADAPTER).read_bytes()
        assert "Differential privacy: ε = " in said and "Not private" not in said
        (run_id,) = {json.loads((made / "private" / "card.json").read_text())["run"]}
        assert len((machine.place / "sites/north/runs" / run_id / "ledger.jsonl").read_text().splitlines()) == 3
        report = machine.call("report", "sites/north").stdout
        assert "the site, repeatable: not private" in report and "the coordinator, repeatable: not private" in report

        serving[0].terminate()
        assert serving[0].wait(PATIENCE) == 143
        file = machine.place / "sites/north/site.toml"
        file.write_text(file.read_text().replace("epsilon_max = 0.0", "epsilon_max = 0.1").replace('"policy"', '"ask"'))
        serve("north")
        recipe("client", *CLIENT)
        last = machine.start("run", "client.toml", "--federation", "lab", "--plain", log="client.log")
        machine.text("client.log", "north: refused: more than the epsilon or delta of the policy")
        status = machine.call("status", "--json")
        places = {place["name"]: place["state"] for place in json.loads(status.stdout)}
        assert places["site north"] == "refused"
        file.write_text(file.read_text().replace("epsilon_max = 0.1", "epsilon_max = 1.0"))
        machine.running[-3].terminate()
        serve("north")
        assert last.wait(PATIENCE) == 0, (machine.place / "client.log").read_text()
        assert len(read_releases(machine.place / "runs/client/privacy.jsonl")) == 3
    finally:
        machine.end()
