"""Runs over NVFlare's processes and real certificates: the simulation's bytes, and nothing of a row on the way."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from federation_kits import Kits
from network_sites import ServedSite
from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.run import run
from shepherd.experiment.site_attendance import Terms
from shepherd.federation.transports.serving import serve_federation
from shepherd.updates.privacy.ledger import read_releases
from sites import CLIENT, EXAMPLE, ROWS, SETTINGS, InTurn, Sites, adapter_of, write_rows

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")


@pytest.fixture(scope="module")
def network(model_folder, tmp_path_factory):
    """Two sites that serve one federation: its kits, rows and folders of the sites; `run` carries out a recipe."""
    folder = tmp_path_factory.mktemp("network")
    rows, kits = write_rows(folder / "rows"), Kits(folder / "kits")
    sites = Sites(rows, model_folder("llama"), folder / "sites")
    with serve_federation(kits.server(), limit=4 * 2**20) as transport:
        served = [ServedSite(kits.site(name), InTurn(sites.starter(name)())) for name in ROWS]

        def over_sites(config):
            return coordinate(config, transport, lambda event: None, folder / "runs", Terms(sites=2, enough=60.0))

        yield SimpleNamespace(rows=rows, kits=kits.folder, sites=sites.folder, run=over_sites)
        for site in served:
            site.end()


def test_a_run_over_the_network_has_the_adapter_of_the_simulation(small_config, network, tmp_path):
    config = small_config(f"data.source={network.rows}", *SETTINGS)
    simulated = run(config, lambda event: None, tmp_path / "simulated")
    done = network.run(config)
    assert adapter_of(done) == adapter_of(simulated)
    assert done.metrics["arms"]["federated"]["loss"] == pytest.approx(simulated.metrics["arms"]["federated"]["loss"])
    engine = [path for path in network.kits.rglob("*") if path.is_file()]
    assert any(path.name == "engine.log" for path in engine)
    for path in [*engine, *(path for path in done.path.rglob("*") if path.is_file())]:
        assert b"plus" not in path.read_bytes(), path  # a word of every row


def test_private_runs_over_the_network_have_the_noise_of_the_simulation_and_ledgers_where_it_is_drawn(
    small_config, network, tmp_path
):
    own = write_rows(tmp_path / "own", {"own": 4}) / "own.jsonl"
    base = (f"data.source={network.rows}", f"data.held_out_source={own}", *SETTINGS)
    for unit in CLIENT, EXAMPLE:
        config = small_config(*base, *unit, "privacy.repeatable_noise=true")
        expected = run(config, lambda event: None, tmp_path / "simulated")
        assert adapter_of(network.run(config)) == adapter_of(expected)
    done = network.run(small_config(*base, *CLIENT))
    assert done.summary["privacy"]["private"] is True and len(read_releases(done.path / "privacy.jsonl")) == 3
    ledgers = [path.relative_to(network.sites).parts[0] for path in sorted(network.sites.rglob("ledger.jsonl"))]
    assert ledgers == ["north", "south"], "of unit example alone"
