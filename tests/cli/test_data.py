"""`shepherd data`: what is learned is marked, what is wrong is counted, who holds what is drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from console import Shell
from shepherd.cli import data_tables
from shepherd.recipe import load, recipes
from tiny import CHAT_TEMPLATE, tiny_model

ROWS = [
    {"instruction": f"Name colour {i}.", "response": f"It is {c}.", "category": c}
    for i in range(8)
    for c in ("red", "blue")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    rows = [*ROWS, {"instruction": "What?", "response": " ", "category": "red"}, ROWS[0]]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Shell(capsys, monkeypatch)


def test_inspect_marks_the_answers_and_their_end_and_nothing_else(shell, model):
    outcome = shell("data", "inspect", "x.jsonl", "--model", model, "--rows", "1")
    assert outcome.status == 0, outcome.err
    assert "Name colour 0.<|im_end|>\n<|im_start|>assistant\n⟦It is red.<|im_end|>⟧" in outcome.out
    assert outcome.out.count("⟦It") == 1 and "\x1b" not in outcome.out


def test_inspect_counts_format_categories_refused_rows_and_the_audit(shell, model):
    text = shell("data", "inspect", "x.jsonl", "--model", model).out
    assert "17 rows, format dolly" in text and "refused 1: empty answer (x:17)" in text
    assert "truncation to data.max_length = 512 takes 0 tokens from 0 rows" in text
    assert "duplicates" in text


def test_inspect_as_json_is_complete(shell, model):
    seen = json.loads(shell("data", "inspect", "x.jsonl", "--model", model, "--json", "--rows", "1").out)
    assert seen["rows"] == 17 and seen["categories"] == {"red": 9, "blue": 8}
    assert seen["refused"] == {"empty answer": {"rows": 1, "ids": ["x:17"]}}
    assert "".join(text for text, learned in seen["examples"][0]["pieces"] if learned) == "It is red.<|im_end|>"


def test_a_row_cannot_drive_the_terminal_it_is_shown_in(shell, model, tmp_path):
    rows = [{"instruction": "a\x1b]0;owned\x07b\x1b[2J", "response": "c\x1b[31md"}] * 2
    (tmp_path / "evil.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = shell("data", "inspect", "evil.jsonl", "--model", model).out
    assert "\x1b" not in text and "owned" not in text and "⟦cd<|im_end|>⟧" in text


def test_data_that_cannot_be_divided_is_inspected_all_the_same(shell, model):
    outcome = shell("data", "inspect", "x.jsonl", "--model", model, "--set", "partition.clients=99")
    assert outcome.status == 0 and "not partitioned over clients: 99 clients" in outcome.err


def test_one_row_is_too_few_to_hold_any_out(shell, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(ROWS[0]))
    outcome = shell("data", "partition", "one.jsonl")
    assert outcome.status == 3 and "no category has more than one row" in outcome.err and "more rows" in outcome.err


def test_a_misspelt_recipe_is_told_from_data_that_are_not_here(shell):
    outcome = shell("data", "partition", "demmo")
    assert outcome.status == 2 and "neither a recipe nor a data file: demmo. Did you mean 'demo'?" in outcome.err
    assert shell("data", "partition", "y.jsonl").status == 3


def test_partition_shows_each_client_with_its_rows_per_category(shell):
    arguments = [
        "--set",
        "partition.name=by_key",
        "--set",
        "partition.clients=0",
        "--set",
        "data.held_out_per_category=2",
    ]
    outcome = shell("data", "partition", "x.jsonl", *arguments)
    head, blue, red, *_ = outcome.out.splitlines()
    assert head.split() == ["client", "rows", "blue", "red"]
    assert blue.split() == ["blue", "6", "6", "██", "·"] and red.split()[:2] == ["red", "7"]
    assert "2 clients (by_key): 13 rows, 6 to 7 per client; 4 rows held out" in outcome.out


def test_many_categories_are_the_largest_and_the_others_under_names_that_differ(shell, tmp_path):
    # 30 categories: number 7 has 8 rows, the others 4 each; half of each is held out.
    sizes = {f"category number {c:02d}": 8 if c == 7 else 4 for c in range(30)}
    rows = [{"instruction": f"{c} {i}?", "response": "Yes.", "category": c} for c, n in sizes.items() for i in range(n)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = shell("data", "partition", "many.jsonl", "--set", "partition.clients=1")
    head, line = outcome.out.splitlines()[:2]
    names = [name for name in head.split("  ") if "…" in name or "others" in name]
    assert (
        len(names) == len(set(names)) == 24 and names[7].strip() == "category…er 07" and names[-1].strip() == "7 others"
    )
    assert line.split()[1] == "62" and line.split()[-2] == str(7 * 2)
    assert "category number 29" not in outcome.err


def test_partition_as_json_and_as_picture(shell):
    outcome = shell("data", "partition", "x.jsonl", "--svg", "p/table.svg", "--json", "--seed", "3")
    seen = json.loads(outcome.out)
    assert sum(map(sum, seen["counts"])) + seen["held_out"] == 17 and len(seen["clients"]) == 4
    assert Path("p/table.svg").read_text(encoding="utf-8").startswith("<svg") and "p/table.svg" in outcome.err
    again = json.loads(shell("data", "partition", "x.jsonl", "--json", "--seed", "3").out)
    assert again == seen


def test_partition_says_which_categories_are_too_small_to_hold_out_what_was_asked(shell):
    assert "blue 4 of 8" in shell("data", "partition", "x.jsonl", "--set", "data.held_out_per_category=5").err
    shown = json.loads(shell("data", "partition", "x.jsonl", "--set", "data.held_out_per_category=5", "--json").out)
    ((line, cases),) = shown["details"].items()
    assert line in shown["left_out"] and "category 'blue': 4 of 8 rows are held out, 5 were asked for" in cases


def test_the_demo_gives_each_of_its_eight_clients_one_kind_of_instruction(shell):
    counts = json.loads(shell("data", "partition", "demo", "--json").out)["counts"]
    assert len(counts) == 8 and all(sum(cell > 0 for cell in row) == 1 for row in counts)


@pytest.mark.parametrize("apart", [False, True], ids=["drawn", "from a file"])
def test_the_partition_shown_is_the_one_of_a_run_also_where_rows_are_refused(shell, tmp_path, apart):
    refusing = "{% if 'teapot' in messages[0]['content'] %}{{ raise_exception('no teapots') }}{% endif %}"
    model = tiny_model("llama", tmp_path / "model", chat_template=refusing + CHAT_TEMPLATE)
    teapots = [{**row, "instruction": f"Teapot {i}, a teapot."} for i, row in enumerate(ROWS[:3])]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, [*ROWS[:5], *teapots, *ROWS[5:]])))
    (tmp_path / "held").mkdir()
    held = [{**row, "instruction": f"{row['instruction']} Now!"} for row in [*ROWS[:2], *teapots[:1]]]
    (tmp_path / "held" / "mixed.jsonl").write_text("\n".join(map(json.dumps, held)))  # its ids are taken
    keys = ["partition.name=dirichlet", "partition.clients=2", "partition.alpha=1.0", "data.held_out_per_category=2"]
    keys += ["data.held_out_source=held/mixed.jsonl"] if apart else []
    settings = ["--model", model, *(f"--set={key}" for key in keys)]
    few = ["federation.rounds=1", "training.local_steps=1", "evaluation.arms=base,federated", "evaluation.generate=0"]
    run = shell("run", "--data", "mixed.jsonl", *settings, *(f"--set={s}" for s in few))
    assert run.status == 0, run.err
    saved = json.loads(Path("runs/own-data/partition.json").read_text(encoding="utf-8"))
    shown = json.loads(shell("data", "partition", "mixed.jsonl", "--tokenize", "--json", *settings).out)
    assert {key: shown[key] for key in ("clients", "categories", "counts")} == saved["table"]
    assert shown["dataset_digest"] == saved["dataset_digest"] and shown["held_out"] == len(saved["held_out"])
    assert shown["partition"] == saved["settings"] and shown["refused_when_tokenized"] == 3
    text = shell("data", "partition", "mixed.jsonl", "--tokenize", *settings).out
    assert "3 rows refused when tokenised" in text
    quick = shell("data", "partition", "mixed.jsonl", *settings)
    assert "not tokenised: rows that a run would refuse are counted" in quick.err
    untold = json.loads(shell("data", "partition", "mixed.jsonl", "--json", *settings).out)
    assert sum(map(sum, untold["counts"])) == sum(map(sum, shown["counts"])) + 3, "all three are counted"


def test_without_refused_rows_the_quick_partition_is_that_of_a_run(shell, tiny_run):
    shown = json.loads(shell("data", "partition", tiny_run.path / "config.toml", "--json").out)
    saved = json.loads((tiny_run.path / "partition.json").read_text(encoding="utf-8"))
    assert {key: shown[key] for key in ("clients", "categories", "counts")} == saved["table"]
    assert shown["dataset_digest"] == saved["dataset_digest"] and shown["refused_when_tokenized"] is None


def test_a_folder_holds_rows_out_of_each_file_as_a_run_does(shell, model, tmp_path):
    (tmp_path / "clinics").mkdir()
    for name, rows in (("a", ROWS[:6]), ("b", ROWS[6:10]), ("c", ROWS[10:])):
        (tmp_path / "clinics" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ["--model", model, "--set", "data.held_out_per_category=2"]
    quick, exact = (
        json.loads(shell("data", "partition", "clinics", "--json", *settings, *more).out)
        for more in ([], ["--tokenize"])
    )
    assert quick["dataset_digest"] == exact["dataset_digest"] and quick["held_out"] == 3 * 2


def test_what_a_run_leaves_out_of_its_data_is_in_its_warnings_its_summary_and_its_report(shell, model, tmp_path):
    turns = [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]
    rows = [{"messages": [{"role": "user", "content": f"Colour {i}?"}, turns[1]]} for i in range(5)]
    (tmp_path / "wards").mkdir()
    for name in "ab":
        longer = [{"messages": [*turns, {"role": "user", "content": f"Thanks, {name}!"}]}]
        (tmp_path / "wards" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, *longer])))
    (tmp_path / "wards" / "readme.txt").write_text("not a row")
    changed = "2 rows lost a part: turns after the last answer (first: a:6, b:6)"
    unread = "not data, so not read: readme.txt"
    keys = ("partition.name=files", "partition.clients=0", "data.held_out_per_category=1")
    settings = ["--model", model, *(f"--set={key}" for key in keys)]
    for more in ([], ["--tokenize"]):
        err = shell("data", "partition", "wards", *settings, *more).err
        assert changed in err and unread in err
        assert {changed, unread} <= set(
            json.loads(shell("data", "partition", "wards", *settings, *more, "--json").out)["left_out"]
        )
    few = ["federation.rounds=1", "training.local_steps=1", "evaluation.arms=base,federated", "evaluation.generate=0"]
    run = shell("run", "--data", "wards", *settings, *(f"--set={s}" for s in few), "--json")
    assert run.status == 0, run.err
    events = [json.loads(line) for line in run.out.splitlines()]
    assert {changed, unread} <= {event["message"] for event in events if event["event"] == "warning"}
    data = events[-1]["summary"]["data"]
    assert data["changed"] == {"turns after the last answer": [2, ["a:6", "b:6"]]} and data["notes"] == [unread]
    report = Path("runs/own-data/report.html").read_text(encoding="utf-8")
    assert "turns after the last answer" in report and unread in report


def test_a_file_of_held_out_rows_that_are_trained_on_too_is_warned_of(shell, model):
    apart = ["--model", model, "--set", "data.held_out_source=x.jsonl"]
    assert (
        "17 of 17 held-out rows ask what is also trained on"
        in shell("data", "partition", "x.jsonl", *apart, "--tokenize").err
    )
    assert "17 of 17 held-out rows ask what is also trained on" in shell("check", "--data", "x.jsonl", *apart).err
    assert "ask what is also" not in shell("check", "--data", "x.jsonl", "--model", model).err


def test_any_column_can_be_the_key_and_its_values_are_the_clients(shell):
    rows = [{**row, "user": f"user-{i % 3}", "source": "clinic"} for i, row in enumerate(ROWS)]
    Path("users.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    by_user = ("--set", "partition.name=by_key", "--set", "partition.key=user", "--set", "partition.clients=0")
    seen = json.loads(shell("data", "partition", "users.jsonl", *by_user, "--json").out)
    assert seen["clients"] == ["user-0", "user-1", "user-2"]
    assert seen["partition"]["key"] == "source"
    by_source = [part.replace("key=user", "key=source") for part in by_user]
    again = json.loads(shell("data", "partition", "users.jsonl", *by_source, "--columns", "source=user", "--json").out)
    assert again == seen


def test_the_languages_of_a_built_in_set_can_be_the_key(shell):
    pytest.importorskip("chatterbot_corpus")
    options = ("data.languages=english,german", "partition.key=language", "partition.clients=0")
    outcome = shell("data", "partition", "laptop", "--json", *(p for o in options for p in ("--set", o)))
    assert json.loads(outcome.out)["clients"] == ["english", "german"], outcome.err


def test_languages_of_rows_that_have_none_are_refused_and_not_ignored(shell):
    german = ["--set", "data.languages=german"]
    outcome = shell("data", "partition", "x.jsonl", *german)
    assert outcome.status == 2 and "data.languages = ['german'] says nothing about the rows of x.jsonl" in outcome.err
    assert (
        shell("data", "partition", "builtin:chatterbot", *german, "--set", "data.held_out_source=x.jsonl").status == 0
    )


def test_a_key_that_is_no_column_is_answered_with_the_columns(shell):
    outcome = shell("data", "partition", "x.jsonl", "--set", "partition.name=by_key", "--set", "partition.key=usr")
    assert outcome.status == 3 and "no column 'usr'" in outcome.err and "Found: instruction, response" in outcome.err
    assert "partition.key is category, source or one of them" in outcome.err


def test_a_key_and_another_column_for_the_source_are_refused_together(shell):
    two = ("--columns", "source=category", "--set", "partition.name=by_key", "--set", "partition.key=response")
    outcome = shell("data", "partition", "x.jsonl", *two)
    assert outcome.status == 2 and "partition.key = 'response' and data.columns.source = 'category'" in outcome.err


def test_the_laptop_recipe_makes_twelve_clients_of_some_rows_and_holds_out_as_many_of_each_as_it_says(shell):
    pytest.importorskip("chatterbot_corpus")
    assert "twelve topics" in recipes()["laptop"]
    outcome = shell("data", "partition", "laptop", "--json")
    seen, wanted = json.loads(outcome.out), load("laptop").data.held_out_per_category
    sizes = [sum(row) for row in seen["counts"]]
    assert len(sizes) == 12 and min(sizes) >= 10 and max(sizes) <= 6 * min(sizes)
    assert seen["held_out"] == 12 * wanted and "fewer than" not in outcome.err


def test_the_table_of_a_partition_fits_a_narrow_terminal_and_names_every_category(capsys, monkeypatch):

    names = [f"a category of a long name, {i}" for i in range(8)]
    counts = np.arange(16).reshape(2, 8) * 60
    lines = {}
    monkeypatch.setenv("COLUMNS", "80")
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        data_tables.print_partition(["hospital-north", "hospital-south"], names, counts)
        lines[terminal] = capsys.readouterr().out
    assert max(map(len, lines[True].splitlines())) <= 80 < max(map(len, lines[False].splitlines()))
    assert all(f"{i + 1}\N{NO-BREAK SPACE}{name}" in " ".join(lines[True].split("\n")) for i, name in enumerate(names))
    assert "900" in lines[True] and "900" in lines[False]  # 15 · 60


def test_names_in_wide_letters_count_twice_where_the_table_of_a_partition_has_to_fit(capsys, monkeypatch):

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = [f"{number}病院の分類名前" for number in "123456"]  # 8 characters in 15 columns
    data_tables.print_partition(["north", "south"], names, np.ones((2, 6), int))
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= 80 and "分類名前" in out
