"""A federation over TLS on this machine: the commands in processes, an approval, Ctrl-C, and the simulation's bytes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from federation_kits import free_port
from program_processes import PATIENCE, Machine
from shepherd.experiment.run import run
from shepherd.experiment.sites import folders
from shepherd.experiment.sites.joining import write_site
from shepherd.experiment.sites.site_file import NewSite
from shepherd.recipe import to_toml
from sites import ROWS, SETTINGS, write_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="federations of sites need Linux")
ROUNDS = "federation.rounds=4"


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path / "machine")
    made.place.mkdir()
    yield made
    made.end()


@pytest.mark.timeout(600)
def test_four_commands_a_late_approval_and_a_ctrl_c_end_in_the_adapter_of_the_simulation(
    machine, small_config, model_folder, tmp_path
):
    rows = write_rows(tmp_path / "rows")
    config = small_config(f"data.source={rows}", *SETTINGS, ROUNDS)
    (machine.place / "recipe.toml").write_text(to_toml(config), encoding="utf-8")
    policy = {"approve": "policy", "least_group": 1, "min_rows_round": 1}
    for site in ROWS:
        new = NewSite(site, str(rows / f"{site}.jsonl"), str(model_folder("llama")), threads=1,
                      policy=policy | ({"approve": "ask"} if site == "north" else {}))  # fmt: skip
        write_site(machine.place / folders.SITES / site, new)
        file = machine.place / folders.SITES / site / "site.toml"
        more = 'dtype = "float32"\ndevice = "cpu"\ntokens_per_pass = 512\n'
        file.write_text(file.read_text().replace("threads = 1", f"{more}threads = 1"))

    made = machine.call("federation", "new", "lab", "--invite", "north,south", "--port", free_port(),
                        "--enrolment-port", free_port())  # fmt: skip
    assert made.returncode == 0, made.stderr
    sites = {site: machine.start("site", "join", f"{site}.invite", "--once", log=f"{site}.log") for site in ROWS}
    machine.text("north.log", "No answer yet: nothing listens at localhost")

    events = machine.place / "events.jsonl"
    with open(machine.place / "run.log", "ab") as errors, open(events, "ab") as out:
        first = machine.start("run", "recipe.toml", "--federation", "lab", "--json", stdout=out, stderr=errors)
    waits = machine.text("north.log", r"run [0-9a-f]+ waits for you: shepherd site approve \w+")
    machine.text("events.jsonl", "north: a person at the site has not approved the card yet")
    approved = machine.call("site", "approve", waits.rsplit(" ", 1)[1], "--site", "north", "--yes")
    assert (approved.returncode, approved.stdout) == (0, "tiny: approved\n"), approved.stderr
    assert "The coordinator sees each update of this site" in approved.stderr
    machine.text("events.jsonl", '{"event": "round", "round": 1')
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE) == 130
    assert "shepherd resume runs/tiny" in (machine.place / "run.log").read_text()
    assert not (machine.place / "runs/tiny/summary.json").exists(), "it was stopped between two rounds"

    done = machine.call("resume", "runs/tiny", "--plain")
    assert done.returncode == 0, done.stderr
    for site, process in sites.items():
        assert process.wait(PATIENCE) == 0
        machine.text(f"{site}.log", r"run [0-9a-f]+ is over: [\d.]+\skB sent in \d+ messages")
    expected = run(config, lambda event: None, tmp_path / "simulated")
    adapter = Path("adapter/adapter_model.safetensors")
    assert (machine.place / "runs/tiny" / adapter).read_bytes() == (expected.path / adapter).read_bytes()
    presence = json.loads((machine.place / "federations/lab/presence.json").read_text())
    assert (presence["round"], presence["state"], sorted(presence["sites"])) == (4, "stopped", ["north", "south"])
