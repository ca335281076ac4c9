"""`plan` says before a run what the run then takes."""

from __future__ import annotations

import pytest

from shepherd.errors import UsageError
from shepherd.estimate import plan


def test_the_planned_bytes_are_those_that_the_run_counts(tiny_run):
    planned = plan(tiny_run.config)
    assert planned.bytes_up == tiny_run.summary["bytes_up"]
    assert planned.bytes_down == tiny_run.summary["bytes_down"]
    assert planned.adapter_parameters == tiny_run.summary["adapter"]["parameters"]
    assert planned.model_parameters == tiny_run.summary["model"]["parameters"]


@pytest.mark.parametrize(
    "settings",
    [
        ("federation.method=ffa_lora",),
        ("federation.method=fedex_lora", "federation.clients_per_round=3"),
        ("objective.scaffold=true",),
        ("personalization.name=ifca", "personalization.clusters=2"),
    ],
    ids=" ".join,
)
def test_they_are_those_of_the_method_and_of_what_travels_beside_it(settings, run_small):
    run = run_small("evaluation.arms=base,federated", "evaluation.generate=0", *settings)
    expected = plan(run.config)
    assert (expected.bytes_up, expected.bytes_down) == (run.summary["bytes_up"], run.summary["bytes_down"])


def test_the_planned_rows_are_those_of_the_run(tiny_run):
    planned = plan(tiny_run.config)
    data = tiny_run.summary["data"]
    assert (planned.train_rows, planned.held_out_rows) == (data["train_rows"], data["held_out_rows"])
    assert (planned.clients, planned.cohort, planned.rounds) == (8, 8, 2)
    assert planned.steps_per_round == (1,)


def test_the_evaluations_counted_are_those_that_were_made(small_config):
    config = small_config("evaluation.every=1")
    planned = plan(config)
    # Before, after each of 2 rounds, the reload check, the centralised arm and 8 clients alone after each round.
    held_out = planned.tokens["evaluation"] / (1 + 2 + 1 + 2 + 8 * 2)
    assert held_out == round(held_out)
    fewer = plan(small_config("evaluation.every=0", 'evaluation.arms=["base", "federated"]'))
    assert fewer.tokens["evaluation"] == held_out * (1 + 1 + 1)
    assert set(fewer.tokens) == {"federated", "evaluation"}


def test_a_longer_run_is_planned_to_take_more_of_everything_that_it_takes_more_of(small_config):
    short, long = plan(small_config()), plan(small_config("federation.rounds=20", "lora.r=4"))
    assert long.tokens["federated"] == 10 * short.tokens["federated"]
    assert long.bytes_up == 20 * short.bytes_up  # ten times the rounds, twice the rank
    assert long.disk_bytes > short.disk_bytes
    assert long.memory_bytes > short.memory_bytes


def test_the_arms_that_all_others_are_compared_with_cannot_be_left_out(small_config):
    with pytest.raises(UsageError, match=r"evaluation\.arms must name base and federated"):
        plan(small_config("evaluation.arms=local"))


def test_rows_longer_than_the_models_window_are_refused_before_anything_is_trained(small_config):
    with pytest.raises(UsageError, match=r"data\.max_length = 4096 is more than the 512 positions"):
        plan(small_config("data.max_length=4096", kind="gpt2"))


def test_a_local_client_that_does_not_exist_is_answered_with_the_nearest(small_config):
    with pytest.raises(UsageError, match="Did you mean 'open_qa'"):
        plan(small_config("evaluation.local_clients=opn_qa"))
