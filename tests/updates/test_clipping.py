"""Clipping of updates: exact norms, untouched short updates, one rule on the client and on the server."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federations import begin
from shepherd.errors import UsageError
from shepherd.experiment.method import compose
from shepherd.recipe import load, resolve, to_toml
from shepherd.server.methods import build_method
from shepherd.types import ClientUpdate, TransformSpec
from shepherd.updates.clipping import REPORTED, clip_specs, clipped, unclipped_norm, was_clipped
from shepherd.updates.composition import build_transforms
from shepherd.updates.rules import update_norm

METHOD = build_method("fedit")
START = METHOD.view(begin(METHOD), "(server)", 4, 1, 0)


def update(*arrays: np.ndarray) -> ClientUpdate:
    delta = {f"m{n}.{part}": np.float32(array) for n, (array, part) in enumerate(zip(arrays, "ABAB", strict=False))}
    return ClientUpdate("a", 1, delta, 5, 10, 1, {"loss": 1.0})


def random(norm: float, seed: int = 0) -> ClientUpdate:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(3, 50)), rng.normal(size=(40, 3)), np.zeros((2, 2))]
    length = np.sqrt(sum((array**2).sum() for array in arrays))
    return update(*(norm / length * array for array in arrays))


@given(st.floats(1e-6, 1e6), st.floats(1.00001, 1e6), st.integers(0, 9))
def test_a_longer_update_has_the_norm_of_the_limit_to_a_millionth_and_its_direction(limit, times, seed):
    before = random(limit * times, seed)
    after = clipped(before, limit)
    assert (1 - 1e-6) * limit <= update_norm(after) <= limit
    for name, array in before.delta.items():
        assert after.delta[name].dtype == np.float32
        np.testing.assert_allclose(after.delta[name], array.astype(np.float64) * (limit / update_norm(before)), 1e-6)
    assert clipped(after, limit) is after, "a second clip changes nothing"
    assert was_clipped(unclipped_norm(after, update_norm(after), 0.0), limit)


def test_the_norm_is_over_all_tensors_of_the_message_and_not_over_each():
    after = clipped(update([[3.0]], [[4.0]]), 2.5)
    assert [float(a[0, 0]) for a in after.delta.values()] == pytest.approx([1.5, 2.0], rel=1e-6)


def test_an_update_within_the_limit_and_every_update_without_one_stay_the_objects_that_they_are():
    own = update([[3.0]], [[4.0]])
    for limit in (0.0, 5.0, 1e30):
        assert clipped(own, limit) is own
    nothing = update([[0.0]])
    assert clipped(nothing, 1e-30) is nothing
    assert not was_clipped(5.0, 0.0) and not was_clipped(4.9, 5.0)


def test_large_and_tiny_values_neither_overflow_nor_vanish():
    for value in (1e30, 1e-42):
        own = update(np.full((4, 4), value))
        norm = update_norm(own)
        assert update_norm(clipped(own, norm / 2)) == pytest.approx(norm / 2, rel=1e-6 if value > 1 else 1e-2)


def test_what_is_not_finite_is_left_to_the_gate():
    for value in (np.inf, np.nan):
        own = update([[value, 1.0]])
        assert clipped(own, 1.0) is own


def test_the_client_half_clips_and_reports_the_norm_before_only_where_a_median_is_taken():
    own = random(8.0)
    for setting, reported in ((2.0, None), ("median", 8.0)):
        sent = build_transforms(clip_specs(2.0, setting == "median")).on_client(own, START, 0)
        assert 2.0 * (1 - 1e-6) <= update_norm(sent) <= 2.0
        assert sent.metrics.get(REPORTED) == (reported and pytest.approx(reported, rel=1e-6))
        assert unclipped_norm(sent, update_norm(sent), 0.0) == (sent.metrics.get(REPORTED) or update_norm(sent))
    short = build_transforms(clip_specs(9.0)).on_client(own, START, 0)
    assert all(short.delta[name] is array for name, array in own.delta.items()) and short.metrics == own.metrics
    assert clip_specs(0.0, report=True) == ()


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_task_that_asks_for_no_norm_at_all_is_refused(norm):
    with pytest.raises(UsageError, match="norm must be more than 0 and finite"):
        build_transforms([TransformSpec("clip", {"norm": norm})])


def test_a_recipe_names_a_number_or_the_median_and_nothing_else():
    assert load(overrides=["federation.clip_update_norm=2"]).federation.clip_update_norm == 2.0
    config = load(overrides=["federation.clip_update_norm=median"])
    assert config.federation.clip_update_norm == "median"
    assert 'clip_update_norm = "median"' in to_toml(config)
    assert "clip_update_norm" not in to_toml(load(overrides=["federation.clip_update_norm=0"]))
    for value, said in (
        ("average", "must be 'median' or must be a number, got 'average'"),
        ("true", "must be 'median' or must be a number, got True"),
        ("-1", "must be 'median' or must be at least 0.0, got -1"),
    ):
        with pytest.raises(UsageError) as caught:
            load(overrides=[f"federation.clip_update_norm={value}"])
        assert f"federation.clip_update_norm: {said}" in caught.value.message


SCAFFOLD = (
    "federation.clip_update_norm and objective.scaffold = true do not fit: a client's control variate follows from its "
    "update before the transform; set objective.scaffold = false"
)
IFCA = (
    'federation.clip_update_norm and personalization.name = "ifca" do not fit: clusters are formed and merged from the '
    'clients\' updates alone; set personalization.name = "none"'
)


@pytest.mark.parametrize("wanted", ["2.0", "median"])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["objective.scaffold=true", "training.optimizer=sgd"], SCAFFOLD),
        (["personalization.name=ifca"], IFCA),
    ],
)
def test_what_an_update_carries_beside_its_delta_is_not_clipped_so_it_is_refused(wanted, settings, sentence):
    with pytest.raises(UsageError) as caught:
        compose(load(overrides=[f"federation.clip_update_norm={wanted}", *settings]))
    assert caught.value.message == sentence
    compose(load(overrides=settings))


@pytest.mark.parametrize("method", ["hetlora", "flora", "fed_plora", "lora_a2", "fedrot_lora", "fed_sb"])
def test_clipping_goes_with_methods_that_are_linear_and_that_are_not(method):
    compose(load(overrides=["federation.clip_update_norm=1", f"federation.method={method}"]))


@pytest.mark.parametrize(
    "setting",
    ["server.optimizer=fednova", "federation.aggregator=trimmed_mean", "federation.method=fed_plora lora.ranks=2,4"],
)
def test_clipping_goes_with_other_weights_and_with_mixed_ranks(setting):
    compose(load(overrides=["federation.clip_update_norm=1", *setting.split()]))


def test_a_reported_norm_counts_for_no_more_than_what_is_rejected():
    update = ClientUpdate("a", 1, {"m.A": np.ones(4, np.float32)}, 1, 1, 1, {"unclipped_norm": 1e308})
    assert unclipped_norm(update, 2.0, 1e4) == 1e4
    assert unclipped_norm(update, 2.0, 0.0) == 1e12
    assert unclipped_norm(update, 2e12, 0.0) == 2e12


@pytest.mark.parametrize("method", ["rolora", "lora_a2"])
def test_the_median_is_refused_where_a_and_b_are_sent_in_turn(method):
    settings = {"federation": {"method": method, "clip_update_norm": "median"}}
    with pytest.raises(UsageError, match="A and B are sent in turn"):
        compose(resolve(settings))
    compose(resolve({"federation": {"method": method, "clip_update_norm": 0.5}}))
