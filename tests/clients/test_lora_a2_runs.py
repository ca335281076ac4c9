"""LoRA-A² on the server and in whole runs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from federations import SEED, SHAPES, WEIGHTS, R, a_round, assert_near, begin, in_dense_form, whole
from shepherd.cli.settings import gather
from shepherd.errors import ClientError
from shepherd.experiment.estimate import plan
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method
from shepherd.server.traffic import round_bytes
from shepherd.types import (
    Adapter,
    Factors,
)
from tiny_training import same_bytes

PART = {1: "B", 2: "A"}

# On the server


def test_unchosen_slots_count_as_zero_change_instead_of_being_averaged_over_owners():
    method = build_method("lora_a2")
    model = begin(method)
    for number in (1, 2, 3):
        done = a_round(method, model, number, ranks={"a": 1, "b": 4, "c": 2})
        part = PART.get(number, "B")
        for module in SHAPES:
            mean = sum(WEIGHTS[u.client] * whole(done.views[u.client], u, f"{module}.{part}") for u in done.updates)
            before, after = done.before.adapter.factors[module], done.after.adapter.factors[module]
            assert_near(getattr(after, part) - getattr(before, part), mean, 1e-12)
            assert np.array_equal(getattr(after, "AB".replace(part, "")), getattr(before, "AB".replace(part, "")))
        model = done.after


@pytest.mark.parametrize("name", ["lora_a2", "fed_plora", "ravan"])
def test_the_diagnostics_of_owned_slots_are_those_of_all_slots(name):
    method = build_method(name)
    done = a_round(method, a_round(method, begin(method), 1).after, 2, ranks={"a": 1, "b": 4, "c": 2})
    one, other = (diagnose(done.before, done.after, d.views, d.updates, WEIGHTS) for d in (done, in_dense_form(done)))
    assert one == other and one.increment_norm["a"] > 0


def test_control_variates_of_slots_that_were_not_sent_are_unchanged():
    method = replace(build_method("lora_a2"), population=dict.fromkeys(WEIGHTS, 1 / 3))
    model = begin(method)
    done = a_round(method, model, 1, ranks={"a": 1, "b": 4, "c": 2})
    doubled = tuple(
        replace(u, delta=u.delta | {f"{n}.control": 2 * d.astype(np.float32) for n, d in u.delta.items()})
        for u in done.updates
    )
    memory = replace(done, updates=doubled).after.memory
    for module in SHAPES:
        total = sum(2 * whole(done.views[u.client], u, f"{module}.B") for u in done.updates) / 3
        np.testing.assert_allclose(memory[f"control.{module}.B"], total, atol=1e-7)


def test_an_update_whose_choice_was_not_checked_is_an_error_naming_the_client():
    method = build_method("lora_a2")
    done = a_round(method, begin(method), 1, ranks={"a": 1, "b": 4, "c": 2})
    without = tuple(replace(u, slots={}) for u in done.updates)
    with pytest.raises(ClientError, match=r"^a: slots of 0 modules, expected 2; o is missing"):
        replace(done, updates=without).after  # noqa: B018
    other = replace(done.updates[1], slots=dict.fromkeys(SHAPES, np.ones(R, bool)))
    with pytest.raises(ClientError, match=r"^b: slots of 2 modules, and the client was to choose none"):
        replace(done, updates=(done.updates[0], other, done.updates[2])).after  # noqa: B018


def test_a_client_of_full_rank_has_the_client_model_of_rolora_and_no_probe():
    a2, rolora = build_method("lora_a2"), build_method("rolora")
    for number in (1, 2):
        view, other = (method.view(begin(method), "a", R, number, SEED) for method in (a2, rolora))
        assert view.choice is view.slots is None
        assert (view.trains, view.sends) == (other.trains, other.sends) == ((PART[number],), PART[number])
        assert same_bytes(view.tensors(), other.tensors())


def test_a_client_before_its_choice_receives_the_whole_control_variate():
    adapter = Adapter({"q": Factors(np.zeros((4, 10)), np.zeros((30, 4)))}, 4, 8.0)
    # B of 30 numbers a slot in odd rounds, A of 10 in even ones, 4 bytes each: all 4 slots down, and c with them.
    for number, width in ((1, 30), (2, 10)):
        assert round_bytes(build_method("lora_a2"), adapter, number, [1, 2])[1] == 2 * 4 * width * 4
        assert round_bytes(build_method("lora_a2"), adapter, number, [1, 2], scaffold=True)[1] == 2 * 2 * 4 * width * 4


SMALL = (
    "federation.rounds=3", "evaluation.arms=base,federated", "evaluation.generate=0", "training.local_steps=2",
    "lora.r=4", "lora.alpha=8", "lora.targets=down_proj",
)  # fmt: skip

# A whole run


def test_the_plan_and_the_progress_include_the_probe(run_small):
    mixed = run_small(*SMALL, "federation.method=lora_a2", "lora.ranks=[2]")
    equal = mixed.config.model_copy(update={"lora": mixed.config.lora.model_copy(update={"ranks": ()})})
    # Two steps of a probe before two steps of a round.
    assert plan(mixed.config).tokens["federated"] == 2 * plan(equal).tokens["federated"]
    shares = [event["fraction"] for event in mixed.events if event["event"] == "step"]
    assert shares == sorted(shares) and shares[-1] > 0.9 and shares[len(shares) // 2 - 1] < 0.6


def test_a_run_with_full_ranks_equals_rolora_bit_for_bit(run_small):
    runs = [run_small(*SMALL, f"federation.method={m}", "objective.rate_ratio=5") for m in ("rolora", "lora_a2")]
    assert runs[0].summary["adapter_sha256"] == runs[1].summary["adapter_sha256"]
    assert runs[0].summary["bytes_up"] == runs[1].summary["bytes_up"]


def test_a_run_of_mixed_ranks_sends_only_chosen_slots_and_its_adapter_has_the_reported_loss(run_small):
    run = run_small(*SMALL, "federation.method=lora_a2", "lora.ranks=[1,4,2]")
    assert run.summary["arms"]["federated"]["loss"] < run.summary["arms"]["base"]["loss"]
    assert abs(run.summary["reload_check"]["difference"]) < 1e-4
    lines = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    A, B, modules = 4 * 48, 4 * 32, 2  # bytes of a slot of down_proj
    for line, slot in zip(lines, (B, A, B), strict=True):
        ranks = [[1, 4, 2][i % 3] for i in range(len(line["cohort"]))]
        choices = sum(4 * modules for rank in ranks if rank < 4)
        assert line["bytes_up"] == sum(rank * modules * slot for rank in ranks) + choices


def test_the_rate_ratio_is_that_of_the_method_unless_the_recipe_sets_it(run_small):
    of = lambda *overrides: gather(None, ("federation.method=lora_a2", *overrides), default_recipe="demo")  # noqa: E731
    assert of().config.objective.rate_ratio == 5.0 and of().origins["objective.rate_ratio"] == "method lora_a2"
    own = of("objective.rate_ratio=2")
    assert own.config.objective.rate_ratio == 2.0 and own.origins["objective.rate_ratio"] == "--set"
    assert "objective.rate_ratio" not in gather(None, ("federation.method=rolora",)).origins
    used = {}
    for name, overrides in {"own": (), "one": ("objective.rate_ratio=1",), "five": ("objective.rate_ratio=5",)}.items():
        run = run_small(*SMALL, "federation.rounds=1", "federation.method=lora_a2", *overrides)
        written = tomllib.loads((run.path / "config.toml").read_text())["objective"]["rate_ratio"]
        used[name] = (written, run.summary["adapter_sha256"])
    assert used["own"] == used["five"] and used["own"][0] == 5.0
    assert used["one"][0] == 1.0 and used["one"][1] != used["own"][1]
