"""An arm that a program registers is trained, measured, summed up, reported and compared; nothing else knows it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from shepherd.arms import Arm, Setup, arms, registered, shown
from shepherd.cli.main import main
from shepherd.cli.printed_result import print_result
from shepherd.errors import DataError, UsageError
from shepherd.experiment.baselines import Baseline
from shepherd.experiment.checks import registry_problems
from shepherd.experiment.estimate import plan
from shepherd.experiment.method import compose
from shepherd.recipe import load
from shepherd.report import compare, write_report
from shepherd.report.arms import every_arm
from shepherd.report.charts import MARKERS


@pytest.fixture(scope="module")
def first_client():
    @arms
    def first_client() -> Arm:
        """One model on the rows of the first client."""

        def train(setup: Setup):
            rows = setup.clients[min(setup.clients)]
            return setup.train_one(rows, *setup.share(len(rows)))

        return Arm(label="first client", train=train, budget=1 / 8)

    yield
    del arms._factories["first_client"]


@pytest.fixture(scope="module")
def run(first_client, run_small):
    return run_small("evaluation.arms=base,federated,centralised,first_client")


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run.path / "evaluation/metrics.json").read_text())


def test_a_new_arm_is_trained_on_the_rows_it_names_at_the_budget_it_names(run, run_small):
    spent = run.summary["budget"]["first_client"]
    alone = run_small(
        "evaluation.arms=base,federated,local", 'evaluation.local_clients=["brainstorming"]', "evaluation.generate=0"
    )
    assert spent == alone.summary["budget"]["local"]
    losses = [run.summary["arms"][arm]["loss"] for arm in ("base", "federated", "centralised", "first_client")]
    assert len(set(losses)) == 4 and losses[3] < losses[0]
    assert (run.path / "arms/first_client/adapter_model.safetensors").is_file()
    assert [e["phase"] for e in run.events if e.get("arm") == "first_client" and e["event"] == "phase"] == ["train"]
    assert run.summary["seconds"]["first_client"] > 0


def test_a_new_arm_is_measured_like_the_others(metrics):
    assert set(metrics["arms"]) == {"base", "federated", "centralised", "first_client"}
    assert [at for at, _ in metrics["curves"]["first_client"]] == [0, 1, 2]
    pairs = {(entry["a"], entry["b"]) for entry in metrics["differences"]}
    assert {("federated", "first_client"), ("first_client", "base")} <= pairs
    assert metrics["arms"]["first_client"]["generation"]["rows"] == 2


def test_estimate_and_progress_count_the_budget_of_a_new_arm(run):
    expected = plan(run.config)
    assert expected.tokens["first_client"] == pytest.approx(expected.tokens["centralised"] / 8, rel=0.01)
    assert expected.learning_rates["first_client"] == 0.01
    fractions = [event["fraction"] for event in run.events if "fraction" in event]
    assert fractions == sorted(fractions) and 0.9 < fractions[-1] <= 1


@pytest.fixture
def page(run, tmp_path):
    """page() -> the report of a copy of the run, written by a program in which the arm may not be registered."""
    folder = shutil.copytree(run.path, tmp_path / "copy")

    def write() -> str:
        write_report(folder)
        return (folder / "report.html").read_text(encoding="utf-8")

    return write


PLACES = (
    "<h3>{title}</h3>",  # its card
    "between federated and {label} is",  # the verdict
    "federated − {label}",  # the headline
    ">{title}</t",  # the budget
    "training, {label}",
    ">{label}</text>",  # pictures
    "<b>{title}</b>",  # answers
)


def test_the_report_shows_a_new_arm_everywhere(page, run):
    text = page()
    for place in PLACES:
        assert place.format(title="First client", label="first client") in text, place
    assert "c-first" not in text, "a style is one that the page has"


def test_two_runs_are_compared_by_a_new_arm(run, tmp_path):
    found = compare([run.path, shutil.copytree(run.path, tmp_path / "other")])
    assert "First client" in found.to_text() and "vs first client" in found.to_text()
    text = found.write_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert ">First client</" in text and ">first client</text>" in text


def test_a_new_arm_has_its_row_after_a_run_and_its_column_in_the_list_of_runs(run, capsys):
    print_result(run.path, run.summary)
    assert re.search(r"^first_client +\d", capsys.readouterr().out, re.MULTILINE)
    main(["runs", "ls", "--out", str(run.path.parent)])
    assert capsys.readouterr().out.split("\n")[0].split()[3:7] == ["base", "federated", "centralised", "first_client"]


def test_an_arm_that_this_program_does_not_know_is_shown_by_its_name(run, page, tmp_path, monkeypatch):
    monkeypatch.delitem(arms._factories, "first_client")
    assert "first_client" not in registered()
    text = page()
    for place in PLACES:
        assert place.format(title="First client", label="first client") in text or "training" in place, place
    assert ">first_client<" in text, "the phase of its training has the name that the run wrote"
    assert "First client" in compare([run.path]).to_text()
    main(["runs", "ls", "--out", str(run.path.parent)])


def test_of_an_unknown_arm_with_one_model_per_client_the_mean_is_shown(run, page, tmp_path):
    file = tmp_path / "copy/evaluation/metrics.json"
    found = json.loads(file.read_text())
    entry = found["arms"]["first_client"]
    found["arms"]["halves"] = {"a": entry | {"loss": 1.0}, "b": entry | {"loss": 2.5}}
    file.write_text(json.dumps(found))
    text = page()
    assert '<h3>Halves</h3>\n<p class="big">1.750</p>' in text
    assert ">halves</text>" in text


def test_damage_in_an_unknown_arm_is_named_or_passed_over_and_never_a_traceback(page, tmp_path):
    file = tmp_path / "copy/evaluation/metrics.json"
    found = json.loads(file.read_text())
    for broken in ({}, {"a": 1}, {"loss": "low"}, {"a": {}}, {"loss": None, "per_category": None}):
        file.write_text(json.dumps(found | {"arms": found["arms"] | {"odd": broken}, "curves": {"odd": {"x": [1]}}}))
        page()
    for broken in (3, [], "text"):
        file.write_text(json.dumps(found | {"arms": found["arms"] | {"odd": broken}}))
        with pytest.raises(DataError, match=r"metrics\.json at arms\.odd: expected a table"):
            page()


# Names and mistakes


def test_an_arm_of_another_module_is_named_by_module_and_function_and_goes_by_the_function(tmp_path, monkeypatch):
    (tmp_path / "lab_arms.py").write_text(
        "from shepherd.arms import Arm\n\ndef twice():\n    return Arm(train=lambda setup: None, style='s3')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load(None, ["evaluation.arms=base,federated,lab_arms:twice"])
    (arm,) = compose(config).baselines
    assert (arm.name, arm.title, arm.rival, arm.phase) == ("twice", "Twice", "twice", "training, twice")
    (tmp_path / "lab_arms.py").rename(tmp_path / "other_arms.py")
    with pytest.raises(UsageError, match=r"evaluation\.arms names two arms 'twice'"):
        compose(load(None, ["evaluation.arms=base,federated,lab_arms:twice,other_arms:twice"]))


def test_an_unknown_arm_in_a_recipe_is_refused_with_the_nearest_name():
    assert registry_problems({"evaluation": {"arms": ["base", "centralized"]}}) == [
        "evaluation.arms: unknown arm: 'centralized'. Did you mean 'centralised'? Known: "
        f"{', '.join(sorted(registered()))}"
    ]


@pytest.mark.parametrize("per_client", [True, False])
def test_an_arm_that_trains_other_models_than_it_announces_is_refused(per_client):
    setup = Baseline(Arm("odd", per_client=per_client), *[None] * 9)
    with pytest.raises(UsageError, match=rf"the odd arm calls setup\.\w+, and has per_client = {per_client}"):
        setup.train_one((), 1, 1) if per_client else setup.train_each({})


def test_arms_are_shown_in_their_order_and_unknown_ones_after_them():
    assert list(shown(["zeta", "centralised", "alpha", "federated", "local", "base"])) == [
        "base", "local", "federated", "centralised", "alpha", "zeta",
    ]  # fmt: skip


def test_arms_without_a_style_differ_in_theirs():
    styles = [arm.style for arm in every_arm(["x", "y"]).values()]
    assert len(set(styles)) == len(styles) and set(styles) <= MARKERS.keys()
