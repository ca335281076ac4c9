"""Local modules on the server: their choice, aggregation, diagnostics and traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import BLOCKS, SEED, SHAPES, WEIGHTS, R, a_round, begin, fresh
from shepherd.errors import ClientError, UsageError
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method, methods
from shepherd.server.pieces.local_modules import homes
from shepherd.server.traffic import SMOLLM2_QV, numbers, round_bytes

TWELVE = tuple(f"model.layers.{n}.{name}" for n in range(12) for name in ("self_attn.q_proj", "mlp.down_proj"))


def local_names(modules, name, **options) -> list[str]:
    found = homes.build(name, options).of(modules)
    return [module for module in modules if module in found]


# Which modules


def test_the_last_blocks_are_chosen_by_number_not_alphabetically():
    assert local_names(TWELVE, "last_blocks") == list(TWELVE[-2:])
    assert local_names(TWELVE, "last_blocks", blocks=3) == list(TWELVE[-6:])  # 9, 10, 11; by letters 9 is the last
    assert local_names(TWELVE[::-1], "last_blocks", blocks=3) == list(TWELVE[-6:])[::-1]


def test_the_block_number_is_the_first_number_in_a_name():
    experts = [f"layers.{n}.experts.{k}.w1" for n in range(3) for k in range(8)]
    assert local_names(experts, "last_blocks") == experts[-8:]


def test_blocks_without_adapters_are_not_counted():
    assert local_names(["h.3.attn", "h.7.attn", "h.20.attn"], "last_blocks", blocks=2) == ["h.7.attn", "h.20.attn"]


@pytest.mark.parametrize(
    "names, expected",
    [
        (("layers.1",), ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]),  # not layers.10, 11
        (("layers.1?",), list(TWELVE[20:])),
        (("layers.1*",), [*TWELVE[2:4], *TWELVE[20:]]),
        (("layers.[23].mlp", "layers.11.self_attn.q_proj"), [TWELVE[5], TWELVE[7], TWELVE[22]]),
        (("down_proj",), list(TWELVE[1::2])),
        (("model.layers.*.mlp",), list(TWELVE[1::2])),
    ],
    ids=str,
)
def test_a_name_matches_whole_parts_of_module_names(names, expected):
    assert local_names(TWELVE, "modules", names=names) == expected


@pytest.mark.parametrize(
    "modules, name, options, words, hint",
    [
        (TWELVE, "last_blocks", {"blocks": 12}, "last 12 blocks .* the adapter lies in 12: nothing", "at most 11"),
        (["h.0.q", "h.0.k"], "last_blocks", {}, "the adapter lies in 1: nothing would travel", "trains alone"),
        ([*TWELVE, "lm_head"], "last_blocks", {}, "the name of lm_head has no number", r'names = \["lm_head"\]'),
        (["eye.0.q", "ear.0.q"], "last_blocks", {}, "more than one kind, 'ear' and 'eye'", 'name = "modules"'),
        (
            TWELVE,
            "modules",
            {"names": ("dwn_proj",)},
            "'dwn_proj' in its name. Did you mean 'down_proj'",
            "last of the",
        ),
        (TWELVE, "modules", {"names": ("proj",)}, "no adapted module has 'proj'", "24 adapted modules"),
        (TWELVE, "modules", {"names": ("mlp", "self_attn")}, "mlp, self_attn are all 24 modules", "trains alone"),
    ],
)
def test_invalid_local_modules_are_refused_with_the_reason_and_a_hint(modules, name, options, words, hint):
    import re

    with pytest.raises(UsageError, match=words) as caught:
        local_names(modules, name, **options)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"blocks": -1}, "blocks must be at least 0, got -1"),
        ({"blocks": 0.5}, "blocks must be a whole number, got 0.5"),
        ({"home": "modules"}, "missing a required argument: 'names'"),
        ({"home": {"name": "modules", "names": []}}, "names is empty"),
        ({"home": {"name": "modules", "names": "lm_head"}}, "names must be"),
        ({"home": "last_block"}, "Did you mean 'last_blocks'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(table, words):
    with pytest.raises(UsageError, match=words):
        build_method("fedper_lora", table)


# The server


def test_shared_blocks_are_averaged_and_local_modules_keep_their_initial_value():
    method, start = build_method("fedper_lora"), fresh(BLOCKS)
    below, last = BLOCKS
    A, B = (x.astype(np.float64) for x in start.factors[below])
    model = begin(method)
    for number in (1, 2, 3):
        done = a_round(method, model, number)
        assert {name.rsplit(".", 1)[0] for u in done.updates for name in u.delta} == {below}
        A = A + sum(WEIGHTS[u.client] * u.delta[f"{below}.A"] for u in done.updates)
        B = B + sum(WEIGHTS[u.client] * u.delta[f"{below}.B"] for u in done.updates)
        model = done.after
        np.testing.assert_allclose(model.adapter.factors[below].A, A, atol=1e-13)
        np.testing.assert_allclose(model.adapter.factors[below].B, B, atol=1e-13)
    assert list(model.adapter.factors) == list(start.factors)
    assert not model.adapter.factors[last].B.any()
    assert model.adapter.factors[last].A.tobytes() == start.factors[last].A.tobytes()


SILENT = {"fed_sb", "ravan", "lora_a2"}
"""Methods without support for local modules; see composition.conflicts."""
PLAIN = [(name, "fedavg") for name in methods if name not in SILENT and not methods.build(name).pieces.home.keeps]


@pytest.mark.parametrize("name, optimizer", [*PLAIN, ("fedit", "fedadam"), ("fedit", "fedyogi"), ("flora", "fedavgm")])
def test_every_method_aggregates_shared_modules_as_without_local_modules(name, optimizer):
    without = build_method(name, None, optimizer)
    method = build_method(name, {"home": {"name": "modules", "names": ["o"]}}, optimizer)
    ranks = {"a": 2, "b": 4, "c": 2} if method.mixed_ranks else None
    if name == "hetlora":  # weighs by norms over all that it gets
        without, method = (m.changed({"weigh": "given"}) for m in (without, method))
    whole, model = begin(without), begin(method)
    first = model
    for number in (1, 2, 3):
        done = a_round(without, whole, number, ranks=ranks)
        views = {c: method.view(model, c, (ranks or {}).get(c, R), number, SEED) for c in WEIGHTS}
        updates = [replace(u, delta={n: d for n, d in u.delta.items() if not n.startswith("o.")}) for u in done.updates]
        assert all(view.tensors().keys() == u.delta.keys() for view, u in zip(views.values(), updates, strict=True))
        whole, model = done.after, method.combine(model, views, updates, WEIGHTS)
    assert [x.tobytes() for x in model.adapter.factors["q"]] == [x.tobytes() for x in whole.adapter.factors["q"]]
    assert [x.tobytes() for x in model.adapter.factors["o"]] == [x.tobytes() for x in first.adapter.factors["o"]]
    for of, before in ((model, whole), (model, first)):
        name = "q" if before is whole else "o"
        rests = [m.remainder.get(name) for m in (of, before)]
        assert rests[0] is rests[1] or rests[0].dense().tobytes() == rests[1].dense().tobytes()
    assert not any(".o." in key for key in model.memory.keys() - first.memory.keys())


@pytest.mark.parametrize("name", sorted(SILENT))
def test_a_method_that_needs_all_modules_refuses_local_modules(name):
    with pytest.raises(UsageError, match=r'home "modules" and (merge "core"|view "probe") do not fit'):
        build_method(name, {"home": {"name": "modules", "names": ["o"]}})


def test_an_update_with_local_modules_is_refused():
    done = a_round(build_method("fedper_lora"), begin(build_method("fedper_lora")), 1)
    last = list(BLOCKS)[-1]
    more = replace(done.updates[0], delta={**done.updates[0].delta, f"{last}.A": np.ones((R, 64))})
    with pytest.raises(ClientError, match=rf"a: {last}.A is \[4, 64\], the round asked for absent"):
        replace(done, updates=(more, *done.updates[1:])).after  # noqa: B018


def test_diagnostics_cover_the_shared_modules_alone():
    found = []
    for method, shapes in (
        (build_method("fedit"), {"q": SHAPES["q"]}),
        (build_method("fedit", {"home": {"name": "modules", "names": ["o"]}}), {"q": SHAPES["q"], "o": SHAPES["o"]}),
    ):
        done = a_round(method, begin(method, shapes=shapes), 1)
        found.append(diagnose(done.before, done.after, done.views, done.updates, done.weights))
    assert found[0] == found[1] and found[1].modules == 1


def test_traffic_counts_the_shared_blocks_in_both_directions():
    plain = numbers(build_method("fedit"), SMOLLM2_QV, 8, [8])
    assert numbers(build_method("fedper_lora"), SMOLLM2_QV, 8, [8]) == tuple(29 / 30 * n for n in plain)
    assert numbers(build_method("fedper_lora", {"blocks": 0}), SMOLLM2_QV, 8, [8]) == plain
    below = BLOCKS[next(iter(BLOCKS))]
    for scaffold in (False, True):  # c covers the sent tensors
        _, down = round_bytes(build_method("fedper_lora"), fresh(BLOCKS), 1, [R, R, R], scaffold=scaffold)
        assert down == 3 * 4 * R * sum(below) * (2 if scaffold else 1)
