"""Learning rates of the arms: each may have its own, and then trains as a whole run at that rate would."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import ClientError, UsageError
from shepherd.experiment import baselines as arms
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan
from shepherd.experiment.schedule import prepare_schedule
from shepherd.recipe import load, to_toml
from stopped_runs import after_round, stopped

RUN = (
    "evaluation.local_clients=2", "evaluation.generate=0", "federation.rounds=3", "training.local_steps=2",
    "training.schedule=cosine", "training.warmup_steps=2", "training.min_learning_rate=1e-3", "objective.rate_ratio=2",
)  # fmt: skip


def bytes_of(path, arm: str) -> dict[str, bytes]:
    """Everything that an arm left but the settings: of the federated one the adapter after each round."""
    folders = sorted(path.glob("checkpoints/round-*")) if arm == "federated" else [path / "arms" / arm]
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in folders
        for file in sorted(folder.glob("*.safetensors"))
    }


def curve(path, arm: str):
    return json.loads((path / "evaluation/metrics.json").read_text())["curves"][arm]


@pytest.fixture(scope="module")
def plain(run_small):
    return run_small(*RUN)


def test_a_rate_set_to_the_one_that_holds_anyway_changes_no_byte(plain, run_small):
    same = run_small(*RUN, "evaluation.local_learning_rate=0.01", "evaluation.centralised_learning_rate=0.01")
    for arm in ("federated", "local", "centralised"):
        assert bytes_of(same.path, arm) == bytes_of(plain.path, arm) != {}
    assert same.summary["budget"] == plain.summary["budget"]


@pytest.mark.parametrize(("arm", "others"), [("local", ("centralised",)), ("centralised", ("local",))])
def test_an_arm_at_its_own_rate_is_that_of_a_whole_run_at_this_rate_and_no_other_arm_moves(
    arm, others, plain, run_small
):
    own = run_small(*RUN, f"evaluation.{arm}_learning_rate=0.03")
    whole = run_small(*RUN, "training.learning_rate=0.03", f"evaluation.arms=base,federated,{arm}")
    assert bytes_of(own.path, arm) == bytes_of(whole.path, arm) != bytes_of(plain.path, arm)
    assert curve(own.path, arm) == curve(whole.path, arm)
    for other in ("federated", *others):
        assert bytes_of(own.path, other) == bytes_of(plain.path, other)
        assert curve(own.path, other) == curve(plain.path, other)
    spent = {name: budget["learning_rate"] for name, budget in own.summary["budget"].items()}
    assert spent == {"federated": 0.01, "local": 0.01, "centralised": 0.01} | {arm: 0.03}
    page = (own.path / "report.html").read_text(encoding="utf-8")
    assert "Peak learning rate" in page and ">0.03<" in page and "Their learning rates differ" in page
    assert "Their learning rates differ" not in (plain.path / "report.html").read_text(encoding="utf-8")
    assert plan(own.config).learning_rates == spent


@pytest.mark.parametrize(
    "schedule",
    [
        ("training.schedule=cosine", "training.warmup_steps=3", "training.min_learning_rate=1e-4"),
        ("training.schedule=linear", "training.schedule_over=round", "training.warmup_steps=1"),
        ("training.schedule=linear", "training.schedule_over=rounds", "training.warmup_rounds=2"),
        (),
    ],
)
def test_every_schedule_and_warm_up_acts_on_the_arms_own_rate(schedule):
    own = load(None, [*schedule, "evaluation.local_learning_rate=0.002", "evaluation.centralised_learning_rate=0.004"])
    for arm, rate in {"federated": 5e-4, "local": 0.002, "centralised": 0.004}.items():
        whole = load(None, [*schedule, f"training.learning_rate={rate}"])
        for number in (1, 2, 3):
            assert prepare_schedule(own).rates(4, number, arm) == prepare_schedule(whole).rates(4, number)


def test_the_baselines_train_at_the_rates_of_the_schedule(run_small, monkeypatch):
    used = []

    class Spied(arms.Cohort):
        def run(self, work, *rest):
            used.append([w.learning_rates for w in work])
            return super().run(work, *rest)

    monkeypatch.setattr(arms, "Cohort", Spied)
    run_small(
        "evaluation.local_clients=1", "evaluation.generate=0", "training.local_steps=2", "training.schedule=linear",
        "training.warmup_steps=2", "evaluation.local_learning_rate=0.08",
    )  # fmt: skip
    # Four steps in two rounds: half the peak, the peak, then linearly to 0: 0/2 and 1/2 of the way.
    own, shared = [[(0.04, 0.08)], [(0.08, 0.04)]], [[(0.005, 0.01)], [(0.01, 0.005)]]
    assert used == own + shared


def test_in_the_baselines_too_b_moves_at_rate_ratio_times_the_arms_own_rate(run_small):
    # B begins as 0, so the first step leaves A where it is: only the rate of B counts, 4 · 0.01 or 1 · 0.04.
    one_step = ("federation.rounds=1", "evaluation.local_clients=2", "evaluation.generate=0")
    rate = lambda eta: [f"evaluation.{arm}_learning_rate={eta}" for arm in ("local", "centralised")]  # noqa: E731
    ratio = run_small(*one_step, *rate(0.01), "objective.rate_ratio=4")
    plain = run_small(*one_step, *rate(0.04), "objective.rate_ratio=1")
    for arm in ("local", "centralised"):
        assert curve(ratio.path, arm) == curve(plain.path, arm)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["local_learning_rate=0.1", "arms=base,federated,centralised"],
         "evaluation.local_learning_rate = 0.1 would have no effect: evaluation.arms does not include local"),
        (["local_learning_rate=0.1", "centralised_learning_rate=0.2", "arms=base,federated"],
         "0.1 and evaluation.centralised_learning_rate = 0.2 would have no effect: evaluation.arms does not include "
         "local and centralised"),
        (["local_learning_rate=-1"], "evaluation.local_learning_rate: must be at least 0.0, got -1"),
        (["centralised_learning_rate=fast"], "evaluation.centralised_learning_rate: must be a number, got 'fast'"),
        (["centralised_learning_rate=nan"], "evaluation.centralised_learning_rate: must be a finite number"),
        (["central_learning_rate=1"], "Did you mean 'evaluation.centralised_learning_rate'?"),
    ],
)  # fmt: skip
def test_a_rate_that_could_not_hold_is_refused(overrides, message):
    with pytest.raises(UsageError) as caught:
        load(None, [f"evaluation.{override}" for override in overrides])
    assert message in caught.value.message


@pytest.mark.parametrize("arm", ["local", "centralised"])
def test_a_schedule_that_would_end_above_an_arms_own_peak_is_refused(arm):
    with pytest.raises(UsageError) as caught:
        load(
            None,
            ["training.schedule=linear", "training.min_learning_rate=1e-4", f"evaluation.{arm}_learning_rate=1e-5"],
        )
    assert f"training.min_learning_rate = 0.0001 is more than evaluation.{arm}_learning_rate = 1e-05" in str(
        caught.value
    )


def test_the_rates_come_back_from_the_recipe_that_a_run_writes():
    config = load(None, ["evaluation.local_learning_rate=0.002", "evaluation.centralised_learning_rate=1e-3"])
    assert "local_learning_rate = 0.002\ncentralised_learning_rate = 0.001" in to_toml(config)


def test_a_run_that_goes_on_notices_another_rate_of_an_arm(small_config, tmp_path):
    folder = stopped(small_config("evaluation.local_clients=1"), tmp_path, after_round(1))
    file = folder / "config.toml"
    file.write_text(file.read_text().replace("local_learning_rate = 0.0", "local_learning_rate = 0.02"))
    with pytest.raises(UsageError, match=r"config\.evaluation\.local_learning_rate: 0\.0 then, 0\.02 now"):
        experiment.resume(folder)


def test_the_error_of_a_failed_centralised_arm_names_the_rate_to_lower(small_config, tmp_path):
    some = ("evaluation.arms=base,federated,centralised", "evaluation.generate=0")
    with pytest.raises(ClientError) as caught:
        experiment.run(small_config(*some, "evaluation.centralised_learning_rate=1e30"), out_dir=tmp_path)
    assert caught.value.hint == "lower evaluation.centralised_learning_rate"
