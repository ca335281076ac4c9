"""Private runs on the tiny model: the ledger through crash and resumption, the budget, and what is printed and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import shepherd
from console import Shell
from shepherd._version import __version__
from shepherd.errors import DataError, ShepherdWarning
from shepherd.experiment import federated
from shepherd.experiment import run as experiment
from shepherd.experiment.resume import begin_or_go_on
from shepherd.model.adapter import load_adapter
from shepherd.store import RunDirectory
from shepherd.store.manifest import read_manifest
from shepherd.updates.privacy.ledger import Ledger, read_releases
from shepherd.updates.privacy.publication import place_of
from stopped_runs import Stop, after_round, checkpoint_digest, stop_at, stopped

PRIVATE = (
    "federation.method=ffa_lora", "federation.rounds=3", "federation.clients_per_round=4",
    "federation.weights=uniform", "federation.on_too_few=skip", "federation.quarantine_after=0",
    "selection.name=poisson", "evaluation.arms=base,federated", "evaluation.generate=0",
    "privacy.unit=client", "privacy.clip=0.1", "privacy.noise_multiplier=3", "privacy.delta=0.01",
)  # fmt: skip
"""Three rounds of eight clients with q = 1/2."""
CRASH = "after the line of the ledger, before the commit"


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(*PRIVATE)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A finished private run."""
    return experiment.run(config, observer=lambda event: None, out_dir=tmp_path_factory.mktemp("runs")).path


def crashed(config, folder: Path, at: int) -> Path:
    """The directory of a run that crashed in round `at`, after the line of the ledger and before the commit."""
    save = federated.save_state

    def crash(where, state, **options):
        if state.round == at:
            raise Stop(CRASH)
        save(where, state, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "save_state", crash)
        with pytest.raises(Stop, match=CRASH):
            experiment.run(config, observer=lambda event: None, out_dir=folder)
    return folder / config.run.name


def lines(run: Path) -> list[tuple[int, int]]:
    return [(line.round, line.attempt) for line in read_releases(run / "privacy.jsonl")]


def adapter_bytes(run: Path) -> bytes:
    factors = load_adapter(run / "adapter").factors
    return b"".join(array.tobytes() for name in sorted(factors) for array in factors[name])


def test_a_private_run_has_a_line_for_each_round_and_its_manifests_count_them(whole):
    assert lines(whole) == [(1, 1), (2, 1), (3, 1)]
    marks = [
        read_manifest(folder)[0]["facts"]["privacy"]["lines"]
        for folder in sorted(place_of(whole, "checkpoints").iterdir())
    ]
    assert marks[-2:] == [2, 3], "and the best round"
    for line in map(json.loads, place_of(whole, "rounds.jsonl").read_text().splitlines()):
        assert set(line["weights"].values()) <= {1 / 4} and line["diagnostics"] == {}
        assert all(norm <= 0.1 for norm in line["update_norm"].values())
        assert line["clip_norm"] == 0.1 and "clipped" not in line


def test_its_summary_and_metrics_state_the_epsilon_of_the_lines_and_what_is_not_covered(whole):
    summary, metrics = (json.loads((whole / name).read_text()) for name in ("summary.json", "evaluation/metrics.json"))
    said = summary["privacy"]
    stated = json.loads((whole / "privacy.json").read_text())
    assert stated.pop("shepherd") == __version__ and stated.pop("accountant_package").startswith("dp-accounting ")
    assert said == metrics["privacy"] == stated
    spent = Ledger(read_releases(whole / "privacy.jsonl")).epsilon(0.01)
    assert (said["epsilon"], said["epsilon_pld"], said["epsilon_rdp"]) == (spent.least, spent.pld, spent.rdp)
    assert said["private"] is True and said["noise"] == "secret" and said["releases"] == 3
    assert (said["clients"], said["sampling_rate"], said["delta"], said["clip"]) == (8, 0.5, 0.01, [0.1, 0.1])
    assert said["accountant"] == "PLD" and said["unit"].startswith("client") and "zero-out" in said["relation"]
    assert any("server's held-out rows" in line for line in said["not_covered"])


def test_two_runs_of_one_seed_have_other_cohorts_or_noise(config, whole, tmp_path):
    other = experiment.run(config, observer=lambda event: None, out_dir=tmp_path).path
    assert adapter_bytes(other) != adapter_bytes(whole)


def test_a_crash_after_the_line_of_a_round_draws_anew_and_both_lines_count(config, tmp_path):
    run = crashed(config, tmp_path, 2)
    assert lines(run) == [(1, 1), (2, 1)]
    before = Ledger(read_releases(run / "privacy.jsonl")).epsilon(0.01).least
    with (run / "privacy.jsonl").open("ab") as file:
        file.write(bytes(40) + b"1}\n")  # a power cut tore the line of another attempt: nothing was drawn for it
    done = experiment.resume(run, observer=lambda event: None)
    assert lines(run) == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert done.summary["privacy"]["releases"] == 4 and done.summary["privacy"]["epsilon"] > before


@pytest.mark.parametrize("force", [False, True])
def test_a_ledger_that_was_cut_or_changed_ends_the_run_as_a_private_one_also_with_force(config, tmp_path, force):
    run = stopped(config, tmp_path, after_round(2))
    ledger = run / "privacy.jsonl"
    kept = ledger.read_text()
    for text, said in (
        (kept.splitlines(keepends=True)[0], "has 1 of the 2 lines"),
        ("", "has 0 of the 2 lines"),
        (kept.replace('"noise_multiplier": 3.0', '"noise_multiplier": 30.0'), "was changed"),
        (kept.replace("{", "[", 1), "line 1 is not a release"),
    ):
        ledger.write_text(text)
        with pytest.raises(DataError, match=f"{said}.*cannot go on as private"):
            experiment.resume(run, observer=lambda event: None, force=force)
    ledger.unlink()
    with pytest.raises(DataError, match="has 0 of the 2 lines"):
        experiment.resume(run, observer=lambda event: None, force=force)
    ledger.write_text(kept)
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace(f"[privacy]\n{table(config.privacy.model_dump())}", ""))
    with pytest.raises(DataError, match="one without would end their guarantee"):
        experiment.resume(run, observer=lambda event: None, force=force)


@pytest.mark.parametrize("unit", ["client", "example"])
def test_rows_that_moved_to_other_clients_end_the_run_also_with_force(tmp_path, unit):
    store, begun = RunDirectory(tmp_path), {"config": {"privacy": {"unit": unit}}, "partition": "1"}
    start = SimpleNamespace(round=0)
    begin_or_go_on(store, begun, start, lambda: store.journal("started"))
    assert begin_or_go_on(store, begun, start, list).state is start
    with pytest.raises(DataError, match="begun with other rows of its clients"):
        begin_or_go_on(store, {**begun, "partition": "2"}, start, list, force=True)


@pytest.mark.parametrize("when", [after_round(1), lambda event: event["event"] == "start"], ids=["round 1", "start"])
def test_a_run_that_had_no_privacy_cannot_get_it_by_force(small_config, config, tmp_path, when):
    plain = small_config(*(setting for setting in PRIVATE if not setting.startswith("privacy")))
    run = stopped(plain, tmp_path, when)
    settings = (run / "config.toml").read_text()
    assert "[privacy]" not in settings
    (run / "config.toml").write_text(f"{settings}[privacy]\n{table(config.privacy.model_dump())}")
    with pytest.raises(DataError, match="had no privacy, so no later one can give it"):
        experiment.resume(run, observer=lambda event: None, force=True)


def table(values) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def test_the_run_ends_before_the_round_that_would_exceed_its_epsilon_and_is_finished(small_config, tmp_path):
    config = small_config(*PRIVATE[:-2], "privacy.epsilon=2", "privacy.delta=0.01")
    config = config.model_copy(
        update={"privacy": config.privacy.model_copy(update={"noise_multiplier": "from_epsilon"})}
    )
    run, events = crashed(config, tmp_path, 2), []
    done = experiment.resume(run, observer=events.append)
    assert lines(run) == [(1, 1), (2, 1), (2, 2)]
    said = done.summary["privacy"]
    assert 1.9 < said["epsilon"] <= 2 and said["budget"] == 2 and done.summary["rounds"] == 3
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert any(line.startswith("the run ends after round 2 of 3: one more would exceed privacy.epsilon = 2") for line
               in warnings)  # fmt: skip
    assert "privacy budget spent" in place_of(run, "journal.jsonl").read_text()
    assert (run / "report.html").exists() and (run / "adapter").is_dir()
    assert [json.loads(line)["round"] for line in (run / "rounds.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("releases, why", [(2, "the noise is that of fewer rounds"), (3, "attempts that were not com")])
def test_a_run_that_ends_early_says_why(releases, why):
    privacy = SimpleNamespace(epsilon=2.0, ledger=SimpleNamespace(releases=[None] * releases))
    said = federated.ended_early(SimpleNamespace(round=2), SimpleNamespace(privacy=privacy), 5)
    assert said.startswith("the run ends after round 2 of 5: one more would exceed privacy.epsilon = 2") and why in said


def test_only_with_repeatable_noise_a_run_goes_on_to_the_same_bytes_and_it_is_marked(small_config, tmp_path):
    config = small_config(*PRIVATE, "privacy.repeatable_noise=true", "privacy.adaptive_clip=true",
                          "federation.clients_per_round=8", "privacy.noise_multiplier=0.5")  # fmt: skip
    with pytest.warns(ShepherdWarning, match="the run is not private"):
        once = experiment.run(config, out_dir=tmp_path / "a").path
    crashed_run = crashed(config, tmp_path / "b", 3)
    experiment.resume(crashed_run, observer=stop_at(lambda event: False))
    assert lines(crashed_run) == [(1, 1), (2, 1), (3, 1), (3, 2)]
    assert adapter_bytes(crashed_run) == adapter_bytes(once)
    assert checkpoint_digest(crashed_run / "private") == checkpoint_digest(once / "private")
    clips = [line.clip for line in read_releases(once / "privacy.jsonl")]
    assert clips[0] == 0.1 and len(set(clips)) == 3
    state = json.loads(sorted(place_of(once, "checkpoints").glob("*/state.json"))[-1].read_text())
    assert state["clip"] > 0 and state["clip"] not in clips
    summary = json.loads((once / "summary.json").read_text())
    assert summary["privacy"]["private"] is False and summary["privacy"]["noise"] == "repeatable"


def test_simulate_has_the_mechanism_too_and_ends_at_the_budget(config):
    settings = config.model_dump(exclude={"run", "evaluation", "checkpoints", "partition"}, exclude_unset=True)
    federation = shepherd.simulate(seed=0, threads=1, **settings)
    rounds = list(federation)
    ledger = federation.inputs.plan.privacy.ledger
    assert [line.round for line in ledger.releases] == [1, 2, 3] and len(rounds) == 3
    assert all(not r.record.skipped for r in rounds)
    first = rounds[0].adapter.factors
    assert any(np.abs(pair.B).max() > 0 for pair in first.values())


def test_check_prints_epsilon_noise_signal_and_what_is_not_covered(config, capsys, monkeypatch, tmp_path, model_folder):
    monkeypatch.chdir(tmp_path)
    given = [f"model.base={model_folder()}", "data.rows_per_category=6", "data.held_out_per_category=2",
             "data.max_length=128", "lora.r=2", *PRIVATE]  # fmt: skip
    said = Shell(capsys, monkeypatch)("check", *(f"--set={setting}" for setting in given))
    assert said.status == 0, said.err
    text = " ".join(said.out.split())
    for part in ("differential privacy epsilon 0.48", "(PLD 0.48", "RDP 0.64",
                 "noise multiplier 3", "noise/clip", "signal:",
                 "8 clients, each with q = 0.5, in 3 rounds", "unit client", "zero-out", "PLD of dp-accounting",
                 "Not covered", "the server's held-out rows"):  # fmt: skip
        assert part in text, (part, text)
    shell = Shell(capsys, monkeypatch)("check", "--json", *(f"--set={setting}" for setting in given))
    forecast = json.loads(shell.out)["privacy"]
    values = forecast["values"]
    assert forecast["noise_over_clip"] == pytest.approx(3 * values**0.5 / 4)
    assert forecast["private"] is True and forecast["releases"] == 3
