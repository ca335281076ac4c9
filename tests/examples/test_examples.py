"""The scripts and the notebook in examples/, each run as it stands, with a tiny model in place of the built-in one."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import shepherd
from tiny import tiny_builtin, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "federation.ipynb"
REGISTRIES = (shepherd.aggregators, shepherd.metrics, shepherd.partitioners)


@pytest.fixture(scope="module", autouse=True)
def _a_folder_with_the_tiny_model(tmp_path_factory):
    """An empty working directory for all examples, the built-in model a tiny one, and registries and threads kept."""
    import torch

    here, threads = tmp_path_factory.mktemp("examples"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHEPHERD_CACHE", str(here / "cache"))
        patch.chdir(here)
        for registry in REGISTRIES:
            patch.setattr(registry, "_factories", dict(registry._factories))
        tiny_builtin(tiny_model("llama", here, num_hidden_layers=1), here / "cache")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def printed(capsys, monkeypatch):
    """printed("median", …) -> the lines that `python examples/median.py …` prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def falls(losses: list[float]) -> bool:
    return len(losses) > 1 and losses == sorted(set(losses), reverse=True)


def rises(losses: list[float]) -> bool:
    return falls(losses[::-1])


def test_the_median_resists_a_wild_client_and_the_mean_does_not(printed):
    mean, median = map(numbers, printed("median"))
    assert len(mean) == len(median) == 4 and mean[0] == median[0]
    assert rises(mean) and falls(median)


def test_a_partitioner_mixes_by_its_option_and_its_federation_learns(printed):
    *divided, clients, losses = printed("partitioner")
    apart, some, mixed = ([tuple(map(int, pair)) for pair in re.findall(r"(\d+)/(\d+)", line)] for line in divided)
    assert apart == [(48, 48)] * 8
    assert all(sum(rows for _, rows in division) == 384 for division in (apart, some, mixed))
    shares = [sum(most for most, _ in division) / 384 for division in (apart, some, mixed)]
    assert 1 > shares[1] > 0.75 and shares[2] < 0.4  # mixed 0.2 keeps 0.8 + 0.2 / 8; the largest of 8 equal parts
    assert clients.count("client-") == 4 and falls(numbers(losses)) and len(numbers(losses)) == 3


def test_a_metric_is_measured_for_both_arms_and_is_in_the_report(printed):
    base, federated, report = printed("metric")
    assert base.strip().startswith("base: {'rouge_l': ") and federated.startswith("federated: {'rouge_l': ")
    assert all("'right_length(tolerance=0.3)': " in line and "'rows': 8" in line for line in (base, federated))
    assert "Right length" in Path(report.removeprefix("report: ")).read_text(encoding="utf-8")


def test_an_engine_loses_updates_and_the_rounds_go_on(printed):
    base, *rounds = printed("engine")
    assert falls([*numbers(base), *(numbers(line)[0] for line in rounds)])
    lost = [line.split("lost: ")[1].split(", ") for line in rounds]
    assert len(lost) == 3 and 0 < sum(map(len, lost)) < 24 and lost[0] != lost[1]


def test_rows_in_python_are_those_of_the_named_clients(printed):
    clients, base, *rounds, saved = printed("own_data")
    assert clients == "clients: {'Anna-s-kitchen': 3, 'Ben-s-farm': 4}"
    assert falls([*numbers(base), *(numbers(line)[0] for line in rounds)]) and len(rounds) == 3
    assert (Path(saved.removeprefix("saved: ")) / "adapter_config.json").exists()


def test_base_and_tuned_model_answer_the_same_questions_in_a_new_run_and_in_one_that_is_there(printed):
    answers = printed("chat")
    text = "\n".join(answers)
    assert text.count("Q: ") == 2 and text.count("   base: ") == 2 and text.count("   tuned: ") == 2
    assert len({answer.split(": ", 1)[1] for answer in answers if answer.startswith("   ")}) == 4
    assert printed("chat", "runs/chat") == answers


def test_no_script_is_left_out():
    run = re.findall(r'printed\("(\w+)"', Path(__file__).read_text(encoding="utf-8").split("\n\n\n", 1)[1])
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*run, "median"}


def test_the_notebook_is_stored_without_outputs_and_its_cells_work_in_order(capsys):
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert NOTEBOOK.read_text(encoding="utf-8") == json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}[{number}]", "exec"), names)
    assert set(names["curves"]) == {"mean", "clipped_mean"} and all(map(falls, names["curves"].values()))
    out = capsys.readouterr().out
    assert out.count("round 3") == 2 and "█" in out and out.count(" → ") == 8
