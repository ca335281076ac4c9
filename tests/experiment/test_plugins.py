"""Plug-ins: packages whose entry points of the group `shepherd.plugins` add names, loaded where a name needs them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

import shepherd
from console import Shell
from plugin_site import build_example, install, on_the_path, project
from shepherd.cli.commands import cli
from shepherd.cli.completion import complete_setting
from shepherd.data.partitioners import partitioners
from shepherd.errors import UsageError
from shepherd.experiment.identity import plugin_digests
from shepherd.registry import Registry, plugins
from shepherd.server.aggregators import aggregators
from shepherd.testing import check_aggregator, check_partitioner

SOURCES = Path(__file__).parents[2] / "src"
BROKEN = "import shepherd\n\nimport no_such_library\n"
RULE = '''
import shepherd

@shepherd.aggregators
def first_of_all():
    """The first client's delta, for a test of what is listed."""
    return lambda stacked, weights: stacked[0]
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The example's package beside one that cannot be imported."""
    site = build_example(tmp_path_factory.mktemp("plugin"))
    install(site, "ill_lab", BROKEN, "ill-lab", "2.0")
    return site


@pytest.fixture
def installed(site) -> Iterator[Path]:
    with on_the_path(site):
        yield site


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join((str(SOURCES), str(site)))
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": path})


def test_the_list_shows_the_names_of_an_installed_package_and_names_one_that_is_broken(site, tmp_path):
    done = python(site, "-m", "shepherd", "list", "aggregators", cwd=tmp_path)
    assert done.returncode == 0
    (line,) = re.findall(r"  median .*?(?=\n  \S)", done.stdout, re.DOTALL)
    assert " ".join(line.split()).endswith("(Yin et al., 2018, 1803.01498). [my-lab 0.1]")
    assert done.stdout.count("my-lab") == 1
    assert done.stderr.startswith(
        "warning: the plug-in ill_lab of ill-lab 2.0 cannot be imported: ModuleNotFoundError: "
    )
    assert f"{project()['name']} {project()['version']}" == "my-lab 0.1"


def test_the_list_as_json_has_the_package_of_a_name_from_a_plugin_alone(installed, shell):
    found = json.loads(shell("list", "--json").out)
    packages = {e["name"]: e["package"] for entries in found.values() for e in entries if "package" in e}
    assert packages == {"median": "my-lab 0.1", "by_length": "my-lab 0.1"}


LIGHT = (["--help"], ["--version"], ["runs", "ls"], ["config", "show", "demo"], ["data", "partition", "demo"])


def test_no_plugin_is_imported_before_a_name_needs_it(site, tmp_path):
    code = (
        f"import sys; from shepherd.cli.main import main; status = [main(line) for line in {list(LIGHT)!r}]; "
        "print(status, 'my_lab' in sys.modules, 'ill_lab' in sys.modules, file=sys.stderr)"
    )
    done = python(site, "-c", code, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == f"{[0] * len(LIGHT)} False False"


def test_a_name_that_no_one_registered_is_looked_for_in_the_plugins_once(installed, monkeypatch):
    assert "median" not in aggregators and "my_lab" not in sys.modules
    assert aggregators.get("mean") and "my_lab" not in sys.modules
    assert aggregators.get("median").__module__ == "my_lab" and aggregators.package("median") == "my-lab 0.1"
    assert aggregators.package("mean") == "" and "by_length" in partitioners
    assert [(p.module, p.package, bool(p.error)) for p in plugins()] == [
        ("ill_lab", "ill-lab 2.0", True), ("my_lab", "my-lab 0.1", False),
    ]  # fmt: skip
    assert plugins() is plugins()


def test_an_unknown_name_is_answered_with_the_names_of_plugins_and_with_the_broken_ones(installed):
    with pytest.raises(UsageError) as caught:
        aggregators.get("medain")
    assert "Did you mean 'median'? Known: mean, median, trimmed_mean" in caught.value.message
    assert caught.value.hint.startswith("the plug-in ill_lab of ill-lab 2.0 cannot be imported: ModuleNotFoundError")


def test_completion_offers_the_names_of_plugins(installed):
    context = click.Context(cli.commands["run"])
    offered = {item.value for item in complete_setting(context, None, "federation.aggregator=me")}
    assert offered == {"federation.aggregator=mean", "federation.aggregator=median"}


def test_a_name_that_is_taken_and_an_exit_break_their_own_plugin_alone(tmp_path):
    install(tmp_path, "taken_lab", RULE.replace("first_of_all", "mean"), "taken-lab")
    install(tmp_path, "ending_lab", "raise SystemExit(3)", "ending-lab")
    install(tmp_path, "well_lab", RULE, "well-lab")
    with on_the_path(tmp_path):
        assert aggregators.known() == ["first_of_all", "mean", "trimmed_mean"]
        errors = {plugin.package: plugin.error for plugin in plugins()}
        assert errors == {
            "ending-lab 0.1": "SystemExit: 3",
            "taken-lab 0.1": "UsageError: aggregator 'mean' is registered twice: by shepherd.server.aggregators and by "
            "taken_lab",
            "well-lab 0.1": "",
        }  # fmt: skip
    assert aggregators.get("mean").__module__ == "shepherd.server.aggregators"


def test_the_parts_of_the_example_keep_our_promises(installed):
    check_aggregator("median")
    check_partitioner("by_length")
    check_partitioner("by_length", descending=True)


def test_a_recipe_with_names_of_a_plugin_is_checked_simulated_and_digested(installed, shell, small_config):
    base = small_config().model.base
    settings = ("federation.aggregator=median", "partition.name=by_length", "partition.clients=4")
    more = ("data.rows_per_category=3", "data.held_out_per_category=1", "model.device=cpu", "federation.rounds=1")
    outcome = shell("check", "--model", str(base), *(w for s in (*settings, *more) for w in ("--set", s)))
    assert outcome.status == 0, outcome.err
    config = small_config(*settings, *more)
    digest = hashlib.sha256((installed / "my_lab.py").read_bytes()).hexdigest()
    assert plugin_digests(config) == {"my_lab": digest}
    assert plugin_digests(small_config()) == {}
    rows = [{"instruction": f"Count to {n}." * n, "response": f"{n}"} for n in range(1, 9)]
    federation = shepherd.simulate(
        rows, held_out=rows[:2], base=str(base), rounds=1, aggregator="median", batch_size=2,
        partition={"name": "by_length", "clients": 2}, lora={"r": 2}, model={"device": "cpu"}, local_steps=1,
    )  # fmt: skip
    (done,) = federation
    assert list(federation.clients) == ["length-1", "length-2"] and np.isfinite(done.train_loss)


def test_a_row_format_of_a_plugin_is_used_where_it_is_named_alone():
    from shepherd.data.formats import added, format_problem, formats

    formats._packages["text"] = "my-lab 0.1"
    assert added() == [] and format_problem("text") == ""
    del formats._packages["text"]


def test_a_registry_that_is_used_while_plugins_are_imported_has_what_is_there_so_far(tmp_path):
    colours = Registry("colour")
    source = "from shepherd.server.aggregators import aggregators\nNAMES = aggregators.known()\n"
    install(tmp_path, "asking_lab", source, "asking-lab")
    with on_the_path(tmp_path):
        assert colours.known() == [] and plugins()[0].error == ""
        assert sys.modules["asking_lab"].NAMES == ["mean", "trimmed_mean"]
