"""Runs with privacy of examples on the tiny model: ledgers by client, crash and resumption, and what is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from shepherd.errors import DataError
from shepherd.experiment import federated
from shepherd.experiment import run as experiment
from shepherd.experiment.example_ledgers import open_ledger, with_accounts
from shepherd.experiment.trainer import worker_engine
from shepherd.model.adapter import load_adapter
from shepherd.recipe import load
from shepherd.serving.released import guarantee_of
from shepherd.store import RunDirectory
from shepherd.store.manifest import read_manifest
from shepherd.types import ClientUpdate, ExamplePrivacy, TrainTask, Work
from shepherd.updates.privacy.accountant import Rounds, epsilons
from shepherd.updates.privacy.example_account import LEDGERS, ledger_name
from shepherd.updates.privacy.ledger import Ledger
from shepherd.updates.privacy.publication import place_of
from stopped_runs import Stop, after_round, stopped

PRIVATE = (
    "federation.rounds=2", "federation.clients_per_round=3", "training.local_steps=2",
    "evaluation.arms=base,federated", "evaluation.generate=0",
    "privacy.unit=example", "privacy.clip=0.5", "privacy.noise_multiplier=2", "privacy.delta=0.01",
)  # fmt: skip
"""Two rounds of three of eight clients, each with four rows: q = 1/2, two steps a round."""
HELD = 4


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(*PRIVATE)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A finished run."""
    return experiment.run(config, observer=lambda event: None, out_dir=tmp_path_factory.mktemp("runs")).path


def ledgers(run: Path) -> dict[str, Ledger]:
    """The ledger of each client that has lines."""
    clients = json.loads(place_of(run, "partition.json").read_text())["clients"]
    found = {client: open_ledger(run, client) for client in clients}
    return {client: ledger for client, ledger in found.items() if ledger.releases}


def attempts(run: Path) -> list[tuple[int, int]]:
    """(round, attempt) of all lines."""
    return sorted((line.round, line.attempt) for ledger in ledgers(run).values() for line in ledger.releases)


def adapter_bytes(run: Path) -> bytes:
    factors = load_adapter(run / "adapter").factors
    return b"".join(array.tobytes() for name in sorted(factors) for array in factors[name])


def test_each_client_has_a_line_for_each_of_its_rounds_and_the_summary_the_largest_epsilon(whole):
    rounds = [json.loads(line) for line in place_of(whole, "rounds.jsonl").read_text().splitlines()]
    there = ledgers(whole)
    assert {client: [line.round for line in ledger.releases] for client, ledger in there.items()} == {
        client: [r["round"] for r in rounds if client in r["cohort"]] for r in rounds for client in r["cohort"]
    }
    assert {line.rounds for ledger in there.values() for line in ledger.releases} == {Rounds(0.5, 2.0, 2)}
    assert {line.clip for ledger in there.values() for line in ledger.releases} == {0.5}
    most = 2 * max(len(ledger.releases) for ledger in there.values())
    said, spent = json.loads((whole / "summary.json").read_text())["privacy"], epsilons([Rounds(0.5, 2.0, most)], 0.01)
    assert (said["epsilon"], said["epsilon_pld"], said["epsilon_rdp"]) == (spent.least, spent.pld, spent.rdp)
    assert (said["private"], said["noise"], said["clients"]) == (True, "secret", 8)
    assert said["sampling_rate"] == [0.5, 0.5] and said["steps"][1] == most
    assert said["unit"].startswith("example") and any("repeat one another" in line for line in said["not_covered"])
    marks = [
        read_manifest(folder)[0]["facts"]["examples"] for folder in sorted(place_of(whole, "checkpoints").glob("*"))
    ]
    assert sum(mark["lines"] for mark in marks[-1].values()) == 6


def test_nothing_that_follows_from_the_drawn_rows_is_kept(whole):
    for line in map(json.loads, place_of(whole, "rounds.jsonl").read_text().splitlines()):
        assert line["train_loss"] == line["tokens"] == {}
        assert set(line["examples"].values()) == {HELD} and set(line["steps"].values()) == {2}, "as planned"
    summary = json.loads(place_of(whole, "summary.json").read_text())
    assert "trained_rows" not in summary and summary["budget"]["federated"]["target_tokens"] is None
    assert not [*whole.rglob("rows_seen.jsonl")]
    state = json.loads(max(place_of(whole, "checkpoints").glob("*/state.json")).read_text())
    assert {past["loss"] for past in state["history"].values()} == {None}


def test_two_runs_of_one_seed_differ_unless_the_noise_repeats_and_then_they_are_not_private(config, whole, tmp_path):
    runs = [
        experiment.run(config.model_copy(update={"privacy": privacy}), observer=lambda event: None, out_dir=tmp_path)
        for privacy in (
            config.privacy, *2 * [config.privacy.model_copy(update={"repeatable_noise": True})],
        )
    ]  # fmt: skip
    secret, *repeated = [adapter_bytes(run.path) for run in runs]
    assert secret != adapter_bytes(whole) and repeated[0] == repeated[1] != secret
    assert [run.summary["privacy"]["private"] for run in runs] == [True, False, False]
    assert {line.noise for line in next(iter(ledgers(runs[1].path).values())).releases} == {"repeatable"}


def test_a_crash_after_the_lines_of_a_round_draws_anew_and_both_attempts_count(config, tmp_path):
    save, drawn = federated.save_state, []

    def crash(where, state, **options):
        drawn.append(state.model.adapter)
        if state.round == 2 and len(drawn) == 2:
            raise Stop
        save(where, state, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "save_state", crash)
        with pytest.raises(Stop):
            experiment.run(config, observer=lambda event: None, out_dir=tmp_path)
        run = tmp_path / config.run.name
        assert attempts(run) == [(1, 1)] * 3 + [(2, 1)] * 3
        done = experiment.resume(run, observer=lambda event: None)
    assert attempts(run) == [(1, 1)] * 3 + [(2, 1)] * 3 + [(2, 2)] * 3
    assert done.summary["privacy"]["steps"][1] in (4, 6), "of a client that was in round 2, twice"
    name = next(iter(drawn[1].factors))
    assert (drawn[1].factors[name].B != drawn[2].factors[name].B).any(), "the second attempt has other noise"


@pytest.mark.parametrize("force", [False, True])
def test_a_ledger_that_was_cut_or_changed_ends_the_run_also_with_force(config, tmp_path, force):
    run = stopped(config, tmp_path, after_round(1))
    client = next(iter(ledgers(run)))
    file = run / "private/ledgers" / f"{client}.jsonl"
    kept = file.read_text()
    for text, said in (
        ("", "has 0 of the 1 lines"),
        (kept.replace('"noise_multiplier": 2.0', '"noise_multiplier": 20.0'), "was changed"),
        (kept.replace('"unit": "example"', '"unit": "client"'), "line 1 is not a release"),
    ):
        assert text != kept
        file.write_text(text)
        with pytest.raises(DataError, match=f"{said}.*cannot go on as private"):
            experiment.resume(run, observer=lambda event: None, force=force)


def test_lines_of_rows_end_a_run_whose_recipe_has_no_privacy_of_rows_any_more(whole):
    with pytest.raises(DataError, match="was begun with privacy of examples, and its recipe has none"):
        with_accounts(SimpleNamespace(examples=None), RunDirectory(whole), None)  # stopped before its first round


def test_a_worker_process_enters_the_lines_of_its_clients_in_the_same_ledgers(config, whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    from shepherd.experiment.checks import look_first
    from shepherd.experiment.inputs import load_inputs
    from shepherd.experiment.progress import Reporter

    inputs = load_inputs(look_first(config, lambda line: None), None, Reporter(lambda event: None))
    client = min(inputs.data.clients)
    engine, *_ = worker_engine(inputs.resolved, 1, {client: inputs.data.clients[client]}, partial(open_ledger, run))
    view = inputs.plan.method.view(inputs.start.model, client, config.lora.r, 1, 0)
    task = TrainTask(1, {client: view}, 0, {client: Work(client, 0, 4, (0.1, 0.1))}, privacy=ExamplePrivacy(0.5, 2.0))
    for number in (1, 2):
        (update,) = engine.train(replace(task, round=number))
        assert isinstance(update, ClientUpdate)
    assert [line.round for line in open_ledger(run, client).releases] == [1, 2]


def test_its_card_states_the_guarantee_and_no_number_of_rows(whole):
    card = (whole / "adapter" / "README.md").read_text()
    assert "Differential privacy: ε" in card and "Unit: example" in card
    assert ", training rows that stayed with their clients" in card and f"{8 * HELD} training" not in card


def test_an_export_whose_ledgers_give_another_epsilon_is_refused(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config, stated = load(run / "config.toml"), json.loads((run / "privacy.json").read_text())
    notes: list[str] = []
    assert json.loads(guarantee_of(run, config, notes.append) or "") == stated and not notes
    there = ledgers(run)
    client = max(there, key=lambda name: len(there[name].releases))
    file = run / "private/ledgers" / f"{client}.jsonl"
    kept = file.read_text()
    for text in (kept + kept.splitlines(keepends=True)[-1], kept.replace('_multiplier": 2.0', '_multiplier": 1.0')):
        file.write_text(text)
        with pytest.raises(DataError, match="cannot go on as private"):
            guarantee_of(run, config, notes.append)
    file.write_text(kept)
    another = next(name for name in there if there[name].releases and name != client)
    other = run / "private/ledgers" / f"{another}.jsonl"
    kept = other.read_text()
    for change in (lambda: other.write_text("".join(kept.splitlines(keepends=True)[:-1])), other.unlink):
        change()
        with pytest.raises(DataError, match=f"ledgers/{another}.jsonl has .* cannot go on as private"):
            guarantee_of(run, config, notes.append)
    shutil.rmtree(run / "private/ledgers")
    shutil.rmtree(run / "private/checkpoints")
    nothing = {**stated, "steps": [0, 0], "epsilon": 0.0}  # every client refused, for its budget
    (run / "privacy.json").write_text(json.dumps(nothing))
    assert json.loads(guarantee_of(run, config, notes.append) or "") == nothing
    (run / "privacy.json").write_text(json.dumps(stated))
    with pytest.raises(DataError, match="cannot go on as private"):
        guarantee_of(run, config, notes.append)
    shutil.rmtree(run / "private")  # as readers have it
    assert guarantee_of(run, config, notes.append) and "no ledger" in notes[0]


@pytest.mark.parametrize("client", ["north", "a/b.c", "\u00e9 \u2603", "\ud800"])
def test_the_ledger_of_a_client_is_one_file_whatever_its_name_is(client, tmp_path):
    place = place_of(tmp_path, ledger_name(client))
    assert place.name.endswith(".jsonl") and place.parent == place_of(tmp_path, LEDGERS)
    assert open_ledger(tmp_path, client).name == ledger_name(client)
