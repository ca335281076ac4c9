"""The folder of a study and its runs: nothing twice, failures listed, other designs refused. Without a training."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from shepherd.errors import ClientError, DataError, ResourceError, UsageError
from shepherd.evaluation.row_losses import LOSSES, losses_bytes
from shepherd.experiment.study import running
from shepherd.experiment.study.folder import StudyFolder
from shepherd.experiment.study.record import LARGEST, record_of
from shepherd.experiment.study.results import document, finished_records
from shepherd.experiment.study.running import carry_out, expected_seconds
from study_runs import TWO, held_out, losses_of, record, run_directory, study_of, write_results


@pytest.fixture
def study(tmp_path):
    return study_of(tmp_path)


@pytest.fixture
def folder(tmp_path, study):
    found = StudyFolder(tmp_path / "out")
    found.open(study)
    return found


@pytest.fixture
def carried(monkeypatch):
    """The names of runs that were carried out; a run whose name is in `carried.fails` raises that error instead."""

    class Carried(list):
        def __init__(self):
            self.fails = {}

    done = Carried()

    def one(folder, planned, observer):
        done.append(planned.name)
        if planned.name in done.fails:
            raise done.fails[planned.name]
        folder.write_record(planned, record(planned, losses_of(planned), folder.path))

    monkeypatch.setattr(running, "_carry_out_one", one)
    return done


def steps(folder, runs, minutes=None, seconds=60.0):
    return [
        (step.planned.name, step.outcome)
        for step in carry_out(folder, runs, lambda planned: seconds, lambda planned: print, minutes)
    ]


def test_runs_are_carried_out_seed_by_seed_and_finished_ones_are_skipped(study, folder, carried):
    names = ["fedit.0", "flora.0", "fedit.1", "flora.1", "fedit.2", "flora.2"]
    assert steps(folder, study.runs) == [(name, "done") for name in names]
    assert steps(folder, study.runs) == [] and carried == names


def test_a_failure_is_written_down_and_the_rest_goes_on(study, folder, carried):
    carried.fails = {"flora.0": ClientError("too few updates\nin round 2", "lower it"), "fedit.1": ValueError("odd")}
    found = dict(steps(folder, study.runs))
    assert [name for name, outcome in found.items() if outcome == "failed"] == ["flora.0", "fedit.1"]
    states = {p.name: folder.progress(p) for p in study.runs}
    assert (states["flora.0"].state, states["flora.0"].detail) == ("failed", "too few updates")
    assert states["fedit.1"].detail == "unexpected ValueError: odd"
    assert folder.error(study.runs[1])["exit_status"] == 6 and len(carried) == 6


def test_a_failed_run_is_tried_again_by_the_next_command_but_by_no_process_that_was_there(study, folder, carried):
    carried.fails = {"fedit.0": ClientError("no")}
    assert dict(steps(folder, study.runs[:1])) == {"fedit.0": "failed"}
    assert running._failed_since(folder, study.runs[0], time.time() - 60)
    carried.fails = {}
    assert dict(steps(folder, study.runs[:1])) == {"fedit.0": "done"}
    assert folder.error(study.runs[0]) is None and folder.progress(study.runs[0]).state == "finished"


def test_processes_that_share_a_folder_carry_out_no_run_twice(study, folder, carried, monkeypatch):
    slow = running._carry_out_one

    def slowly(*given):
        time.sleep(0.05)
        slow(*given)

    monkeypatch.setattr(running, "_carry_out_one", slowly)
    threads = [threading.Thread(target=steps, args=(folder, study.runs)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(carried) == sorted(p.name for p in study.runs)


def test_a_run_that_another_process_holds_is_left_to_it(study, folder, carried):
    with folder.held(study.runs[0]) as ours:
        assert ours
        assert steps(folder, study.runs[:2]) == [("fedit.0", "taken"), ("flora.0", "done")]
        state = folder.progress(study.runs[0])
        assert state.state == "running" and "process" in state.detail


def test_no_run_starts_that_is_not_expected_to_fit(study, folder, carried):
    assert steps(folder, study.runs, minutes=0.9) == [(p.name, "late") for p in study.runs]
    assert carried == [] and steps(folder, study.runs[:1], minutes=2) == [("fedit.0", "done")]


def test_the_expected_time_is_the_longest_of_the_variant_or_a_corrected_estimate(study, folder, carried):
    expected = expected_seconds(folder, study.runs, lambda planned: 20.0)
    assert expected(study.runs[0]) == 20.0
    steps(folder, [study.runs[2]])  # fedit.1 took 61 seconds, so 61 / 20 of its estimate
    assert expected(study.runs[0]) == 61.0 and expected(study.runs[1]) == pytest.approx(61.0)


def test_another_design_in_the_same_folder_is_refused_with_the_difference(tmp_path, folder):
    changed = TWO.replace('"federation.method=flora"', '"federation.method=flora", "lora.r=4"')
    with pytest.raises(UsageError, match="another design") as error:
        folder.open(study_of(tmp_path, changed))
    assert "  variants.flora.lora.r: 8 then, 4 now" in error.value.message
    with pytest.raises(UsageError, match=r"seeds.fedit: \[0, 1, 2\] then, \[0, 1\] now"):
        folder.check(study_of(tmp_path, TWO.replace("[0, 1, 2]", "[0, 1]")))
    margin = TWO + '[[compare]]\na = "flora"\nb = "fedit"\nmargin = 0.1\n'
    with pytest.raises(UsageError, match=r"compare.flora − fedit.margin: nothing then, 0.1 now"):
        folder.check(study_of(tmp_path, margin))


def test_the_same_design_elsewhere_on_the_disk_goes_on(tmp_path, folder):
    (tmp_path / "elsewhere").mkdir()
    folder.open(study_of(tmp_path / "elsewhere", TWO, overrides=["run.threads=3"]))


def test_a_record_of_other_settings_is_refused_with_the_difference(tmp_path, study, folder):
    write_results(study, folder)
    (folder.path / "design.json").unlink()
    other = study_of(tmp_path, TWO.replace('"federation.method=flora"', '"federation.method=flora", "lora.r=4"'))
    folder.open(other)
    assert folder.record(other.runs[0]) is not None
    with pytest.raises(UsageError, match="other settings than the study has now") as error:
        folder.record(other.runs[1])
    assert "  lora.r: 8 then, 4 now" in error.value.message


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"digests": {"config": "x"}, "config": 3, "arms": {}, "rows": {}}'])
def test_a_damaged_record_is_named(text, study, folder):
    file = folder.results(study.runs[0]) / "RUN.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(DataError, match=r"results.fedit\.0.RUN\.json"):
        folder.record(study.runs[0])


DAMAGE = {
    "federated has 11 losses for 12 rows": lambda found: found["arms"]["federated"]["nll"].pop(),
    "local/south has 11 losses for 12 rows": lambda found: found["arms"]["local"]["each"]["south"].pop(),
    "the rows of federated give a loss of": lambda found: found["arms"]["federated"]["nll"].__setitem__(0, 1.0),
    "the rows of base give a loss of": lambda found: found["rows"]["tokens"].__setitem__(0, 999),
    "rows, their tokens or digests are missing": lambda found: found["digests"].pop("data"),
    "KeyError: 'ids'": lambda found: found["rows"].pop("ids"),
    "TypeError": lambda found: found["arms"]["federated"].update(nll="a" * 12),
}  # fmt: skip


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_record_whose_losses_do_not_fit_together_is_refused(reason, study, folder):
    write_results(study, folder)
    file = folder.results(study.runs[0]) / "RUN.json"
    found = json.loads(file.read_text("utf-8"))
    DAMAGE[reason](found)
    file.write_text(json.dumps(found), "utf-8")
    with pytest.raises(DataError, match=rf"RUN\.json is damaged: {reason}"):
        folder.record(study.runs[0])


def test_a_record_holds_rows_digests_and_settings_and_no_place(tmp_path, study):
    found = json.loads(record(study.runs[0], losses_of(study.runs[0]), tmp_path))
    assert set(found["digests"]) == {"config", "data", "held_out", "partition", "base", "tokenizer", "code", "adapter"}
    assert found["digests"]["config"] == study.runs[0].digest and found["config"]["run"] == {"seed": 0}
    assert set(found["arms"]["local"]) == {
        "loss",
        "mean",
        "best",
        "best_clients",
        "best_on_same_rows",
        "losses",
        "each",
    }
    assert str(tmp_path) not in json.dumps(found)


def test_a_large_record_leaves_out_single_clients_and_says_so(tmp_path, study):
    rng, tokens = np.random.default_rng(0), np.full(480, 80)

    def arms(clients):
        nll = rng.normal(200, 30, (clients + 1, 480))
        return held_out(tokens, {"base": nll[-1]}, {f"client-{i}": nll[i] for i in range(clients)})

    many = record(study.runs[0], arms(100), tmp_path)
    found = json.loads(many)
    assert len(many) <= LARGEST and found["arms"]["local"]["each"] == {} and found["left_out"]
    assert len(found["arms"]["local"]["losses"]) == 100 and len(found["arms"]["local"]["mean"]) == 480
    few = record(study.runs[0], arms(11), tmp_path)
    assert len(few) <= LARGEST // 2 and len(json.loads(few)["arms"]["local"]["each"]) == 11
    wide = held_out(tokens, {"base": rng.normal(200, 30, 480)}, {}, [f"{i:0>700}" for i in range(480)])
    with pytest.raises(ResourceError, match="more than 300,000"):
        record(study.runs[0], wide, tmp_path)


def test_a_run_directory_that_was_changed_is_not_recorded(tmp_path, study):
    planned = study.runs[0]
    losses = losses_of(planned)
    run_dir = run_directory(planned, losses, tmp_path)
    losses.models["federated"].nll[0] += 1.0
    (run_dir / LOSSES).write_bytes(losses_bytes(losses))
    with pytest.raises(DataError, match=r"the rows of the federated arm give a loss of"):
        record_of(run_dir, planned)


def test_a_run_without_a_finite_loss_is_not_recorded_and_named(tmp_path, study):
    planned = study.runs[0]
    losses = losses_of(planned)
    losses.models["local/north"].nll[:2] = np.nan
    with pytest.raises(DataError, match="2 of 12 held-out rows have no finite loss under local/north: it diverged"):
        record(planned, losses, tmp_path)


def test_data_that_changed_between_two_runs_are_a_deviation(study, folder):
    write_results(study, folder)
    states = [folder.progress(planned) for planned in study.runs]
    assert document(study, finished_records(study, folder), states)["deviations"] == []
    file = folder.results(study.runs[-1]) / "RUN.json"
    file.write_text(file.read_text("utf-8").replace("d" * 64, "e" * 64, 1), "utf-8")
    (said,) = document(study, finished_records(study, folder), states)["deviations"]
    assert said == "Not all runs are of one state: 2 different digests of data with the same settings."
