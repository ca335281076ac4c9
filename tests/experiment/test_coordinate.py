"""A run over two sites: the bytes of the simulation, also after a restart, and a directory without rows."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import DataError
from shepherd.experiment.coordinate import coordinate, resume_coordination
from shepherd.experiment.opened_run import evaluate, open_run
from shepherd.experiment.run import run
from shepherd.federation.transport import Aborted
from shepherd.federation.transports.memory import Arrival
from shepherd.store.listing import entry
from sites import SETTINGS, Sites, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def config(small_config, rows):
    return lambda *settings: small_config(f"data.source={rows}", *SETTINGS, *settings)


@pytest.fixture(scope="module")
def simulated(config, tmp_path_factory):
    return run(config(), lambda event: None, tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "sites")


@pytest.fixture
def begin(config, sites, tmp_path):
    """begin(*settings) -> the run over the sites, with its events in sites.events."""
    sites.events = []
    return lambda *settings, **terms: coordinate(
        config(*settings), sites.transport, sites.events.append, tmp_path / "runs", sites.terms(**terms)
    )


def adapter_of(run):
    return (run.path / "adapter" / "adapter_model.safetensors").read_bytes()


def warnings(sites):
    return [event["message"] for event in sites.events if event["event"] == "warning"]


def test_a_run_over_sites_has_the_adapter_and_the_losses_of_the_simulation_and_holds_no_row(begin, sites, simulated):
    done = begin()
    assert adapter_of(done) == adapter_of(simulated)
    for arm, found in simulated.metrics["arms"].items():
        here = done.metrics["arms"][arm]
        assert here["loss"] == pytest.approx(found["loss"], rel=1e-6) and here["rows"] == found["rows"] > 0
        assert here["per_client"].keys() == found["per_client"].keys() == {"north", "south"}
        assert here["per_category"].keys() == found["per_category"].keys() == {"even", "odd"}
    lines, expected = done.rounds(), simulated.rounds()
    same = ("cohort", "weights", "train_loss", "steps", "examples", "tokens", "update_norm", "learning_rate")
    assert [{key: line[key] for key in same} for line in lines] == [
        {key: line[key] for key in same} for line in expected
    ]
    assert done.summary["trained_rows"] == simulated.summary["trained_rows"]
    stated = done.summary["sites"]
    assert {client: site["rows"] for client, site in stated.items()} == {"north": 5, "south": 3}
    assert len({site["digest"] for site in stated.values()}) == 2

    written = [path for path in done.path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"plus" in path.read_bytes() or b"in the north" in path.read_bytes()]
    assert not [path for path in written if str(sites.rows).encode() in path.read_bytes()]
    assert not (done.path / "partition.json").exists()
    report = (done.path / "report.html").read_text()
    assert "stay at the sites" in report and "simulated its clients" not in report
    assert stated["north"]["digest"][:12] in report
    assert entry(done.path).state == "finished" and entry(done.path).losses.keys() == {"base", "federated"}
    assert open_run(done.path).adapters() and "federated" in open_run(done.path).metrics["arms"]
    assert resume_coordination(done.path, sites.transport).summary == json.loads(json.dumps(done.summary))
    for again in (lambda: evaluate(done.path), lambda: open_run(done.path).load() and evaluate(done.path, 1)):
        with pytest.raises(DataError, match="the rows of this run are at its sites"):
            again()


def test_a_run_whose_coordinator_was_stopped_between_rounds_goes_on_to_the_same_adapter(begin, sites, simulated):
    def stop(hop):
        if hop.way == "down" and len(sites.events) > 0 and any(e["event"] == "round" for e in sites.events):
            raise Aborted
        return [Arrival(0.0, hop.data)]

    usual, sites.transport.hop = sites.transport.hop, stop
    with pytest.raises(Aborted):
        begin()
    sites.transport.hop = usual
    (folder,) = (sites.folder.parent / "runs").iterdir()
    assert entry(folder).rounds == 1
    sites.transport.restart("north")  # its private state and the digest of its rows outlast it
    done = resume_coordination(folder, sites.transport, terms=sites.terms())
    assert adapter_of(done) == adapter_of(simulated)
    eligible = [row for row in journal(folder) if row.get("event") == "eligible"]
    assert [(row["round"], row["clients"]) for row in eligible] == [(1, ["north", "south"]), (2, ["north", "south"])]


def journal(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
