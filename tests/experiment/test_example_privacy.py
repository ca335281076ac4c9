"""Privacy of examples in a recipe: refusals, the noise for an epsilon, and what is printed before a run."""

from __future__ import annotations

import math

import pytest

from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.experiment import example_privacy
from shepherd.experiment.example_privacy import (
    example_forecast,
    example_warnings,
    noise_for,
    planned_steps,
    trained_values,
)
from shepherd.experiment.method import compose
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.schedule import prepare_schedule
from shepherd.recipe import merge, resolve
from shepherd.server.methods import build_method, methods
from shepherd.types import ExamplePrivacy, GlobalModel
from shepherd.updates.privacy.accountant import Epsilons, Rounds
from small_updates import adapter

PRIVATE = {
    "privacy": {"unit": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
    "evaluation": {"arms": ["base", "federated"]},
    "federation": {"rounds": 6, "clients_per_round": 2},
    "training": {"batch_size": 5, "local_steps": 4},
}
SIZES = {"a": 100, "b": 50, "c": 4}


def private(**tables) -> Config:
    return resolve(merge([("private", PRIVATE), ("test", tables)])[0])


def plan_of(config: Config, sizes=SIZES):
    return prepare_plan(config, compose(config), sizes, prepare_schedule(config))


def refused(**tables) -> str:
    with pytest.raises(UsageError) as error:
        compose(private(**tables))
    return str(error.value.message)


@pytest.mark.parametrize(
    "tables, setting, why, instead",
    [
        ({"federation": {"weights": "tokens"}}, 'federation.weights = "tokens"', "rows that were drawn", '"examples"'),
        ({"federation": {"clip_update_norm": "median"}}, 'federation.clip_update_norm = "median"', "report norms",
         "to a number"),
        ({"selection": {"name": "oort"}}, 'selection.name = "oort"', "losses of their rows", 'use "uniform"'),
        ({"selection": {"name": "power_of_choice"}}, 'selection.name = "power_of_choice"', "losses of", 'use "uni'),
        ({"personalization": {"name": "ifca"}}, 'personalization.name = "ifca"', "chooses its cluster", '"none"'),
        ({"federation": {"method": "lora_a2"}, "lora": {"r": 8, "ranks": [4, 8]}},
         'federation.method = "lora_a2" with lora.ranks', "which slots a client sends", "give all one rank"),
        ({"privacy": {"adaptive_clip": True}}, "privacy.adaptive_clip = true", "norms of updates", "adaptive_clip out"),
    ],
)  # fmt: skip
def test_a_setting_that_lets_rows_pass_the_noise_is_refused(tables, setting, why, instead):
    said = refused(**tables)
    assert said.startswith(f'privacy.unit = "example" and {setting} do not fit: ')
    assert why in said and instead in said


def test_arms_that_are_trained_without_noise_are_refused_but_for_a_study():
    arms = {"arms": ["base", "federated", "local"]}
    assert "trained without noise in the folder you publish" in refused(evaluation=arms)
    compose(private(evaluation=arms, privacy={"publish_nothing": True}))


@pytest.mark.parametrize("method", list(methods))
def test_every_method_keeps_the_guarantee_because_it_computes_after_the_noise(method):
    compose(private(federation={"method": method}))


@pytest.mark.parametrize(
    "tables",
    [
        {"objective": {"scaffold": True}, "training": {"optimizer": "sgd"}}, {"objective": {"proximal": 0.1}},
        {"server": {"optimizer": "fednova"}}, {"federation": {"weights": "examples", "over_select": 0.5}},
        {"federation": {"clip_update_norm": 1.0, "aggregator": "trimmed_mean"}}, {"lora": {"dropout": 0.1}},
        {"personalization": {"name": "ditto"}},
        {"federation": {"method": "hetlora"}, "lora": {"r": 8, "ranks": [4, 8]}},
    ],
)  # fmt: skip
def test_settings_whose_numbers_follow_from_noised_steps_are_allowed(tables):
    compose(private(**tables))


def test_a_delta_above_one_over_the_rows_of_a_client_is_refused():
    with pytest.raises(UsageError, match=r"privacy.delta = 0.02 for a client of 100 rows: at most 1/n.*set 0.001"):
        plan_of(private(privacy={"delta": 0.02}))
    plan_of(private(privacy={"delta": 0.01}))


def test_the_planned_steps_are_those_of_the_draws_of_all_rounds():
    config = private()
    plan = plan_of(config)
    steps = planned_steps(plan, 6)
    assert {client: rate for client, (rate, _) in steps.items()} == {"a": 0.05, "b": 0.1, "c": 1.0}
    assert sum(count for _, count in steps.values()) == 6 * 2 * 4
    assert plan.examples.planned == {client: Rounds(rate, 1.0, count) for client, (rate, count) in steps.items()}
    assert plan.examples.task == ExamplePrivacy(1.0, 1.0) and plan.privacy is None
    everyone = plan_of(private(federation={"clients_per_round": 3}))
    assert {count for _, count in planned_steps(everyone, 6).values()} == {24}


def counted_bounds(monkeypatch) -> None:
    """Makes ε the rate times the root of the steps over the noise."""

    def bound(rounds, delta):
        spent = sum(p.sampling_rate * math.sqrt(p.count) / (p.noise_multiplier or 1e-9) for p in rounds)
        return Epsilons(spent, math.inf)

    monkeypatch.setattr("shepherd.updates.privacy.example_account.epsilons", bound)
    monkeypatch.setattr(
        example_privacy, "least_noise",
        lambda epsilon, *, sampling_rate, rounds, delta: sampling_rate * math.sqrt(rounds) / epsilon,
    )  # fmt: skip


def test_the_noise_for_an_epsilon_is_that_of_the_client_that_needs_most(monkeypatch):
    counted_bounds(monkeypatch)
    assert noise_for(2.0, {"a": (0.1, 100), "b": (0.3, 16), "c": (0.2, 1)}, 1e-3) == pytest.approx(0.6)
    config = private(privacy={"epsilon": 2.0, "noise_multiplier": "from_epsilon"})
    plan = plan_of(config)
    most = max(part.sampling_rate * math.sqrt(part.count) for part in plan.examples.planned.values())
    assert plan.examples.noise_multiplier == pytest.approx(most / 2)
    assert plan.examples.accounts.epsilon == 2.0


def test_the_forecast_has_the_largest_epsilon_the_rates_and_the_noise_over_the_clip(monkeypatch):
    counted_bounds(monkeypatch)
    plan, start = plan_of(private(federation={"clients_per_round": 3})), adapter()
    said = example_forecast(plan, start)
    assert said["epsilon"] == pytest.approx(math.sqrt(24)), "client c takes all of its rows in every step"
    assert (said["sampling_rate"], said["steps"], said["clients"]) == ([0.05, 1.0], [24, 24], 3)
    assert said["values"] == start.num_parameters
    assert said["noise_over_clip"] == pytest.approx(math.sqrt(start.num_parameters) / 4), "the smallest step has 4 rows"
    assert said["private"] is True and said["epsilon_rdp"] is None
    assert example_forecast(plan_of(resolve({})), start) is None


@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "rolora", "la_lora", "fedsa_lora"])
def test_the_trained_values_are_those_of_the_client_models(name):
    method, start = build_method(name), adapter()
    sizes = [
        sum(getattr(pair, part).size for pair in start.factors.values() for part in moves)
        for number in (1, 2)
        for moves in method.view(GlobalModel(start), "c", start.r, number, 0).trains
    ]
    assert trained_values(method, start) == sum(sizes) / len(sizes)


def test_the_trained_values_of_cores_are_those_of_the_cores():
    method = build_method("ravan", {"heads": 2})
    model = method.start(adapter(), 0)
    core = method.view(model, "c", model.adapter.r, 1, 0).core
    assert trained_values(method, model.adapter) == sum(values.size for values in core.values.values())


def test_what_makes_the_guarantee_weak_is_a_warning(monkeypatch):
    counted_bounds(monkeypatch)

    def warned(**privacy):
        return "\n".join(example_warnings(plan_of(private(privacy=privacy))))

    assert "1 client takes all of its rows in every step" in warned()
    assert "weak for a client of 100 rows" in warned(delta=5e-3) and "weak" not in warned(delta=1e-3)
    assert "hardly a guarantee" in warned(noise_multiplier=0.1) and "hardly" not in warned()
    assert "no privacy" in warned(noise_multiplier=0.0)
    assert "so the run is not private" in warned(repeatable_noise=True)
    assert example_warnings(plan_of(resolve({}))) == []
