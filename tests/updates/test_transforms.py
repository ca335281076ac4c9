"""Transforms of updates: how they are named, built and composed, and what each half is given."""

from __future__ import annotations

import numpy as np
import pytest

from federations import begin
from shepherd.errors import UsageError
from shepherd.server.methods import build_method
from shepherd.types import ClientUpdate, TransformSpec
from shepherd.updates.composition import Transforms, build_transforms
from shepherd.updates.transforms import Contributions, Transform, transforms
from tiny_transforms import built, spec

METHOD = build_method("fedit")
START = METHOD.view(begin(METHOD), "(server)", 4, 1, 0)


def update(client: str = "a", number: int = 1) -> ClientUpdate:
    return ClientUpdate(client, number, {"q.A": np.ones((1, 2), np.float32)}, 5, 10, 1, {"loss": 1.0})


def test_without_transforms_updates_and_contributions_stay_the_objects_that_they_are():
    own, given = update(), Contributions(1)
    assert Transforms().on_client(own, START, 0) is own
    assert Transforms().on_server(given, lambda: pytest.fail("nothing needs a start"), 0) is given
    assert list(transforms) == ["clip"], "built in"


def test_on_a_client_they_apply_in_order():
    for names, value in ((("add", "double"), 4.0), (("double", "add"), 3.0)):
        sent = built(*map(spec, names)).on_client(update(), START, 0)
        assert sent.delta["q.A"].tolist() == [[value, value]]


def test_on_the_server_they_apply_in_reverse():
    for names, weight in ((("add", "double"), 1.0), (("double", "add"), 2.0)):
        merged = built(*map(spec, names)).on_server(Contributions(1, weights={"a": 0.5}), lambda: START, 0)
        assert merged.weights == {"a": 1.0, "(add)": weight}


def test_a_pseudo_update_has_the_tensors_of_its_start_and_its_own_weight():
    given = Contributions(3, (update(),), {"a": START}, {"a": 0.5}, {"a": 7.0})
    merged = built(spec("push", value=0.25)).on_server(given, lambda: START, 0)
    assert given.weights == {"a": 0.5} and len(given.updates) == 1, "what is given stays as it is"
    own, pseudo = merged.updates
    assert own is given.updates[0] and (pseudo.client, pseudo.round) == ("(add)", 3)
    assert {n: a.shape for n, a in pseudo.delta.items()} == {n: a.shape for n, a in START.tensors().items()}
    assert merged.views == {"a": START, "(add)": START}
    assert merged.weights == {"a": 0.5, "(add)": 1.0} and merged.steps == {"a": 7.0, "(add)": 1.0}
    with pytest.raises(ValueError, match="'add' already"):
        merged.plus("add", START, {}, 1.0)


def test_random_numbers_depend_on_seed_transform_client_and_round_alone():
    def drawn(seed: int = 0, client: str = "a", number: int = 1, *before: TransformSpec) -> bytes:
        return built(*before, spec("draw")).on_client(update(client, number), START, seed).delta["q.A"].tobytes()

    assert drawn() == drawn() == drawn(0, "a", 1, spec("identity"))
    assert len({drawn(), drawn(1), drawn(0, "b"), drawn(0, "a", 2)}) == 4


def test_a_task_carries_those_with_a_client_half():
    assert built(spec("add"), spec("push"), spec("clip", norm=1.0)).sent == (spec("add"), spec("clip", norm=1.0))


def test_names_and_options_that_do_not_fit_are_refused_at_once():
    with pytest.raises(UsageError) as caught:
        build_transforms(
            [TransformSpec("noise"), spec("clip", norm="x"), spec("not_a_transform"), spec("add"), spec("add")]
        )
    assert caught.value.message.splitlines() == [
        "unknown transform: 'noise'. Known: clip",
        "transform 'tiny_transforms:clip': norm must be a number, got 'x'",
        "transform 'tiny_transforms:not_a_transform' gives 3, not a Transform",
        "transform 'tiny_transforms:add' is given twice; its random numbers would be the same both times",
    ]


def test_a_need_that_is_none_of_the_known_ones_is_refused():
    with pytest.raises(ValueError, match="no such need: 'sum'"):
        Transform(needs=frozenset({"linear", "sum"}))
