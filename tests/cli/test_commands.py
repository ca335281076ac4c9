"""The entry and the light commands: exit statuses, help, lists, settings, completion, the doctor."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import pytest

from console import Shell
from report_runs import write_run
from shepherd import __version__, config, recipe
from shepherd.cli.commands import cli
from shepherd.cli.printed_result import print_result
from shepherd.errors import EXIT_CODES
from shepherd.experiment import remeasure

SOURCES = Path(__file__).parents[2] / "src"
DOCS = SOURCES.parent / "docs"


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))
    return Shell(capsys, monkeypatch)


def test_help_lists_every_command_and_every_exit_status(shell):
    outcome = shell("--help")
    assert outcome.status == 0 and outcome.err == ""
    commands = {"run", "check", "data", "model", "evaluate", "report", "compare", "chat", "export", "list", "config"}
    commands |= {"runs", "copy", "doctor", "completion"}
    assert [name for name in commands if f"\n  {name} " not in outcome.out] == []
    assert [code for code in EXIT_CODES if f"\n  {code:5}  " not in outcome.out] == []
    assert shell().out == outcome.out, "without a command the help is shown"


def test_the_version_is_data(shell):
    assert shell("--version").out == f"shepherd, version {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(["rnu"], "Did you mean 'run'?"), (["data", "inspct"], "Did you mean 'inspect'?"),
     (["run", "--quik"], "'--quick'"), (["list", "partitioner"], "Did you mean 'partitioners'?"),
     (["check", "lapto"], "Did you mean 'laptop'?"), (["run", "--lora.r", "4"], "--set lora.r=VALUE"),
     (["run", "--rounds=4"], "--set federation.rounds=VALUE")],
)  # fmt: skip
def test_a_typing_error_is_answered_with_what_was_meant_and_status_2(shell, typed, meant):
    outcome = shell(*typed)
    assert outcome.status == 2 and meant in outcome.err and outcome.out == ""
    assert outcome.err.startswith("error: ") and "\nhint: " in outcome.err


def test_an_error_shows_its_traceback_only_with_debug(shell, monkeypatch):
    assert "Traceback" not in shell("check", "nosuch").err
    assert "Traceback" in shell("check", "nosuch", "--debug").err
    assert "Traceback" in shell("--debug", "check", "nosuch").err
    monkeypatch.setenv("SHEPHERD_DEBUG", "1")
    assert "Traceback" in shell("check", "nosuch").err


def test_a_failure_of_our_own_is_one_line_and_says_how_to_see_more(shell, monkeypatch):
    monkeypatch.setattr(recipe, "recipes", lambda: 1 / 0)
    outcome = shell("list", "recipes")
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert outcome.err.startswith(
        "error: unexpected ZeroDivisionError: division by zero\nhint: this is a bug in Shepherd: run again with --debug"
    )


def test_ctrl_c_ends_with_130(shell, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "recipes", interrupt)
    outcome = shell("list", "recipes")
    assert (outcome.status, outcome.err.strip()) == (130, "error: interrupted")


def test_sigterm_ends_with_143_and_runs_the_cleaning_up(shell, monkeypatch):
    cleaned = []

    def terminated():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(recipe, "recipes", terminated)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert shell("list", "recipes").status == 143
        assert cleaned == [True]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "the handler of a caller is put back"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_console_entry_exits_with_the_status_of_the_error():
    command = [sys.executable, "-m", "shepherd", "check", "nosuch"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: recipe not found: nosuch.")


def test_output_that_nobody_reads_any_more_is_no_traceback():
    command = f"{sys.executable} -m shepherd config show | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[", "")


def run_with(redirection: str, *arguments: str) -> subprocess.CompletedProcess:
    command = f"{sys.executable} -m shepherd {' '.join(arguments)} {redirection}"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_no_bug_of_ours_and_no_traceback():
    done = run_with("> /dev/full", "list", "recipes")
    assert done.returncode == 5 and "No space left on device" in done.stderr
    done = run_with("> /dev/full", "run", "--set", "lora.r=0", "--json")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_stdout_that_is_closed_is_written_to_by_nobody():
    done = run_with(">&-", "list", "recipes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_picture_that_cannot_be_written_is_answered_with_its_place_and_status_5(shell, folder):
    Path("file").touch()
    write_run(Path("runs/a"))
    outcome = shell("compare", "a", "--html", f"{folder}/page.html")
    assert outcome.status == 5 and f"error: {folder}/" in outcome.err and "bug in Shepherd" not in outcome.err


def test_list_shows_each_name_of_each_registry_with_its_options(shell):
    found = json.loads(shell("list", "--json").out)
    pieces = {"starts", "views", "schedules", "homes", "payloads", "weighings", "merges", "splits", "remainders"}
    kinds = {
        "recipes",
        "partitioners",
        "datasets",
        "formats",
        "selections",
        "methods",
        "aggregators",
        *pieces,
        "optimizers",
        "arms",
        "metrics",
        "personalizations",
    }
    assert set(found) == kinds
    options = {entry["name"]: entry["options"] for entry in found["partitioners"]}
    assert "alpha = 0.5" in options["dirichlet"] and options["iid"] == []
    assert all(entry["about"] for entries in found.values() for entry in entries)
    text = shell("list").out
    assert [e["name"] for entries in found.values() for e in entries if f"  {e['name']} " not in text] == []


def test_config_show_prints_toml_that_runs_again_as_the_same_config(shell):
    outcome = shell("config", "show", "demo", "--set", "lora.r=4", "--origin")
    Path("again.toml").write_text(outcome.out)
    assert recipe.load("again.toml") == recipe.load("demo", ["lora.r=4"])
    assert tomllib.loads(shell("config", "show").out)["lora"]["r"] == config.Config().lora.r


def test_config_show_says_where_each_value_comes_from(shell):
    outcome = shell("config", "show", "demo", "--quick", "--seed", "7", "--set", "lora.r=4", "--json")
    origin = {entry["key"]: entry["origin"] for entry in json.loads(outcome.out)}
    assert origin["lora.r"] == "--set" and origin["run.seed"] == "--seed" and origin["federation.rounds"] == "--quick"
    assert origin["partition.key"] == "recipe demo" and origin["lora.alpha"] == "default"
    assert set(config.keys()) <= set(origin), "every key is shown"


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell, name):
    outcome = shell("completion", name)
    assert outcome.status == 0 and "_SHEPHERD_COMPLETE" in outcome.out


def test_completion_offers_recipes_keys_and_runs(tmp_path):
    write_run(tmp_path / "runs" / "first")

    def offered(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - (not line.endswith(" ")))}
        environment = {**os.environ, **words, "PYTHONPATH": str(SOURCES), "_SHEPHERD_COMPLETE": "bash_complete"}
        done = subprocess.run(
            [sys.executable, "-m", "shepherd"], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        return [answer.split(",", 1)[1] for answer in done.stdout.splitlines()]

    assert "demo" in offered("shepherd run de")
    assert offered("shepherd run --set lora.rs") == ["lora.rslora="]
    assert offered("shepherd report ru") == ["runs/first"]


def test_a_run_is_found_by_path_and_by_name_and_a_misspelt_one_is_answered_with_the_nearest(shell):
    write_run(Path("runs") / "first")
    assert Path(shell("report", "runs/first").out.strip()).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert shell("report", "first").status == 0
    outcome = shell("report", "frist")
    assert outcome.status == 2 and "run not found: frist. Did you mean 'first'?" in outcome.err
    assert "error: not a run directory (no config.toml): .\n" in shell("report", ".").err


def test_compare_puts_runs_side_by_side_as_text_page_and_json(shell):
    for name in ("one", "two"):
        write_run(Path("runs") / name)
    outcome = shell("compare", "one", "runs/two", "--html", "both.html")
    assert outcome.status == 0 and "one" in outcome.out and "two" in outcome.out and "both.html" in outcome.err
    assert Path("both.html").stat().st_size > 1000
    assert json.loads(shell("compare", "one", "two", "--json").out)["rows"][1]["name"] == "two"


def test_model_list_names_the_built_in_model_and_the_line_that_fetches_it(shell):
    outcome = shell("model", "list")
    assert "smollm2-135m" in outcome.out and "shepherd model pull smollm2-135m" in outcome.err
    assert json.loads(shell("model", "list", "--json").out)[0]["path"] is None


def test_the_doctor_says_versions_processor_memory_cache_and_models(shell):
    outcome = shell("doctor", "--json")
    lines = {
        line["name"]: line
        for section in json.loads(outcome.out)
        for line in section["lines"]
        if section["name"] != "extras"
    }
    assert lines["shepherd"]["value"] == __version__ and lines["OMP_WAIT_POLICY"]["value"] == "PASSIVE"
    assert {"python", "torch", "processor", "instructions", "cores", "memory", "disk here", "gpu"} <= set(lines)
    assert lines["smollm2-135m"]["state"] == "note" and "model pull" in lines["smollm2-135m"]["hint"]
    assert "processor" in shell("doctor").out


def test_the_doctor_warns_of_spinning_threads(shell, monkeypatch):
    from shepherd.cli import doctor

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    lines = [line for section in doctor.examine() for line in section.lines if line.name == "OMP_WAIT_POLICY"]
    assert lines[0].state == "note" and "several times slower" in lines[0].hint


@pytest.mark.parametrize(
    ("cores", "printed"),
    [(4, "4, all usable cores, or 1 where the probe of a run finds that faster"), (1, "1, the only usable core")],
)
def test_the_doctor_says_how_many_threads_a_run_would_use_and_why(shell, monkeypatch, cores, printed):
    from shepherd.cli import doctor
    from shepherd.model import threads

    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    lines = {line.name: line for section in doctor.examine() for line in section.lines}
    assert lines["threads"].value.startswith(printed) and "run.threads" in lines["threads"].value
    assert lines["OMP_NUM_THREADS"].state == "note" and "run.threads = 3" in lines["OMP_NUM_THREADS"].hint
    assert lines["GOMP_SPINCOUNT"].state == "note" and "GOMP_SPINCOUNT=10000" in lines["GOMP_SPINCOUNT"].hint
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    lines = {line.name: line for section in doctor.examine() for line in section.lines}
    assert (lines["GOMP_SPINCOUNT"].value, lines["GOMP_SPINCOUNT"].state) == ("10000", "ok")


def test_the_doctor_ends_with_status_5_where_no_run_can_work(shell, monkeypatch):
    from shepherd.cli import doctor

    monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    monkeypatch.setattr(doctor, "_requirements", lambda extra="": [])
    outcome = shell("doctor")
    assert outcome.status == 5 and "no-such-package: not installed" in outcome.err
    assert "hint: pip install 'no-such-package'" in outcome.err


def test_the_page_for_scripts_names_the_commands_that_take_no_json():
    def named(group: click.Group, before: str = ""):
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from named(command, f"{before}{name} ")
            else:
                yield f"{before}{name}", command

    without = [f"`{name}`" for name, command in named(cli) if "as_json" not in {p.name for p in command.params}]
    page = " ".join((DOCS / "scripts.md").read_text(encoding="utf-8").split())
    sentence = page[page.index("every command but") : page.index("takes `--json`")]
    assert sorted(re.findall("`[^`]+`", sentence)) == sorted(without) != []


def test_the_first_pages_name_every_recipe_exit_status_and_only_commands_that_exist(shell):
    recipes, scripts = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("recipes", "scripts"))
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in recipe.recipes() if f"| `{name}` |" not in recipes] == []
    assert [code for code in EXIT_CODES if code < 130 and f"\n| {code} | " not in scripts] == []
    from shepherd.cli.commands import cli

    lines = [line.split("#")[0].split() for line in f"{readme}\n{recipes}".splitlines() if line.startswith("shepherd ")]
    assert {line[1] for line in lines} <= set(cli.commands) and len(lines) > 10
    for line in lines:
        command = cli.commands[line[1]]
        command = command.commands[line[2]] if hasattr(command, "commands") else command
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert [word for word in line if word.startswith("--") and word not in known] == [], line


def test_list_methods_is_a_table_of_pieces_bytes_and_sources(shell):
    text = shell("list", "methods").out
    (line,) = [line for line in text.splitlines() if line.startswith("fedex_lora ")]
    assert "merge=product remainder=keep" in line and "1.84 MB" in line and "18.4 MB" in line and "2410.09432" in line
    rows = {row["name"]: row for row in json.loads(shell("list", "methods", "--json").out)["methods"]}
    assert rows["fedit"]["exact"] == "no" and rows["ffa_lora"]["exact"] == "yes"
    assert rows["hetlora"]["experimental"] and not rows["flora"]["experimental"]
    assert rows["flora"]["mixed_ranks"] and not rows["flora"]["sum_only"]


def test_a_round_that_was_kept_is_measured_too_and_an_adapter_that_is_gone_says_which_there_are(
    shell, tiny_run, tmp_path
):
    run = tmp_path / "a run"
    shutil.copytree(tiny_run.path, run)
    shutil.rmtree(run / "adapter")
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        measured = json.loads(shell("evaluate", run, "--round", line["round"], "--json").out)
        assert measured["federated"]["loss"] == pytest.approx(line["held_out_loss"], abs=1e-5)
    assert lines[0]["held_out_loss"] != lines[1]["held_out_loss"]
    for command in (("evaluate", run), ("chat", run), ("export", run, "--out", tmp_path / "out")):
        printed = shell(*command)
        assert printed.status == 2 and "has no adapter" in printed.err
        assert "shepherd evaluate and chat take a round with --round: 1, 2" in printed.err
        assert f"shepherd run '{run}/config.toml'" in printed.err  # resume does nothing: it had finished
        assert "did not get to its end" not in printed.err
    (run / "summary.json").unlink()
    printed = shell("evaluate", run)
    assert "did not get to its end" in printed.err and f"shepherd resume '{run}'" in printed.err


@pytest.mark.parametrize(
    "difference, said",
    [
        ({"difference": 0.1, "ci95": [0.05, 0.15]}, "difference +0.100, 95 % interval +0.050 to +0.150"),
        (
            {"difference": 0.1, "ci95": [-0.1, 0.3]},
            "95 % interval −0.100 to +0.300, which includes 0: too small to tell",
        ),
        (
            {"difference": 0.0, "ci95": [None, None], "no_interval": "equal on every row"},
            "no interval: equal on every row",
        ),
    ],
)
def test_evaluate_says_when_a_difference_is_too_small_and_why_there_is_no_interval(
    shell, monkeypatch, difference, said
):

    arm = {"rows": 2, "loss": 2.0, "token_accuracy": 0.5, "per_category": {}}
    answer = {"base": arm, "federated": arm, "difference": {"no_interval": None, **difference}}
    monkeypatch.setattr(remeasure, "evaluate_run", lambda folder, number: answer)
    assert shell("evaluate", write_run(Path("runs") / "x")).out.splitlines()[-1].endswith(said)


def test_of_many_runs_the_last_are_named_and_the_rest_counted(shell):
    for number in range(17):
        write_run(Path("runs") / f"r{number:02}")
    printed = shell("evaluate", "missing").err
    assert "hint: runs here: …, runs/r09, runs/r10" in printed and printed.rstrip().endswith("runs/r16 (17 in all)")


def test_what_to_type_next_can_be_copied_also_where_the_path_has_spaces(capsys):
    print_result(Path("my runs/demo"), {})
    assert "shepherd chat 'my runs/demo' --compare base" in capsys.readouterr().err
