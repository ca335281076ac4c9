"""Private runs over sites in memory: the bytes of the simulation, what is withheld, ledgers, and a restart."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import DataError, UsageError
from shepherd.experiment.coordinate import resume_coordination
from shepherd.experiment.run import run
from shepherd.experiment.site_report import site_report
from shepherd.federation.messages import Answer, read
from shepherd.federation.transport import Aborted
from shepherd.federation.transports.memory import Arrival
from shepherd.store.site_folder import SitePlace
from shepherd.updates.privacy.example_account import ExampleRelease
from shepherd.updates.privacy.ledger import read_releases
from sites import CLIENT, EXAMPLE, SETTINGS, Sites, adapter_of, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def config(small_config, rows, tmp_path_factory):
    own = write_rows(tmp_path_factory.mktemp("own"), {"own": 4}) / "own.jsonl"
    base = (f"data.source={rows}", *SETTINGS, f"data.held_out_source={own}")
    return lambda *settings: small_config(*base, *settings)


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "sites")


@pytest.fixture
def begin(config, sites, tmp_path):
    return lambda *settings, **terms: sites.coordinate(config(*settings), tmp_path / "runs", **terms)


def ledger(sites, name):
    (file,) = (sites.folder / name / "runs").glob("*/ledger.jsonl")
    return file


@pytest.mark.parametrize("settings", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_with_repeatable_noise_a_private_run_over_sites_has_the_bytes_of_the_simulation(
    settings, begin, config, sites, tmp_path
):
    given = (*settings, "privacy.repeatable_noise=true")
    expected = run(config(*given), lambda event: None, tmp_path / "simulated")
    done = begin(*given)
    assert adapter_of(done) == adapter_of(expected)
    said, there = done.summary["privacy"], expected.summary["privacy"]
    assert said["private"] is False and said["epsilon"] == there["epsilon"]
    assert {key: said[key] for key in said if key != "not_covered"} == {
        key: there[key] for key in there if key != "not_covered"
    }
    for name in ("journal.jsonl", "checkpoints", "rounds.jsonl", "card.json"):
        assert (done.path / "private" / name).exists(), name
    assert not (done.path / "journal.jsonl").exists() and not (done.path / "checkpoints").exists()


def test_a_run_whose_every_cohort_is_empty_releases_noise_and_finishes(begin, monkeypatch):
    monkeypatch.setattr("shepherd.updates.privacy.client_level.poisson_sample", lambda *given: ())
    done = begin(*CLIENT)
    assert [line["cohort"] for line in done.rounds()] == [[]] * 3 and len(releases(done.path)) == 3
    assert done.summary["privacy"]["private"] is True


def releases(run):
    return [(line.round, line.attempt) for line in read_releases(run / "privacy.jsonl")]


def test_a_site_without_an_answer_counts_as_zero_and_a_crash_costs_the_last_round(begin, sites, tmp_path):
    def stop(hop):
        if any(event["event"] == "round" for event in sites.events):
            sites.transport.hop = lambda hop: []  # nobody hears the coordinator until it is resumed
            raise Aborted
        return [Arrival(0.0, hop.data)]

    usual, sites.transport.hop = sites.transport.hop, stop
    with pytest.raises((Aborted, UsageError)):
        begin(*CLIENT, "federation.clients_per_round=2", "privacy.delta=0.1")
    (folder,) = (tmp_path / "runs").iterdir()
    assert releases(folder) == [(1, 1)]
    sites.transport.hop = usual

    def silent(hop):
        answer = hop.client == "south" and isinstance(read(hop.data, 2**30), Answer)
        return [] if answer else [Arrival(0.0, hop.data)]

    lines = (folder / "privacy.jsonl").read_text()
    (folder / "privacy.jsonl").write_text("")
    with pytest.raises(DataError, match="0 of the 1 lines"):
        resume_coordination(folder, sites.transport, terms=sites.terms(), force=True)
    # A release of an attempt that was not committed.
    (folder / "privacy.jsonl").write_text(lines + lines.replace('"round": 1', '"round": 2'))
    events, sites.transport.hop = [], silent
    done = resume_coordination(folder, sites.transport, events.append, sites.terms(sites=1, step=50.0))
    assert releases(folder) == [(1, 1), (2, 1), (2, 2)], "as many as the card has rounds"
    assert any("the run ends after round 2 of 3" in event.get("message", "") for event in events)
    said = done.summary["privacy"]
    assert said["private"] is True and said["releases"] == 3 and said["clients"] == 2 and said["sampling_rate"] == 1
    card = json.loads((folder / "private" / "card.json").read_text())["privacy"]
    assert (card["sites"], card["sampling_rate"], card["drawn_by"]) == (2, 1.0, "coordinator")
    assert "coordinator is trusted" in card["trust"]
    weights = [line["weights"] for line in done.rounds()]
    assert weights == [{"north": 0.5, "south": 0.5}, {"north": 0.5}], "1/(qN), whoever answers"
    released = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])
    assert set(released) <= {"round", "held_out_loss", "held_out_per_category", "clip_norm", "bytes_down"}
    summary = json.loads((folder / "summary.json").read_text())
    assert not {"sites", "federation", "seconds", "trained_rows"} & summary.keys()
    assert json.loads((folder / "privacy.json").read_text())["epsilon"] == said["epsilon"]
    text, facts = site_report(SitePlace(sites.folder / "north"))
    (account,) = (about["privacy"] for about in facts["runs"].values())
    assert account["releases"] == 2 and account["epsilon"] < said["epsilon"] and "Privacy of what left" in text


def test_a_site_adds_its_own_noise_keeps_its_ledger_and_stops_at_its_budget(begin, config, sites):
    sites.policy["north"] = {"require": ("dp",), "epsilon_max": 100.0, "delta_max": 0.1}
    sites.policy["south"] = {"require": ("dp",), "epsilon_max": 0.5, "delta_max": 0.1}
    for name in ("north", "south"):
        sites.transport.restart(name)
    done = begin(*EXAMPLE, sites=1)
    assert [line["cohort"] for line in done.rounds()] == [["north"]] * 3, "the noise is too little for south"
    assert any("south does not take part: more than the epsilon" in event.get("message", "") for event in sites.events)
    assert all(not line["train_loss"] and not line["tokens"] for line in done.rounds())
    lines = read_releases(ledger(sites, "north"), ExampleRelease)
    assert [(line.round, line.attempt, line.steps, line.noise) for line in lines] == [
        (n, 1, 2, "secret") for n in (1, 2, 3)
    ]
    assert not list((sites.folder / "south" / "runs").glob("*/ledger.jsonl"))
    record = json.loads(ledger(sites, "north").with_name("run.json").read_text())
    assert record["released"] == 3
    log = [json.loads(line) for line in (sites.folder / "north" / "audit.jsonl").read_text().splitlines()]
    assert not [line for line in log if "loss" in line]
    said = done.summary["privacy"]
    facts = site_report(SitePlace(sites.folder / "north"))[1]
    (account,) = (about["privacy"] for about in facts["runs"].values())
    assert account["releases"] == 3 and account["epsilon"] == said["epsilon"] <= 100


def test_what_a_simulation_refuses_is_refused_and_so_is_an_epsilon_before_the_rows_are_counted(begin):
    for settings, said in (
        ((*CLIENT, "federation.method=fedmomentum"), "merge needs every client's own factors"),
        ((*CLIENT, "federation.clients_per_round=2", "federation.min_updates=2"), "one client's failure"),
        ((*CLIENT, "privacy.delta=0.9"), "privacy.delta = 0.9 for 2 sites"),
    ):
        with pytest.raises(UsageError, match=said):
            begin(*settings)
