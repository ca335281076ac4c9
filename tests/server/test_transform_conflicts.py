"""What a transform needs of the aggregation: the property `linear` decides for each
method, each refusal has its sentence."""

from __future__ import annotations

from contextlib import suppress

import pytest

from shepherd.errors import UsageError
from shepherd.server.methods import build_method, methods
from shepherd.server.transform_conflicts import conflicts
from tiny_transforms import built, spec


def problems(name: str, method: str = "fedit", optimizer: str = "fedavg", aggregator: str = "", **changes) -> list[str]:
    options = {"weights": "uniform", "scaffold": False, "clusters": 0, "mixed_ranks": False, **changes}
    return list(conflicts(built(spec(name)), build_method(method, {}, optimizer, aggregator=aggregator), **options))


@pytest.mark.parametrize("name", [*methods])
def test_a_transform_that_needs_the_sum_alone_is_refused_exactly_by_the_methods_that_are_not_linear(name):
    assert bool(problems("linear", name)) != build_method(name).linear


@pytest.mark.parametrize("name", [*methods])
def test_a_client_half_without_needs_conflicts_with_no_method_and_no_weights(name):
    for optimizer in ("fedavg", "fednova"):
        with suppress(UsageError):  # the method itself may refuse the optimizer
            assert not problems("draw", name, optimizer, weights="tokens", scaffold=True, mixed_ranks=True)


CLUSTERS = (
    '"tiny_transforms:{0}" and personalization.name = "ifca" do not fit: clusters are formed and merged from the '
    'clients\' updates alone; set personalization.name = "none"'
)
SCAFFOLD = (
    '"tiny_transforms:{0}" and objective.scaffold = true do not fit: control variates are averaged beside the updates, '
    "where the transform does not reach; set objective.scaffold = false"
)
OWN = (
    '"tiny_transforms:{0}" and method.weigh = "product_norm" do not fit: the weights follow from the updates, and not '
    'from the round; set method.weigh = "given"'
)
STEPS = (
    '"tiny_transforms:{0}" and server.optimizer = "fednova" do not fit: the weight of an update depends on its '
    'client\'s local steps; use server.optimizer = "fedavg"'
)
RANKS = (
    '"tiny_transforms:{0}" and lora.ranks do not fit: the weight of a rank slot depends on the ranks of the clients '
    "that are sampled; use one rank for all clients"
)
WEIGHTED = (
    '"tiny_transforms:{0}" and federation.weights = "examples" do not fit: it needs the same weight for every client; '
    'set federation.weights = "uniform"'
)
AGGREGATOR = (
    '"tiny_transforms:{0}" and federation.aggregator = "trimmed_mean" do not fit: it is no sum of the updates by their '
    "weights; leave federation.aggregator out"
)
MERGE = (
    '"tiny_transforms:{0}" and method.merge = "product" do not fit: it needs each client\'s own factors, and not their '
    'sum alone; use federation.method = "ffa_lora"'
)
PAYLOAD = (
    '"tiny_transforms:{0}" and method.payload = "rotate" do not fit: it changes each client\'s factors after the '
    'transform; set method.payload = "plain"'
)
REFUSALS = [
    (CLUSTERS, {"clusters": 2}, ("draw", "push", "linear", "uniform"), ()),
    (SCAFFOLD, {"scaffold": True}, ("push", "linear"), ("draw", "uniform")),
    (OWN, {"method": "hetlora"}, ("push", "linear", "uniform"), ("draw",)),
    (STEPS, {"optimizer": "fednova"}, ("push", "linear", "uniform"), ("draw",)),
    (RANKS, {"method": "fed_plora", "mixed_ranks": True}, ("linear", "uniform"), ("draw", "push")),
    (RANKS, {"method": "lora_a2", "mixed_ranks": True}, ("linear",), ("draw", "push", "uniform")),
    (WEIGHTED, {"weights": "examples"}, ("uniform",), ("draw", "push", "linear")),
    (AGGREGATOR, {"aggregator": "trimmed_mean"}, ("push", "linear"), ("draw", "uniform")),
    (MERGE, {"method": "flora"}, ("linear",), ("draw", "push", "uniform")),
    (PAYLOAD, {"method": "fedrot_lora"}, ("linear",), ("draw", "push", "uniform")),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "setting", "refused", "accepted"), REFUSALS)
def test_a_setting_that_a_transform_cannot_have_is_refused_by_one_sentence(sentence, setting, refused, accepted):
    for name in refused:
        assert problems(name, **setting) == [f"transform {sentence.format(name)}"]
    for name in accepted:
        assert problems(name, **setting) == []
