"""Composition of pieces: conflicts, unknown names and options."""

from __future__ import annotations

import pytest

from shepherd.errors import UsageError
from shepherd.server.composition import DEFAULTS, REGISTRIES, build_pieces
from shepherd.server.methods import build_method
from shepherd.server.optimizer import optimizers

MISFITS = {
    'view "svd" and merge "factor"': {"view": "svd"},
    'view "svd" and weigh "slot_owners"': {"view": "svd", "merge": "product", "weigh": "slot_owners"},
    'view "fresh" and split "mean"': {"view": "fresh", "merge": "product", "remainder": "keep"},
    'view "fresh" and start "principal"': {
        "view": "fresh", "start": "principal", "merge": "product", "split": "reinit", "remainder": "keep",
    },
    'split "reinit" and remainder "drop"': {"view": "fresh", "merge": "product", "split": "reinit"},
    'split "fixed" and start "given"': {"split": "fixed", "remainder": "keep"},
    'split "ridge" and merge "factor"': {"split": "ridge"},
    'remainder "keep" and merge "factor"': {"remainder": "keep"},
    'payload "rotate" and train "B"': {"payload": "rotate", "train": "B"},
    'payload "rotate" and view "prefix"': {"payload": "rotate", "view": "prefix"},
    'train "A" and start "given"': {"train": "A"},
    'train "by_round" and split "reinit"': {
        "train": "by_round", "merge": "product", "split": "reinit", "remainder": "keep",
    },
    'home "last_blocks" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "home": "last_blocks",
    },
    'home "modules" and view "probe"': {"view": "probe", "home": {"name": "modules", "names": ("q",)}},
    'train "core" and start "given"': {"train": "core"},
    'merge "core" and start "given"': {"merge": "core"},
    'split "svd_left" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "split": "svd_left",
    },
    'remainder "keep" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "remainder": "keep",
    },
    'payload "rotate" and merge "core"': {
        "start": "cores", "view": "heads", "train": "core", "merge": "core", "payload": "rotate",
    },
}  # fmt: skip


@pytest.mark.parametrize("pair", MISFITS)
def test_conflicting_pieces_are_refused_with_both_names_the_reason_and_an_alternative(pair):
    with pytest.raises(UsageError) as caught:
        build_pieces(MISFITS[pair])
    lines = caught.value.message.split("\n")
    (line,) = [line for line in lines if line.startswith(f"{pair} do not fit: ")]
    assert "; use " in line


def test_the_alternatives_of_conflicts_are_registered_names():
    import re

    for specs in MISFITS.values():
        with pytest.raises(UsageError) as caught:
            build_pieces(specs)
        for kind, name in re.findall(r'(\w+) "(\w+)"', caught.value.message.partition("; use")[2]):
            if kind in REGISTRIES:
                assert name in REGISTRIES[kind]


@pytest.mark.parametrize(
    "name, optimizer, words",
    [
        ("fedsvd", "fedadam", 'server.optimizer "fedadam" and split "regauge"'),
        ("fedsvd", "fedavgm", 'server.optimizer "fedavgm" and split "regauge"'),
        ("fedmomentum", "fedyogi", 'server.optimizer "fedyogi" and merge "product"'),
        ("fedex_lora", "fedadagrad", 'server.optimizer "fedadagrad" and merge "product"'),
        # Clients of 1 and 2 steps moved B once each; divided by 1 and 2 their changes of B weighed 2 : 1.
        ("la_lora", "fednova", 'server.optimizer "fednova" and train "by_step"'),
    ],
)
def test_a_server_optimizer_with_meaningless_moments_is_refused(name, optimizer, words):
    with pytest.raises(UsageError) as caught:
        build_method(name, optimizer=optimizer)
    assert words in caught.value.message and "use " in caught.value.message


def test_changing_pieces_to_ones_that_conflict_with_the_optimizer_is_refused():
    with pytest.raises(UsageError, match="moments refer to rank slots"):
        build_method("fedit", optimizer="fedadam").changed({"split": "svd_left"})


def test_unknown_pieces_and_options_are_refused_with_a_suggestion_and_the_list():
    with pytest.raises(UsageError) as caught:
        build_method("fedit", {"split": "svd_balance"})
    assert "unknown split: 'svd_balance'. Did you mean 'svd_balanced'? Known: fixed, mean" in caught.value.message
    with pytest.raises(UsageError) as caught:
        build_method("fedex_lora", {"remainder": {"name": "keep", "ranks": 3}})
    assert "has no option 'ranks'. Did you mean 'rank'?" in caught.value.message
    with pytest.raises(UsageError) as caught:
        build_method("fedex_lora", {"spilt": "mean"})
    assert "has no option 'spilt'" in caught.value.message and "pieces: start, view" in caught.value.message
    with pytest.raises(UsageError, match=r"unknown method: 'fedexlora'. Did you mean 'fedex_lora'"):
        build_method("fedexlora")
    with pytest.raises(UsageError, match=r"unknown server optimizer: 'fedadm'. Did you mean 'fedadam'"):
        build_method("fedit", optimizer="fedadm")
    with pytest.raises(UsageError, match="merge must be a name or a table"):
        build_method("fedit", {"merge": 3})


def test_all_mistakes_in_pieces_are_reported_together():
    with pytest.raises(UsageError) as caught:
        build_pieces({"split": "x", "merge": "y", "vieww": "identity"})
    assert len(caught.value.message.split("\n")) == 3 and "Did you mean 'view'?" in caught.value.message


@pytest.mark.parametrize(
    "table",
    [
        {"remainder": {"name": "keep", "rank": -1}}, {"energy": 1.5}, {"energy": float("nan")},
        {"split": {"name": "ridge", "strength": -1.0}},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_with_their_name(table):
    with pytest.raises(UsageError, match=r"(rank|energy|strength) must be"):
        build_method("fedmomentum", table)


def test_a_table_without_a_name_sets_options_of_the_piece_of_the_method():
    method = build_method("fedmomentum", {"remainder": {"rank": 3}})
    assert (method.pieces.remainder.rank, method.pieces.remainder.energy) == (3, 0.9999)
    assert build_method("fedex_lora", {"rank": 5}).pieces.remainder.rank == 5
    swapped = build_method("fedex_lora", {"split": "svd_left"})
    assert swapped.pieces.split.name == "svd_left" and swapped.exact


def test_every_piece_has_a_one_line_description():
    for registry in (*REGISTRIES.values(), optimizers):
        for name in registry:
            assert registry.describe(name).rstrip(";").endswith((".", ")", "product")), (registry.kind, name)
    assert all(DEFAULTS[kind] in registry for kind, registry in REGISTRIES.items())
