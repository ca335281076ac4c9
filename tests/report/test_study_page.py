"""The page, text and LaTeX table of a study, from results that are made up."""

from __future__ import annotations

import csv
import json

import pytest

from shepherd.experiment.study.folder import StudyFolder
from shepherd.experiment.study.outputs import write_outputs
from shepherd.report.study.words import chart_label
from study_runs import TWO, study_of, write_results

COMPARED = """title = "Two <methods> & a | bar"
[[compare]]
a = "federated"
b = "base"
[[compare]]
a = "flora"
b = "fedit"
margin = 0.2
[[compare]]
a = "fedit:federated"
b = "local"
rows = "own"
"""


def written(tmp_path, text, leave_out=()):
    title, _, rest = text.partition("\n")
    study = study_of(tmp_path, f"{title}\n{TWO}{rest}" if title.startswith("title") else text)
    folder = StudyFolder(tmp_path / "out")
    write_results(study, folder, leave_out=leave_out)
    found = write_outputs(study, folder)
    names = ("report.html", "STUDY.md", "study.tex", "study.csv", "study.json")
    return found, {name: (folder.path / name).read_text() for name in names}


@pytest.fixture
def outputs(tmp_path):
    return written(tmp_path, COMPARED)


def test_every_comparison_has_its_verdict_in_all_forms(outputs):
    found, texts = outputs
    verdicts = [entry["verdict"] for entry in found["comparisons"]]
    assert verdicts == ["lower", "lower", "lower", "not distinguishable"], "two clients are too few for own rows"
    for name in ("report.html", "STUDY.md"):
        assert texts[name].count("the first is lower, which is better") == 3
    assert texts["study.tex"].count(r"^{\downarrow}$ &") == 3 and r"\toprule" in texts["study.tex"]
    assert "adjusted by Holm over all 4 comparisons of the study file" in texts["STUDY.md"]


def test_names_are_escaped_in_every_form(outputs):
    _, texts = outputs
    assert "Two &lt;methods&gt; &amp; a | bar" in texts["report.html"] and "<methods>" not in texts["report.html"]
    assert texts["STUDY.md"].startswith("# Two \\<methods> & a \\| bar\n")
    assert r"Two \textless{}methods\textgreater{} \& a \textbar{} bar" in texts["study.tex"]


def test_the_tidy_table_has_a_row_for_each_run_arm_and_row(outputs):
    found, texts = outputs
    rows = list(csv.DictReader(texts["study.csv"].splitlines()))
    assert len(rows) == 6 * 5 * 12, "6 runs; base, federated, centralised and 2 clients; 12 rows"
    tidy = json.loads(texts["study.json"])["losses"]
    assert [dict(zip(tidy["columns"], map(str, row), strict=True)) for row in tidy["rows"]] == rows
    first = [r for r in rows if (r["run"], r["arm"]) == ("fedit.0", "federated")]
    loss = sum(float(r["nll"]) for r in first) / sum(int(r["tokens"]) for r in first)
    arms = {a["arm"]: a["losses"]["0"] for a in found["variants"][0]["arms"]}
    assert loss == pytest.approx(arms["federated"], abs=1e-4)


def test_an_unfinished_study_says_so_in_its_title(tmp_path):
    found, texts = written(tmp_path, COMPARED, leave_out=("flora.2", "fedit.2"))
    assert not found["finished"] and "(unfinished: 4 of 6 runs)" in texts["report.html"].split("</title>")[0]
    assert texts["STUDY.md"].split("\n")[0].endswith("(unfinished: 4 of 6 runs)")
    assert "(unfinished: 4 of 6 runs)" in texts["study.tex"] and "verdicts may change" in texts["STUDY.md"]
    assert found["comparisons"][0]["seeds"] == [0, 1]


def test_a_study_without_results_has_a_page(tmp_path):
    found, texts = written(
        tmp_path, COMPARED, leave_out=tuple(f"{v}.{s}" for v in ("fedit", "flora") for s in range(3))
    )
    assert "No run is finished yet." in texts["report.html"] and found["runs_finished"] == 0
    assert all("no seed is finished on both sides" in entry["reason"] for entry in found["comparisons"])


def test_one_seed_is_named_as_what_it_is(tmp_path):
    text = TWO.replace("seeds = [0, 1, 2]", "seeds = [0]")
    _, texts = written(tmp_path, text)
    assert "One seed: the verdict holds for this training, other seeds may turn it." in texts["STUDY.md"]
    assert "intervals count the variation of rows alone" in texts["STUDY.md"]


def test_arms_with_another_budget_and_parts_that_were_not_done_are_declared(tmp_path, monkeypatch):
    import study_runs

    def with_other_budget(planned, rows):
        files = original(planned, rows)
        files["summary.json"]["budget"]["local"] = {
            **files["summary.json"]["budget"]["local"], "optimizer_steps_per_client": 3.0}  # fmt: skip
        files["summary.json"]["failed"] = [{"client": "east", "round": 1, "code": "diverged", "detail": ""}]
        return files

    original = study_runs._files
    monkeypatch.setattr(study_runs, "_files", with_other_budget)
    _, texts = written(tmp_path, TWO + '[judge]\nmodel = "gpt"\n[benchmarks]\ntasks = ["arc_easy"]\n')
    for words in (
        "fedit: the arms differ in optimizer steps in sequence: federated 6, centralised 6, local 3.",
        "training alone failed for east", "Answers were not judged here: the last section has the commands, for gpt.",
        "Benchmarks were not measured here: the last section has the commands, for arc\\_easy.",
        "    shepherd answer runs/fedit.0 runs/fedit.1 runs/fedit.2 --questions held-out --limit 80",
        "    shepherd judge runs/flora.0 runs/flora.1 runs/flora.2 --judge gpt --questions held-out",
        "    shepherd benchmark runs/fedit.0:base runs/fedit.0:federated --tasks arc_easy",
    ):  # fmt: skip
        assert words in texts["STUDY.md"], words


def test_the_page_loads_nothing_and_says_how_to_repeat_it(outputs):
    _, texts = outputs
    assert "<script" not in texts["report.html"] and 'src="http' not in texts["report.html"]
    assert "shepherd study run study.toml --only fedit --seeds 0" in texts["report.html"]


def test_the_label_of_a_comparison_has_room_in_a_picture():
    entry = {
        "a": {"variant": "eight", "arm": "federated"},
        "b": {"variant": "eight", "arm": "local:best"},
        "rows": "all",
    }
    assert chart_label(entry, "eight") == "− alone, best"
