"""`shepherd run`: flags -> config, notes, output; once for real on a tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from console import Shell
from report_runs import write_run
from shepherd.cli.printed_result import print_result
from shepherd.cli.settings import QUICK
from shepherd.config import Config
from shepherd.experiment import estimate
from shepherd.recipe import load, recipes
from shepherd.report import load_run
from shepherd.report.sections.alerts import alerts
from shepherd.report.sections.verdict import verdict
from tiny import tiny_model

SUMMARY = {
    "arms": {
        "base": {"loss": 2.6}, "federated": {"loss": 2.4}, "centralised": {"loss": 2.35},
        "local": {"a": {"loss": 2.5}, "b": {"loss": 2.46}},
    },
    "budget": {"federated": {"optimizer_steps": 24, "target_tokens": 5000}},
    "bytes_up": 7_372_800, "seconds": {"total": 61.0},
}  # fmt: skip
ROWS = [{"instruction": f"Name colour {i}.", "response": f"It is {c}.", "category": c} for i in range(8) for c in "ab"]


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


START = {
    "event": "start", "run": "runs/x", "config": {}, "model": "m", "clients": ["a"], "labels": {}, "rounds": 1,
    "arms": ["base"], "round": 0, "fraction": 0.0,
}  # fmt: skip


@pytest.fixture
def started(monkeypatch) -> list[Config]:
    """Configs that reach `experiment.run`, which here only tells three events and ends."""
    from shepherd.experiment import checks as starting
    from shepherd.experiment import run as experiment

    configs: list[Config] = []

    def finish(checked, observer=None, out_dir=None):
        configs.append(checked.config)
        observer(START)
        observer({"event": "evaluation", "arm": "base", "round": 0, "loss": float("nan")})
        observer({"event": "end", "run": "runs/x", "summary": SUMMARY})
        return SimpleNamespace(path=Path("runs/x"), summary=SUMMARY)

    monkeypatch.setattr(experiment, "run_checked", finish)
    monkeypatch.setattr(
        starting, "look_first", lambda config, note, progress=None: starting.Checked(config, None, None)
    )
    return configs


def test_without_a_recipe_the_demo_runs(shell, started):
    assert shell("run").status == 0
    assert started == [load("demo")]


def test_data_without_a_recipe_is_the_own_data_recipe_and_says_so(shell, started):
    outcome = shell("run", "--data", "my.jsonl", "--columns", "instruction=q,response=a", "--model", "org/m")
    assert started[0].run.name == "own-data" and started[0].data.source == "my.jsonl"
    assert dict(started[0].data.columns) == {"instruction": "q", "response": "a"} and started[0].model.base == "org/m"
    assert "own-data" in outcome.err


def test_a_folder_of_data_makes_each_file_a_client_unless_a_partitioner_is_named(shell, started):
    Path("clinics").mkdir()
    for name in ("north", "south"):
        Path(f"clinics/{name}.jsonl").write_text("{}\n")
    said = "no recipe given: --data uses the recipe own-data (2 clients, one per file or sub-folder: north, south)\n"
    assert shell("run", "--data", "clinics").err.startswith(said)
    assert started[0].partition.model_dump() == {"name": "by_key", "clients": 0, "key": "source"}
    assert "(4 clients, equal shares)" in shell("run", "--data", "clinics", "--set", "partition.name=iid").err
    assert (started[1].partition.name, started[1].partition.clients) == ("iid", 4)
    assert "(one client per file)" in shell("run", "--data", "clinics", "--set", "partition.name=files").err
    assert started[2].partition.model_dump() == {"name": "files", "clients": 0}
    assert "clinics names its clients: 2 clients" in shell("run", "demo", "--data", "clinics").err
    Path("mine.toml").write_text('[partition]\nname = "files"\n')
    assert "clinics names its clients: one client per file" in shell("run", "mine.toml", "--data", "clinics").err
    assert started[4].partition.name == "files"


def test_by_key_makes_a_client_of_each_key_and_not_the_recipe_s_four(shell, started):
    by_key = ["--set", "partition.name=by_key"]
    assert "(one client per category)" in shell("run", "--data", "my.jsonl", *by_key).err
    assert started[0].partition.clients == 0
    outcome = shell("run", "--data", "my.jsonl", *by_key, "--set", "partition.clients=6", "--set", "partition.key=user")
    assert "(one client per value of the column user, split or merged into 6 clients)" in outcome.err
    assert started[1].partition.clients == 6
    assert "(4 clients by dirichlet)" in shell("run", "--data", "my.jsonl", "--set", "partition.name=dirichlet").err
    assert started[2].partition.clients == 4


def test_flags_win_over_the_recipe_and_set_wins_over_everything(shell, started):
    shell("run", "laptop", "--seed", "3", "--name", "a", "--out", "there", "--set", "run.name=b", "--set", "lora.r=4")
    table = started[0].run
    assert (table.seed, table.name, table.out, started[0].lora.r) == (3, "b", "there", 4)


def test_quick_makes_a_run_smaller_and_says_what_it_changed(shell, started):
    outcome = shell("run", "laptop", "--quick")
    full, quick = load("laptop"), started[0]
    assert quick.federation.rounds == QUICK["federation.rounds"] < full.federation.rounds
    assert f"federation.rounds = {QUICK['federation.rounds']} (was {full.federation.rounds})" in outcome.err
    printed = outcome.err.split("--quick sets ")[1].split("\n")[0]
    changed = {key for key in QUICK if _value(full, key) != _value(quick, key)}
    assert {part.split(" = ")[0] for part in printed.split(", ")} == changed
    assert full.model_dump() != quick.model_dump() and quick.lora == full.lora


@pytest.mark.parametrize("recipe", recipes())
def test_quick_compares_with_the_clients_alone_that_the_recipe_compares_with(shell, started, recipe):
    """Beside two of eight clients alone, the demo's federation looked behind: the two happened to be good ones."""
    shell("run", recipe, "--quick")
    full, quick = load(recipe).evaluation, started[0].evaluation
    assert (quick.arms, quick.local_clients) == (full.arms, full.local_clients)


def test_the_demo_is_measured_after_every_round():
    assert load("demo").evaluation.every == 1


def test_quick_limits_whole_epochs_to_steps(shell, started):
    shell("run", "own-data", "--quick")
    assert started[0].training.local_steps == QUICK["training.local_steps"]


def test_quick_leaves_what_is_set_by_hand_or_small_already(shell, started):
    shell("run", "demo", "--quick", "--set", "federation.rounds=9", "--set", "evaluation.generate=1")
    assert started[0].federation.rounds == 9 and started[0].evaluation.generate == 1


def _value(config: Config, key: str):
    table, name = key.split(".")
    return getattr(getattr(config, table), name)


def test_the_result_on_stdout_compares_the_arms_and_the_talk_is_on_stderr(shell, started):
    outcome = shell("run")
    lines = {line.split("  ")[0]: line.split() for line in outcome.out.splitlines() if line}
    assert lines["base (not tuned)"][-1] == "2.600"
    assert lines["clients alone, mean"][3:] == ["2.480", "\N{MINUS SIGN}0.120"]  # (2.5 + 2.46) / 2
    assert lines["federated"] == ["federated", "2.400", "\N{MINUS SIGN}0.200", "24", "5,000"]
    assert "runs/x" in outcome.out and "7.37 MB" in outcome.out
    assert "shepherd chat runs/x --compare base" in outcome.err and "federated" not in outcome.err


@pytest.mark.parametrize(("clients", "name"), [(2, "clients alone, mean"), (8, "clients alone, mean of 2 of 8")])
def test_the_result_says_of_how_many_clients_the_mean_is_where_it_is_not_all(clients, name, capsys, tmp_path):
    budget = SUMMARY["budget"] | {"local": {"optimizer_steps": 48, "target_tokens": 2000}}
    print_result(tmp_path, SUMMARY | {"clients": clients, "budget": budget})
    mean, best, worst = (line for line in capsys.readouterr().out.splitlines() if "alone, " in line)
    assert mean.split("  ")[0] == name and mean.split()[-2:] == ["48", "2,000"]
    assert best.split("  ")[0] == name.replace("mean", "best") and worst.split("  ")[0] == name.replace("mean", "worst")


def test_the_result_has_the_headline_of_the_report_in_lines_of_the_terminal(capsys, tmp_path):
    run = write_run(tmp_path / "demo")
    print_result(run, SUMMARY)
    out = capsys.readouterr().out
    printed = " ".join(out.split())
    for sentence in (*verdict(load_run(run)), *alerts(load_run(run))):
        assert " ".join(sentence.split()) in printed, sentence
    assert "on their own held-out rows" in printed.lower() and all(
        len(line) <= 80 for line in out.splitlines() if line[:2] == "- "
    )


def test_json_is_one_strict_object_per_line_and_nothing_else_on_stdout(shell, started):
    events = [json.loads(line) for line in shell("run", "--json").out.splitlines()]
    assert [event["event"] for event in events] == ["start", "evaluation", "end"]
    assert events[1]["loss"] is None, "NaN is no JSON"


def test_a_failure_under_json_is_the_last_line_and_still_an_exit_status(shell, started, monkeypatch):
    from shepherd.errors import ClientError
    from shepherd.experiment import run as experiment

    def fail(checked, observer=None, out_dir=None):
        raise ClientError("round 2: 0 usable updates", hint="lower it")

    monkeypatch.setattr(experiment, "run_checked", fail)
    outcome = shell("run", "--json")
    last = json.loads(outcome.out.splitlines()[-1])
    assert outcome.status == last["exit_status"] == 6
    assert (last["event"], last["message"], last["hint"]) == ("error", "round 2: 0 usable updates", "lower it")


@pytest.mark.parametrize(
    "failure, status, message",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "terminated"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'"),
    ],
)
def test_under_json_a_run_that_ends_early_says_so_in_its_last_line(
    shell, started, monkeypatch, failure, status, message
):
    from shepherd.experiment import run as experiment

    def fail(checked, observer=None, out_dir=None):
        observer(START)
        raise failure

    monkeypatch.setattr(experiment, "run_checked", fail)
    outcome = shell("run", "--json")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "error"]
    assert outcome.status == events[-1]["exit_status"] == status and events[-1]["message"] == message


@pytest.mark.parametrize("wrong", [("no-such-recipe",), ("--set", "lora.r=0"), ("--bogus",)])
def test_under_json_a_mistake_in_the_command_or_recipe_is_one_line_of_json(shell, wrong):
    outcome = shell("run", "--json", *wrong)
    (line,) = outcome.out.splitlines()
    printed = json.loads(line)
    assert outcome.status == printed["exit_status"] == 2 and printed["event"] == "error"
    assert f"error: {printed['message']}" in outcome.err


def test_an_interrupted_run_says_how_to_go_on(shell, started, monkeypatch):
    from shepherd.experiment import run as experiment

    def interrupt(checked, observer=None, out_dir=None):
        observer(START)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run_checked", interrupt)
    outcome = shell("run")
    assert outcome.status == 130 and "shepherd resume runs/x" in outcome.err


def test_check_prints_the_plan_with_units_and_as_json(shell, monkeypatch):
    from shepherd.experiment import checks as starting

    plan = {"clients": 8, "bytes_up": 7_372_800, "seconds": 61.0, "memory_bytes": 2e9, "tokens": {"federated": 1200}}
    monkeypatch.setattr(estimate, "plan_checked", lambda checked, progress=None: plan)
    monkeypatch.setattr(
        starting, "look_first", lambda config, note, progress=None: starting.Checked(config, None, None)
    )
    text = shell("check", "demo").out
    assert "7.37 MB" in text and "1 min 01 s" in text and "2.00 GB" in text and "federated 1,200" in text
    assert json.loads(shell("check", "demo", "--json").out) == plan


def test_a_run_of_own_rows_on_a_tiny_model_can_be_reported_talked_to_exported_and_measured(
    shell, tmp_path, monkeypatch
):
    model = tiny_model("llama", tmp_path / "model")
    Path("x.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    small = ["--set", "data.held_out_per_category=2", "--set", "training.local_steps=1", "--set", "federation.rounds=2"]
    outcome = shell("run", "--data", "x.jsonl", "--model", model, "--set", "evaluation.generate=1", *small)
    assert outcome.status == 0, outcome.err
    assert "round 2/2, 4 clients" in outcome.err and "centralised" in outcome.out
    run = Path("runs/own-data")
    assert (run / "report.html").is_file() and str(run / "report.html") in outcome.out
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["arms"]) == {"base", "federated", "local", "centralised"}
    assert shell("config", "show", run / "config.toml").status == 0, "the resolved config runs again"

    # What one does with it afterwards, on the same run.
    monkeypatch.setattr("sys.stdin", io.StringIO("Name colour 3.\n/quit\n"))
    talk = shell("chat", "own-data", "--compare", "base", "--max-new-tokens", "4")
    assert talk.status == 0 and "base" in talk.out, talk.err
    for form in ("peft", "merged"):
        outcome = shell("export", "own-data", "--to", form, "--out", form)
        assert outcome.status == 0 and outcome.out.strip() == form, outcome.err
    assert Path("peft/adapter_config.json").is_file() and Path("merged/config.json").is_file()
    measured = json.loads(shell("evaluate", "own-data", "--json").out)
    assert measured["federated"]["loss"] == pytest.approx(summary["arms"]["federated"]["loss"], rel=1e-5)


def test_run_resume_is_resume_and_takes_no_settings_beside_it(shell, tiny_run):
    outcome = shell("run", "--resume", str(tiny_run.path))
    assert outcome.status == 0 and "is already finished; nothing to resume" in outcome.err
    Path("runs").mkdir()
    Path("runs/by-name").symlink_to(tiny_run.path)
    assert "is already finished; nothing to resume" in shell("resume", "by-name").err, (
        "as every command that takes a run"
    )
    assert "Did you mean 'by-name'?" in shell("resume", "by-nmae").err
    for more in (("demo",), ("--seed", "0"), ("--set", "lora.r=4")):
        refused = shell("run", "--resume", str(tiny_run.path), *more)
        assert refused.status == 2 and "a resumed run keeps its settings" in refused.err
        assert f"shepherd resume {tiny_run.path}" in refused.err
