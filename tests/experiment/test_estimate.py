"""`plan` says before a run what the run then takes."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import UsageError
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan
from shepherd.experiment.method import doubts
from shepherd.server.methods import build_method, methods
from shepherd.store.state import load_state


def test_the_planned_bytes_are_those_that_the_run_counts(tiny_run):
    planned = plan(tiny_run.config)
    assert planned.bytes_up == tiny_run.summary["bytes_up"]
    assert planned.bytes_down == tiny_run.summary["bytes_down"]
    assert planned.adapter_parameters == tiny_run.summary["adapter"]["parameters"]
    assert planned.model_parameters == tiny_run.summary["model"]["parameters"]


JUST = (
    "evaluation.arms=base,federated", "evaluation.generate=0", "federation.rounds=2", "training.local_steps=2",
    "lora.r=4", "lora.alpha=8", "lora.targets=q_proj,down_proj",
)  # fmt: skip
MIXED = ("lora.ranks=[1,4,2]", "federation.clients_per_round=5")
BYTES = [
    *((name, ()) for name in methods),
    *((name, MIXED) for name in methods if build_method(name).mixed_ranks),
    ("fedit", ("objective.scaffold=true",)),
    ("rolora", ("objective.scaffold=true", "federation.rounds=3")),
    ("fedit", ("personalization.name=ifca", "personalization.clusters=2", "federation.rounds=3")),
    ("flora", ("federation.clients_per_round=3", "federation.over_select=0.5", "lora.ranks=[1,4,2]")),
    ("flora", ("federation.deadline=0.9", "lora.ranks=[1,4,2]")),
    ("flora", ("selection.name=poisson", "selection.q=0.5", "federation.on_too_few=skip", "lora.ranks=[1,4,2]")),
    ("flexlora", ("selection.name=size_weighted", "federation.clients_per_round=3", "lora.ranks=[1,4,2]")),
    ("fedit", ("selection.name=power_of_choice", "federation.clients_per_round=3")),
    ("flora", ("training.local_steps=1",)),
]


@pytest.mark.parametrize(
    ("method", "settings"), BYTES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_planned_bytes_of_every_method_are_those_of_the_run_or_marked_as_a_bound(method, settings, run_small):
    run = run_small(*JUST, *settings, f"federation.method={method}")
    planned = plan(run.config)
    for way in ("up", "down"):
        are, count, sent = getattr(planned, f"bytes_{way}_are"), getattr(planned, f"bytes_{way}"), f"bytes_{way}"
        low, high = {"exact": (1, 1), "at most": (0.1, 1), "about": (0.7, 1.4)}[are]
        assert low * count <= run.summary[sent] <= high * count, (way, are)
    assert planned.bytes_up_are == ("about" if method == "lora_a2" and settings else "exact")
    less = method in ("florist", "fedmomentum") or "training.local_steps=1" in settings
    assert planned.bytes_down_are == ("at most" if less else "exact")


def test_the_bytes_down_of_a_round_are_those_of_the_next_model_to_its_clients(run_small):
    """Counted in the checkpoints: what differs between two rounds' files and does not follow from the seed."""
    one = ("lora.targets=down_proj", "checkpoints.keep=9", "federation.rounds=3")
    A, B, modules, clients = 4 * 4 * 48, 4 * 4 * 32, 2, 8  # bytes of the factors of down_proj, rank 4, in 48, out 32
    for method, rounds in {"rolora": (B, A, B), "ffa_lora": (B, B, B), "fedsa_lora": (A, A, A)}.items():
        run = run_small(*JUST, *one, f"federation.method={method}")
        assert recorded(run) == [clients * modules * part for part in rounds], method
    run = run_small(*JUST, *one, "federation.method=florist", "method.energy=0.5", "federation.rounds=2")
    folders = [run.path / "checkpoints" / f"round-000{number}" for number in (1, 2)]
    kept = [sum(m.nbytes for m in load_state(folder).model.remainder.values()) for folder in folders]
    assert recorded(run) == [clients * kept[0], clients * (kept[1] - kept[0])]


def recorded(run):
    return [json.loads(line)["bytes_down"] for line in (run.path / "rounds.jsonl").read_text().splitlines()]


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


def test_settings_that_do_not_do_what_their_names_promise_are_said_by_check_and_by_the_run(small_config, tmp_path):
    config = small_config("objective.scaffold=true", "federation.rounds=1", "evaluation.arms=base,federated")
    (doubt,) = doubts(config)
    assert doubt in plan(config).warnings and not set(doubts(small_config())) & set(plan(small_config()).warnings)
    events = []
    experiment.run(config, events.append, tmp_path)
    assert doubt in [event["message"] for event in events if event["event"] == "warning"]
