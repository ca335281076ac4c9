"""CONTRIBUTING.md as a contributor follows it: its commands exist, its examples run and keep their promises."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from report_runs import write_run
from shepherd import rng
from shepherd.cli.list import KINDS
from shepherd.clients.pool import Pool
from shepherd.clients.selection import build_selection
from shepherd.data.partition import divide
from shepherd.data.sources import load_examples
from shepherd.evaluation.metrics import Answer, metrics
from shepherd.round import Engine
from shepherd.server.methods import build_method
from shepherd.testing import check_aggregator
from shepherd.types import Example, Message

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (An? .*)\n((?:.|\n)*?)(?=^### |\Z)", PAGE, re.M))
TABLE = {
    name: (anchor, int(lines), int(files))
    for name, anchor, lines, files in re.findall(r"^\| \[(an? .*?)\]\(#(.*?)\) \| (\d+) \| (\d+) \|", PAGE, re.M)
}


def example(title: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", SECTIONS[title], re.M | re.S)
    return code


@pytest.fixture
def run(monkeypatch):
    """Execute the example of a section as a module; what it registers is gone afterwards."""
    for name, (module, _) in KINDS.items():
        registry = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))

    def run(title: str) -> ModuleType:
        module = ModuleType("my_lab")
        exec(compile(example(title), f"CONTRIBUTING.md, {title}", "exec"), vars(module))
        return module

    return run


def commands() -> Iterator[list[str]]:
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S):
        for line in block.splitlines():
            yield from (shlex.split(part, comments=True) for part in line.split("&&"))


def test_every_command_names_what_there_is():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.M)
    seen = []
    for words in commands():
        seen.append(Path(words[0]).name)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        elif words[0] == "nox":
            assert words[1] == "-s" and words[2].rpartition("-")[0] in sessions
        else:
            assert words[0].startswith(".venv/bin/"), words
            assert [path for path in words[1:] if path.startswith("tests/") and not (ROOT / path).exists()] == []
    assert {"make", "nox", "python", "ruff", "mypy"} == set(seen)


def test_every_addition_has_its_row_and_its_section():
    assert {name.lower() for name in SECTIONS} == set(TABLE)
    assert all(anchor == name.replace(" ", "-") for name, (anchor, _, _) in TABLE.items())


@pytest.mark.parametrize("title", [title for title in SECTIONS if TABLE[title.lower()][2] == 1])
def test_the_lines_of_the_table_are_those_of_the_example(title):
    function = example(title)[example(title).index("\n@") :]
    assert len([line for line in function.splitlines() if line.strip()]) == TABLE[title.lower()][1]


def test_the_aggregator_keeps_its_promises(run):
    run("An aggregator")
    check_aggregator("coordinate_median")


def test_the_method_is_built_and_exact_but_for_what_it_drops(run):
    run("A method")
    method = build_method("balanced", {})
    assert method.name == "balanced" and method.pieces.names()["merge"] == "product"


def test_the_piece_gives_shares_that_sum_as_the_weights_do(run):
    piece = run("A piece").square_root()
    uploads = type("Uploads", (), {"r": 3})()
    shares = piece.of(uploads, np.array([0.9, 0.1]))("q")
    # √0.9 : √0.1 = 3 : 1
    np.testing.assert_allclose(shares, np.repeat([[0.75], [0.25]], 3, axis=1))


def test_the_partitioner_gives_each_row_to_one_client(run):
    run("A partitioner")
    data = [Example(f"x:{n}", (Message("user", "q" * (n % 7)), Message("assistant", "a"))) for n in range(20)]
    first, again = (divide(data, "sorted_by_length", {}, 4, seed).clients for seed in (0, 1))
    assert first == again and sorted(i for ids in first.values() for i in ids) == sorted(e.id for e in data)


def test_the_selection_takes_the_clients_in_turn(run):
    run("A selection")
    selection, rounds, cohorts = build_selection("round_robin", {}), {}, []
    for number in (1, 2, 3):
        pool = Pool(number, ("a", "b", "c"), rounds=rounds)
        cohorts.append(selection.draw(pool, 2, rng.stream(0, "select", number)).clients)
        rounds = {**rounds, **dict.fromkeys(cohorts[-1], number)}
    assert cohorts == [("a", "b"), ("a", "c"), ("a", "b")], "in the third round b waited longest, then a by name"


def test_the_metric_gives_the_reference_the_best_score(run):
    run("A metric")
    metric = metrics.build("length_off", {"limit": 3.0})
    assert [metric.score(Answer(text, "four")) for text in ("four", "fours", "")] == [0.0, 1.0, 3.0]
    assert not metric.higher_is_better and metric.bounds == (0.0, 3.0)


def test_the_format_reads_its_rows(run, tmp_path):
    run("A data format")
    path = tmp_path / "desk.jsonl"
    path.write_text(json.dumps({"asked": "Where?", "replied": "Here."}) + "\n")
    data = load_examples(str(path))
    assert data.format == "ticket" and data.examples[0].messages[1] == Message("assistant", "Here.")


def test_the_engine_has_the_methods_of_the_protocol(run):
    engine = run("An engine").InTurn
    for name, method in inspect.getmembers(Engine, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(engine, name)).parameters
            assert list(ours) == list(inspect.signature(method).parameters), name


def test_the_command_prints_a_line_for_each_round(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/first"))
    done = CliRunner().invoke(run("A command").rounds, ["first"])
    written = Path("runs/first/rounds.jsonl").read_text(encoding="utf-8").splitlines()
    assert done.exit_code == 0 and len(done.output.splitlines()) == len(written) > 0
