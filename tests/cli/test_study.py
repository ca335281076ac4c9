"""`shepherd study` on results that are made up, and one study of tiny runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from console import Shell
from shepherd.experiment.study import forecast, running
from shepherd.experiment.study.folder import StudyFolder
from study_runs import TWO, losses_of, record, study_of, write_results


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(capsys, monkeypatch):
    return Shell(capsys, monkeypatch)


@pytest.fixture
def made_up(here):
    """A folder with the results of all runs but flora.2."""
    study = study_of(here)
    folder = StudyFolder(here / "studies" / "study")
    write_results(study, folder, leave_out=("flora.2",))
    return folder


def test_status_and_report_read_the_records_alone_and_load_no_torch(made_up, here):
    code = (
        "import sys; from shepherd.cli.main import main; main(['study', 'status', 'study.toml']); "
        "main(['study', 'report', 'study.toml']); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "study: 5 finished, 1 waiting" in done.stdout
    assert "study (unfinished: 5 of 6 runs)" in done.stdout
    assert {"report.html", "STUDY.md", "study.tex", "study.json", "study.csv"} <= {
        p.name for p in made_up.path.iterdir()
    }


def test_status_as_json_has_every_run(made_up, shell):
    found = json.loads(shell("study", "status", "study.toml", "--json").out)
    assert [run["state"] for run in found["runs"]] == ["finished"] * 5 + ["waiting"]


def test_a_failed_run_is_listed_with_the_first_line_of_its_error_and_the_status(made_up, shell, monkeypatch):
    from shepherd.errors import ClientError

    def fails(folder, planned, observer):
        raise ClientError("too few updates\nof two", "lower it")

    monkeypatch.setattr(running, "_carry_out_one", fails)
    done = shell("study", "run", "study.toml")
    assert done.status == 6 and "1 of 6 runs failed:\n  flora.2: too few updates\n" in done.err
    assert "flora.2 failed: too few updates" in (made_up.path / "STUDY.md").read_text()
    assert "flora.2  failed    too few updates" in shell("study", "status", "study.toml").out


def test_the_run_that_is_left_is_carried_out_without_the_directories_of_the_others(made_up, shell, monkeypatch):
    done = []

    def one(folder, planned, observer):
        done.append(planned.name)
        folder.write_record(planned, record(planned, losses_of(planned), folder.path))

    monkeypatch.setattr(running, "_carry_out_one", one)
    found = shell("study", "run", "study.toml", "--seeds", "0,1")
    assert (found.status, done) == (0, []) and "unfinished" in found.out
    found = shell("study", "run", "study.toml", "--only", "flora")
    assert (found.status, done) == (0, ["flora.2"]) and "unfinished" not in found.out


MISTAKES = {
    ("run", "--only", "flor"): "--only 'flor' is not a variant. Did you mean 'flora'?",
    ("run", "--seeds", "7"): "--seeds 7 is not a seed of the study",
    ("run", "--seeds", "a"): "cannot read --seeds 'a'",
    ("run", "--set", "lora.r=4"): "variants.fedit.lora.r: 8 then, 4 now",
    ("report", "--set", "lora.r=4"): "holds a study with another design",
    ("check", "--set", "lora.rr=4"): "unknown key 'lora.rr'",
    ("report", "--out", "nowhere"): "no study at nowhere",
    ("stats",): "no such command: shepherd study stats. Did you mean 'status'?",
}


@pytest.mark.parametrize("line", MISTAKES, ids=" ".join)
def test_a_mistake_on_the_command_line_is_refused(line, made_up, shell):
    command, *flags = line
    done = shell("study", command, "study.toml", *flags)
    assert done.status == 2 and MISTAKES[line] in done.err


JUDGED = (
    TWO
    + """
[[compare]]
a = "fedit"
b = "fedit:base"
margin = 0.01
row_sd = 0.1
seed_sd = 0.01
[[compare]]
a = "fedit:federated"
b = "fedit:local"
rows = "own"
[[compare]]
a = "flora"
b = "fedit"
[judge]
model = "judge-1"
number = 20
repeats = 2
prices = "prices.toml"
[budget]
hours = 1
judge_calls = 1000
"""
)


@pytest.fixture
def estimated(monkeypatch):
    """Runs of ten minutes with 480 held-out rows, without reading any data."""
    values = {"seconds": 600.0, "disk_bytes": 10**9, "held_out_rows": 480, "clients": 8, "warnings": ("short rows",)}
    monkeypatch.setattr(forecast, "estimate_of", lambda planned, folder: values)
    return values


def test_check_prints_runs_hours_disk_the_judges_cost_and_what_can_be_seen(here, shell, estimated):
    study_of(here, JUDGED.replace('"evaluation.arms', '"evaluation.local_clients=3", "evaluation.arms'))
    (here / "prices.toml").write_text("[judge-1]\ninput = 10\noutput = 30\n")
    done = shell("study", "check", "study.toml")
    assert done.status == 0, done.err
    assert "6 runs, about 1 h 00 min and 6.00 GB in all; 6 left" in done.out
    # 2 comparisons × 3 seeds × 20 questions × 2 orders × 2 repeats; 800 tokens in at 10, 142 out at 30 per million
    assert f"judge: 480 calls of judge-1, cost about {480 * (800 * 10 + 142 * 30) / 1e6:.2f}" in done.out
    own = next(line for line in done.out.splitlines() if "own rows" in line)
    assert "  3 clients  " in own, "three of the eight clients train alone"
    assert "study file" in done.out and "earlier studies" in done.out and not (here / "studies").exists()
    assert "its margin of 0.01 is below the smallest visible difference" in done.err and "short rows" in done.err


@pytest.mark.parametrize("change, words, status", [
    (("hours = 1", "hours = 0.5"), "about 1 hours, more than budget.hours = 0.5", 5),
    (("judge_calls = 1000", "judge_calls = 100"), "about 480 judge calls, more than budget.judge_calls = 100", 5),
    (('model = "judge-1"', 'model = "judge-2"'), "has no table of 'judge-2'. Did you mean 'judge-1'?", 2),
    (("prices.toml", "price.toml"), "price.toml is not there", 2),
])  # fmt: skip
def test_a_study_beyond_its_budget_is_refused_before_anything_starts(change, words, status, here, shell, estimated):
    study_of(here, JUDGED.replace(*change))
    (here / "prices.toml").write_text("[models.judge-1]\ninput = 10\noutput = 30\n")  # as shepherd judge reads it
    for command in ("check", *(("run",) if status == 5 else ())):
        done = shell("study", command, "study.toml")
        assert done.status == status and words in done.err, done.err
    assert not (here / "studies").exists()


TINY = """
seeds = [0, 1]
base = [
  "model.dtype=float32", "model.device=cpu", "run.threads=1", "data.rows_per_category=4",
  "data.held_out_per_category=2",
  "data.categories=open_qa,closed_qa", "data.max_length=64", "lora.r=2", "lora.alpha=4", "federation.rounds=2",
  "training.local_steps=1", "training.batch_size=2", "evaluation.generate=0", "evaluation.arms=base,federated,local",
]
[[compare]]
a = "federated"
b = "local"
rows = "own"
"""


def test_a_study_of_tiny_runs_goes_on_from_a_stop_and_measures_the_base_once(here, shell, model_folder, monkeypatch):
    from shepherd.cli.printed_study import Quiet
    from shepherd.engines.local import LocalEngine

    (here / "tiny.toml").write_text(TINY)
    line = ("study", "run", "tiny.toml", "--set", f"model.base={model_folder()}")
    of_base, evaluate = [], LocalEngine.evaluate

    def counted(self, model, rows):
        of_base.extend([1] * (model is None))
        return evaluate(self, model, rows)

    def stops(self, event):
        if event["event"] == "round" and event["round"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "evaluate", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Quiet, "show", stops)
        assert shell(*line).status == 130
    assert "tiny.0  stopped  1 of 2 rounds" in shell("study", "status", "tiny.toml", *line[3:]).out
    done = shell(*line)
    assert done.status == 0, done.err
    assert len(of_base) == 1 and len(list(Path("studies/tiny/base").iterdir())) == 1
    journal = Path("studies/tiny/runs/tiny.0/journal.jsonl").read_text()
    assert "resumed" in journal, "the stopped run was not started anew"
    for seed in (0, 1):
        kept = json.loads(Path(f"studies/tiny/results/tiny.{seed}/RUN.json").read_text())
        arms = json.loads(Path(f"studies/tiny/runs/tiny.{seed}/evaluation/metrics.json").read_text())["arms"]
        tokens = sum(kept["rows"]["tokens"])
        for arm in ("base", "federated"):
            assert kept["arms"][arm]["loss"] == arms[arm]["loss"]
            assert sum(kept["arms"][arm]["nll"]) / tokens == pytest.approx(arms[arm]["loss"], abs=1e-4)
        assert {client: len(at) for client, at in kept["rows"]["own"].items()} == {"closed_qa": 2, "open_qa": 2}
        assert kept["digests"]["held_out"] == kept["digests"]["held_out"] and kept["config"]["data"]["seed"] == 0
    shutil.rmtree("studies/tiny/runs")
    again = shell(*line)
    assert again.status == 0 and again.out == done.out and not Path("studies/tiny/runs").exists()
    shutil.rmtree("studies/tiny/results/tiny.1")
    (kept_base,) = Path("studies/tiny/base").iterdir()
    kept_base.write_bytes(kept_base.read_bytes()[:-8])
    repeated = shell(*line)
    assert repeated.out == done.out, "the same run gives the same figures again"
    assert len(of_base) == 2, "losses of the base that are damaged are measured again"
