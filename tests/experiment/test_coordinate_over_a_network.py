"""A run over NVFlare's processes and real certificates: the simulation's bytes, and nothing of a row on the way."""

from __future__ import annotations

import sys

import pytest

from federation_kits import Kits
from network_sites import ServedSite
from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.run import run
from shepherd.experiment.site_attendance import Terms
from shepherd.federation.transports.serving import serve_federation
from sites import ROWS, SETTINGS, InTurn, Sites, write_rows

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")


def test_a_run_over_the_network_has_the_adapter_of_the_simulation(small_config, model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows")
    config = small_config(f"data.source={rows}", *SETTINGS)
    simulated = run(config, lambda event: None, tmp_path / "simulated")
    sites = Sites(rows, model_folder("llama"), tmp_path / "sites")
    kits = Kits(tmp_path / "kits")
    with serve_federation(kits.server(), limit=4 * 2**20) as transport:
        served = [ServedSite(kits.site(name), InTurn(sites.starter(name)())) for name in ROWS]
        done = coordinate(config, transport, lambda event: None, tmp_path / "runs", Terms(sites=2, enough=60.0))
        for site in served:
            site.end()
    adapter = "adapter/adapter_model.safetensors"
    assert (done.path / adapter).read_bytes() == (simulated.path / adapter).read_bytes()
    assert done.metrics["arms"]["federated"]["loss"] == pytest.approx(simulated.metrics["arms"]["federated"]["loss"])
    engine = [path for path in kits.folder.rglob("*") if path.is_file()]
    assert any(path.name == "engine.log" for path in engine)
    for path in [*engine, *(path for path in done.path.rglob("*") if path.is_file())]:
        assert b"plus" not in path.read_bytes(), path  # a word of every row
