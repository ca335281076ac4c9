"""SCAFFOLD on quadratics: convergence for unequal weights, partial participation and lost updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from number_engine import NumberEngine
from shepherd import recipe
from shepherd.clients.selection import build_selection
from shepherd.errors import UsageError
from shepherd.experiment.method import doubts, prepare_method
from shepherd.recipe import load
from shepherd.rng import stream
from shepherd.round import Plan, Policy, run_round
from shepherd.server.methods import build_method
from shepherd.server.weights import population_weights
from shepherd.types import Adapter, ClientFailure, ClientUpdate, Factors, GlobalModel, Objective, ServerState, Work

RATE, STEPS = 0.2, 5


class Quadratics(NumberEngine):
    """Clients that minimise ½(x − a_k)² with SCAFFOLD's correction (1910.06378, option II); x is B, and A is 1.

    lost: the share of lost updates. breaks: (client, first round in which it fails).
    """

    def __init__(self, a: dict[str, float], sizes: dict[str, int], lost: float = 0.0, breaks=("", 0)) -> None:
        self.a, self.sizes, self.lost, self.breaks = a, sizes, lost, breaks

    def train(self, task, deadline, enough, observe):
        c = float(task.control["m.B"].item()) if task.control else 0.0
        for client in task.work:
            if stream(1, "lost", client, task.round).random() < self.lost:
                continue
            if client == self.breaks[0] and task.round >= self.breaks[1]:
                yield ClientFailure(client, task.round, "error", "")
                continue
            x = float(task.views[client].adapter.factors["m"].B.item())
            own = float(self.private[client]["control/m.B"].item()) if client in self.private else 0.0
            y = x
            for _ in range(STEPS):
                y -= RATE * ((y - self.a[client]) - own + c)
            change = (x - y) / (STEPS * RATE) - c
            delta = {"m.B": np.float32([[y - x]]), "m.B.control": np.float32([[change]])}
            kept = {"control/m.B": np.float32([[own + change]])}
            yield ClientUpdate(
                client, task.round, delta, self.sizes[client], 1, STEPS, {"loss": (x - self.a[client]) ** 2},
                private=kept,
            )  # fmt: skip


def settled(
    a,
    sizes,
    rounds,
    weights="examples",
    selection="everyone",
    options=None,
    lost=0.0,
    most=1.0,
    cohort=0,
    breaks=("", 0),
):
    """(x, c, Σ p_k c_k) after this many rounds."""
    a, sizes = (dict(zip("wxyz", values, strict=False)) for values in (a, sizes))
    population = population_weights(sizes, weights, most)
    plan = Plan(
        seed=3,
        clients=tuple(a),
        cohort_size=cohort or len(a),
        select=build_selection(selection, options),
        method=replace(build_method("ffa_lora"), population=population),
        weights=weights,
        min_updates=1,
        work=lambda client, number, first: Work(client, first, STEPS, (RATE,) * STEPS),
        rank=lambda client: 1,
        objective=Objective(scaffold=True),
        policy=Policy(on_too_few="skip", max_weight=most, quarantine_after=2),
        sizes=sizes,
    )
    begin = Adapter({"m": Factors(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))}, 1, 1.0)
    state, engine = ServerState(0, GlobalModel(begin)), Quadratics(a, sizes, lost, breaks)
    for _ in range(rounds):
        state, _ = run_round(state, plan, engine)
    kept = {client: own["control/m.B"].item() for client, own in state.clients.items()}
    c = state.model.memory["control.m.B"].item()
    return (
        state.model.adapter.factors["m"].B.item(), c,
        sum(p * kept.get(client, 0.0) for client, p in population.items()),
    )  # fmt: skip


def test_clients_of_unequal_weights_converge_to_the_optimum_of_their_weighted_mean():
    # a = 0, 1 and n = 1, 9: Σ n a / Σ n = 0.9. With c by 1/N it was 0.5, the optimum of the uniform mean.
    x, c, mean = settled((0, 1), (1, 9), 60)
    assert x == pytest.approx(0.9, abs=1e-5) and c == pytest.approx(mean, abs=1e-6) and abs(c) < 1e-5


def test_clients_of_uniform_weights_converge_as_in_the_paper():
    x, _, _ = settled((0, 1), (1, 9), 60, weights="uniform")
    assert x == pytest.approx(0.5, abs=1e-5)


def test_a_cap_on_weights_applies_to_control_variates():
    x, _, _ = settled((0, 1), (1, 9), 60, most=0.6)  # 0.4 · 0 + 0.6 · 1
    assert x == pytest.approx(0.6, abs=1e-5)


HALF = [
    ("uniform", {}),
    ("uniform", {"denominator": "all"}),
    ("size_weighted", {}),  # draws a client twice, and its change counts once
    ("poisson", {"q": 0.5}),
    ("power_of_choice", {"candidates": 2}),
]
"""Selections that sample about half of four clients."""


@pytest.mark.parametrize("selection, options", HALF)
def test_c_is_the_mean_of_all_control_variates_in_every_round_for_any_sampling_and_losses(selection, options):
    cohort = 2 if selection != "poisson" else 0
    for rounds in (2, 5, 9):
        _, c, mean = settled((0, 1, 2, 3), (1, 2, 3, 4), rounds, "examples", selection, options, 0.3, cohort=cohort)
        assert abs(c) > 0.01 and c == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("lost", [0.0, 0.3])
@pytest.mark.parametrize("selection, options", HALF)
def test_partial_participation_converges_to_the_same_optimum_for_any_sampling_and_losses(selection, options, lost):
    # a = 0, 1, 2, 3 and n = 1, 2, 3, 4: Σ n a / Σ n = 20 / 10. The mean of who is drawn alone is another in each round.
    cohort = 2 if selection != "poisson" else 0
    x, c, mean = settled((0, 1, 2, 3), (1, 2, 3, 4), 150, "examples", selection, options, lost, cohort=cohort)
    assert x == pytest.approx(2.0, abs=1e-4) and c == pytest.approx(mean, abs=1e-5)


def test_quarantine_removes_the_control_variate_of_the_client():
    # a = 0, 1, 5 and n = 1, 2, 3; the third fails for good from round 4 on: 2 / 3 is the optimum of the others. With
    # its last c_k left in c they settled where p_z (x_4 − 5) stands against them, at 2.96.
    x, c, _ = settled((0, 1, 5), (1, 2, 3), 60, breaks=("y", 4))
    assert x == pytest.approx(2 / 3, abs=1e-4) and abs(c) < 1e-4


def test_population_weights_are_those_of_a_round_with_full_participation():
    sizes = {"a": 1, "b": 9, "c": 10}
    assert population_weights(sizes, "examples") == {"a": 0.05, "b": 0.45, "c": 0.5}
    assert population_weights(sizes, "uniform") == dict.fromkeys("abc", 1 / 3)
    assert population_weights(sizes, "examples", 0.46) == pytest.approx({"a": 0.08, "b": 0.46, "c": 0.46})
    assert population_weights(sizes, "tokens") == {}


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"federation": {"weights": "tokens"}}, ('federation.weights = "tokens"', '"examples" or "uniform"')),
        ({"federation": {"method": "hetlora"}}, ('method.weigh = "product_norm"', 'method.weigh = "given"')),
        ({"federation": {"method": "flora"}}, ('split "reinit"', "after each round a slot is another one")),
        ({"federation": {"method": "fedmomentum"}}, ('split "svd_balanced"',)),
        ({"federation": {"method": "fedilora"}, "lora": {"r": 8, "ranks": [4, 8]}}, ("lora.ranks", 'view "prefix"')),
    ],
)
def test_settings_that_conflict_with_scaffold_are_refused_with_an_alternative(settings, parts):
    with pytest.raises(UsageError) as refused:
        prepare_method(recipe.resolve({**settings, "objective": {"scaffold": True}}))
    assert "objective.scaffold = true and " in refused.value.message and " do not fit" in refused.value.message
    assert all(part in refused.value.message for part in parts)


@pytest.mark.parametrize("method", ["fedit", "rolora", "fedex_lora", "frlora", "fed_plora", "ravan"])
def test_methods_with_persistent_slots_support_control_variates(method):
    ranks = {"ranks": [4, 8]} if method in ("fed_plora", "ravan") else {}
    settings = {"federation": {"method": method}, "lora": {"r": 8, **ranks}, "objective": {"scaffold": True}}
    assert prepare_method(recipe.resolve(settings)).name == method


def test_limitations_of_scaffold_are_noted_only_where_they_apply():
    def said(*settings):
        return doubts(load("demo", settings))

    assert said() == () and said("objective.scaffold=true", "training.optimizer=sgd") == ()
    (adam,) = said("objective.scaffold=true")
    assert "training.optimizer = 'adamw', which is a heuristic" in adam
    (capped,) = said("objective.scaffold=true", "training.optimizer=sgd", "federation.max_weight=0.5")
    assert "federation.max_weight = 0.5" in capped and "quarantined" in capped
