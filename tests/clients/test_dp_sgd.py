"""Local training by DP-SGD: Poisson rows, noise once a step, the planned batch, and what is not reported."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dp_sgd import Drawn, Given, trained_by_hand, trained_privately
from shepherd.clients.example_level.sampling import drawn_rows, planned_batch
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.server.methods import build_method
from shepherd.types import ClientFailure, ClientModel, ExamplePrivacy, GlobalModel, Objective, TrainTask, Work
from shepherd.updates.privacy.example_account import sampling_rate
from tiny_training import base_model, distance, same_bytes, some_data, targets_of
from view_training import MODULES, ROUNDING, adapter_of, core_view

ROWS = some_data(1, rows=9)["client-0"]
VIEW = ClientModel(adapter_of(MODULES))
STEPS, RATES = [(0, 3, 4), (), (2, 5, 6, 7, 8), (4, 3)], (0.5, 0.25, 0.1, 0.1)


def of_method(name: str, number: int) -> ClientModel:
    model = GlobalModel(adapter_of(MODULES))
    return build_method(name).view(model, "c", model.adapter.r, number, 0)


def flat(update) -> np.ndarray:
    return np.concatenate([array.ravel() for array in update.delta.values()]).astype(np.float64)


# The step


@pytest.mark.parametrize(
    "view",
    [of_method("fedit", 1), of_method("ffa_lora", 1), of_method("rolora", 2), of_method("la_lora", 1), core_view(2)],
    ids=["fedit", "ffa_lora", "rolora, round 2", "la_lora", "a core"],
)
def test_a_round_equals_dp_sgd_by_autograd_with_the_same_rows_and_noise(view):
    source = Given(STEPS, 9, seed=1)
    update = trained_privately(view, ROWS, source, clip=0.2, noise=0.7, batch=3, rates=RATES)
    noise = [named(view, step, 0.7 * 0.2 * drawn) for step, drawn in enumerate(source.normals)]
    assert len(source.normals) == len(STEPS), "noise is drawn once a step, whatever number of rows"
    expected = trained_by_hand(view, ROWS, STEPS, clip=0.2, batch=3, rates=RATES, noise=noise)
    assert distance(update.delta, {n: expected[n] for n in update.delta}) < ROUNDING
    without = trained_by_hand(view, ROWS, STEPS, clip=0.2, batch=3, rates=RATES)
    assert distance(update.delta, {n: without[n] for n in update.delta}) > 0.5


def named(view, step, drawn) -> dict[str, np.ndarray]:
    """The noise of a step by tensor: all A in the order of the modules, then all B as [r, out]; or all cores."""
    part, found = view.trains[step % len(view.trains)], {}
    names = ["core"] if view.core is not None else [p for p in "AB" if p in part]
    for name in names:
        for module, pair in view.adapter.factors.items():
            shape = view.core.values[module].shape if name == "core" else getattr(pair, name).shape
            values, drawn = drawn[: int(np.prod(shape))], drawn[int(np.prod(shape)) :]
            found[f"{module}.{name}"] = values.reshape(shape[::-1]).T if name == "B" else values.reshape(shape)
    assert not len(drawn), "noise on what is trained, and on nothing else"
    return found


def test_a_step_without_rows_is_a_step_of_noise_of_the_stated_scale():
    view = ClientModel(adapter_of(MODULES, r=64))
    z, clip, batch = 1.3, 0.4, 5
    update = trained_privately(view, ROWS, Given([()], 9, seed=2), clip=clip, noise=z, batch=batch, rates=(1.0,))
    noise = flat(update) * batch / (z * clip)
    n = len(noise)
    assert n > 15_000
    assert abs(noise.std() - 1) < 4.9 / np.sqrt(2 * n)
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_noise_is_drawn_anew_in_every_step():
    view = ClientModel(adapter_of(MODULES, r=64))
    update = trained_privately(view, ROWS, Given([(), ()], 9, seed=3), noise=1.0, batch=1, rates=(1.0, 1.0))
    assert flat(update).std() == pytest.approx(np.sqrt(2), rel=0.03)


def test_the_sum_is_divided_by_the_planned_batch_whatever_was_drawn():
    all_rows, one = tuple(range(9)), (2,)
    for drawn in (all_rows, one):
        halves = [
            flat(trained_privately(VIEW, ROWS, Given([drawn], 9), clip=0.2, batch=batch, rates=(1.0,)))
            for batch in (2, 4)
        ]
        assert np.linalg.norm(halves[0] - 2 * halves[1]) < 1e-5 * np.linalg.norm(halves[0])
        assert np.linalg.norm(halves[0]) <= 0.2 * len(drawn) / 2 * (1 + 1e-6)
    assert np.linalg.norm(halves[0]) == pytest.approx(0.2 / 2, rel=1e-5), "one row, clipped, over a batch of two"


def test_terms_of_the_objective_are_added_after_the_noise_and_not_clipped():
    far = Objective(proximal=3.0)
    plain, pulled = (
        trained_privately(VIEW, ROWS, Given([(1, 2), ()], 9), clip=0.1, batch=2, rates=(1.0, 0.2), objective=objective)
        for objective in (Objective(), far)
    )
    # After the first step θ − θ_t is −g; the second one has no rows: −0.2 μ (θ − θ_t).
    assert distance(pulled.delta, {n: (1 - 0.2 * 3.0) * d for n, d in plain.delta.items()}) < ROUNDING


def test_the_noised_gradient_is_not_clipped_to_max_grad_norm():
    updates = [
        trained_privately(VIEW, ROWS, Given([(1,)], 9, seed=1), noise=9.0, rates=(1.0,), max_grad_norm=limit).delta
        for limit in (1.0, 0.0)
    ]
    assert same_bytes(*updates)


def test_dropout_of_a_row_does_not_depend_on_other_rows():
    options = {"clip": 0.2, "batch": 1, "rates": (1.0,), "dropout": 0.5}
    apart = [flat(trained_privately(VIEW, ROWS, Given([(i,)], 9), **options)) for i in (2, 5)]
    both = flat(trained_privately(VIEW, ROWS, Given([(2, 5)], 9), **options))
    assert np.linalg.norm(both - sum(apart)) < ROUNDING * np.linalg.norm(both)
    without = flat(trained_privately(VIEW, ROWS, Given([(2, 5)], 9), **{**options, "dropout": 0.0}))
    assert np.linalg.norm(both - without) > 0.1 * np.linalg.norm(both)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_more_rows_than_slots_are_trained_in_several_groups(optimizer):
    options = {"batch": 2, "rates": (0.01, 0.01), "clip": 0.2, "optimizer": optimizer}
    two, one = (
        trained_privately(VIEW, ROWS, Given([tuple(range(9)), (1,)], 9), clients_at_once=at_once, **options)
        for at_once in (16, 1)
    )
    assert same_bytes(two.delta, one.delta)


# The rows


def test_each_row_is_drawn_independently_with_the_planned_rate():
    held, rate, draws = 40, 0.15, 4000
    source = Drawn(11)
    taken = np.zeros((draws, held), bool)
    for i in range(draws):
        taken[i, drawn_rows(held, rate, source)] = True
    counts = taken.sum(1)
    assert stats.kstest(taken.mean(0), stats.norm(rate, np.sqrt(rate * (1 - rate) / draws)).cdf).pvalue > 1e-3
    # Sizes are binomial, so they vary as those of independent rows do, and some draws are empty.
    expected = draws * stats.binom.pmf(np.arange(held + 1), held, rate)
    likely = expected > 5
    observed = np.bincount(counts, minlength=held + 1)
    statistic = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    assert stats.chi2.sf(statistic, likely.sum() - 1) > 1e-3
    between = np.corrcoef(taken.T)[np.triu_indices(held, 1)]
    assert abs(between).max() < 5 / np.sqrt(draws)


def test_the_rate_is_the_planned_batch_over_the_rows_held_and_one_at_the_most():
    by_steps, by_epoch = Work("c", 0, 24, (0.1,) * 3), Work("c", 0, 10, (0.1,) * 2)
    assert (planned_batch(by_steps), sampling_rate(by_steps, 80)) == (8, 0.1)
    assert (planned_batch(by_epoch), sampling_rate(by_epoch, 10)) == (5, 0.5)
    assert sampling_rate(by_steps, 8) == sampling_rate(by_steps, 3) == 1
    assert drawn_rows(5, 1.0, Drawn(0)).tolist() == [0, 1, 2, 3, 4]


def test_rows_and_noise_come_from_the_source_and_not_from_the_seed_of_the_run():
    first, second, other = (
        trained_privately(VIEW, ROWS, Drawn(seed), noise=0.01, batch=3, rates=RATES).delta for seed in (0, 0, 1)
    )
    assert same_bytes(first, second) and not same_bytes(first, other)


# What is reported


def test_no_loss_and_no_count_of_drawn_rows_leaves_the_client():
    reports = []
    updates = [
        trained_privately(VIEW, ROWS, Given(steps, 9, seed=0), noise=1.0, batch=3, rates=RATES, observe=reports.append)
        for steps in (STEPS, [()] * 4, [tuple(range(9))] * 4)
    ]
    assert [(u.metrics, u.num_tokens, u.num_examples, u.steps) for u in updates] == [({}, 12, 9, 4)] * 3
    rows = [report["c"] for report in reports]
    assert {(row.targets, row.tokens, row.seconds) for row in rows} == {(0, 0, 0.0)}
    assert all(np.isnan(row.loss) for row in rows) and rows[-1].state == "done"


def test_a_client_whose_noised_gradient_is_not_finite_fails():
    class Broken(Given):
        def normal(self, count):
            return np.full(count, np.inf)

    failure = trained_privately(VIEW, ROWS, Broken([(1,), (2,)], 9), noise=1.0)
    assert isinstance(failure, ClientFailure) and failure.code == "diverged"


def test_a_host_without_a_ledger_does_not_train_by_dp_sgd():
    task = TrainTask(1, {"c": VIEW}, 7, {"c": Work("c", 0, 4, (0.1,))}, privacy=ExamplePrivacy(1.0, 1.0))
    model = base_model()
    host = TrainingHost(PackedModel(model), lambda: CohortLora(targets_of(model)), LocalTraining(), {"c": ROWS})
    with pytest.raises(ClientError, match="no ledger"):
        next(train(task, {}, host))
