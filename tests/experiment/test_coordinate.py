"""A run over two sites: the bytes of the simulation, also after a restart, and a directory without rows."""

from __future__ import annotations

import pytest

from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.run import run
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


def adapter_of(run):
    return (run.path / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_over_sites_has_the_adapter_of_the_simulation_and_its_losses(
    config, rows, simulated, model_folder, tmp_path
):
    sites = Sites(rows, model_folder("llama"), tmp_path / "sites")
    events = []
    done = coordinate(config(), sites.transport, events.append, tmp_path / "runs", sites.terms())
    assert adapter_of(done) == adapter_of(simulated)
    for arm, found in simulated.metrics["arms"].items():
        here = done.metrics["arms"][arm]
        assert here["loss"] == pytest.approx(found["loss"], rel=1e-6) and here["rows"] == found["rows"] > 0
    print(sorted(p.relative_to(done.path).as_posix() for p in done.path.rglob("*")))
