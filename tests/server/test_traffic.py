"""Communication cost of methods against worked examples and real updates."""

from __future__ import annotations

import pytest

from federations import (
    R,
    a_round,
    begin,
    shapes_for,
)
from shepherd.server.methods import build_method, methods
from shepherd.server.traffic import SMOLLM2_QV, numbers, table


def test_traffic_matches_a_worked_example():
    # r = 8 on q and v of SmolLM2-135M, ten clients: 57,600 numbers per rank; B alone 23,040; cores of 64 numbers.
    of = {row["name"]: (row["bytes_up"], row["bytes_down"]) for row in table()}
    both, B, A = 4 * 8 * 57_600, 4 * 8 * 23_040, 4 * 8 * 34_560
    assert of["fedit"] == of["la_lora"] == of["fedrot_lora"] == of["hetlora"] == of["lora_fair"] == (both, both)
    assert of["ffa_lora"] == (B, B) and of["rolora"] == of["lora_a2"] == ((A + B) / 2, (A + B) / 2)
    assert of["flora"] == of["fedex_lora"] == of["fedmomentum"] == (both, 10 * both)
    assert of["flexlora"] == of["raflora"] == of["frlora"] == (both, both)
    assert of["fedsvd"] == (B, both)
    assert of["fed_sb"] == (4 * 64 * 60, 4 * 64 * 60) and of["ravan"] == (4 * 16 * 60, 4 * 16 * 60)


def test_traffic_depends_on_mixed_ranks_and_bounds_on_the_remainder():
    sizes, ranks = {"q": (100, 50)}, [2, 4, 8]
    assert numbers(build_method("flora"), sizes, 8, ranks) == (14 / 3 * 150, 14 * 150)
    assert numbers(build_method("hetlora"), sizes, 8, ranks) == (14 / 3 * 150, 14 / 3 * 150)
    assert numbers(build_method("fed_plora"), sizes, 8, ranks) == (14 / 3 * 150, 8 * 150)
    assert numbers(build_method("fedex_lora", {"rank": 5}), sizes, 8, [8] * 3) == (8 * 150, 13 * 150)
    assert numbers(build_method("fedex_lora"), sizes, 8, [8] * 30)[1] == (8 + 50) * 150  # no more than the matrix has
    assert sum(n_in + n_out for n_in, n_out in SMOLLM2_QV.values()) == 57_600


@pytest.mark.parametrize("name", list(methods))
def test_the_planned_upload_equals_that_of_real_updates(name):
    method = build_method(name)
    model = begin(method)
    sent = [u.delta for number in (1, 2) for u in a_round(method, model, number).updates]
    counted = sum(array.size for delta in sent for array in delta.values()) / len(sent)
    assert numbers(method, shapes_for(method), R, [R] * 3)[0] == counted


@pytest.mark.parametrize("name", [name for name in methods if methods.build(name).pieces.view.all_slots])
def test_with_mixed_ranks_only_owned_slots_are_sent_and_counted(name):
    method = build_method(name)
    if not method.mixed_ranks:
        return
    shapes, ranks = {"o": (40, 40), "q": (40, 40)}, {"a": 2, "b": 4, "c": 2}
    model = begin(method, shapes=shapes)
    sent = [u for number in (1, 2) for u in a_round(method, model, number, ranks=ranks).updates]
    counted = numbers(method, shapes, R, list(ranks.values()))[0]
    # a byte for each slot of a choice, eight for each float64 of a factor; `numbers` counts four bytes a number
    as_float32 = sum(u.nbytes - sum(s.nbytes for s in u.slots.values()) for u in sent) / 2
    assert (as_float32 + sum(s.nbytes for u in sent for s in u.slots.values())) / len(sent) == 4 * counted
    assert counted < numbers(method, shapes, R, [R] * 3)[0]
