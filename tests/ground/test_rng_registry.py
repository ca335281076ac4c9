"""Named random streams, and names that lead to functions."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import pytest
import torch

from shepherd.errors import UsageError
from shepherd.registry import Registry
from shepherd.rng import derive, stream


def test_a_stream_is_a_function_of_seed_and_path_alone():
    first = stream(7, "shuffle", "client-1", 2).random(5)
    stream(7, "shuffle", "client-2", 2).random(100)  # what others draw is no matter
    assert (stream(7, "shuffle", "client-1", 2).random(5) == first).all()


def test_the_numbers_of_a_stream_stay_what_they_are_over_versions():
    # blake2b of "0\x1fs:select\x1fi:3", first 8 bytes, little endian: saved runs and other sites rely on it.
    assert derive(0, "select", 3) == 11380158459618076131


@pytest.mark.parametrize(
    "a, b",
    [
        (("a", "b"), ("ab",)),
        ((1,), ("1",)),
        (("a", 1), ("a", 2)),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "")),
        ((12, 3), (1, 23)),
        (("s:a",), ("a",)),
    ],
)
def test_different_paths_have_different_streams(a, b):
    assert derive(0, *a) != derive(0, *b)


def test_different_seeds_have_different_streams():
    assert len({derive(seed, "x") for seed in range(1000)}) == 1000


def test_equal_numbers_give_equal_paths_whether_python_or_numpy_made_them():
    assert derive(np.int64(3), "round", np.int64(5)) == derive(3, "round", 5)


def test_neighbouring_streams_are_independent():
    draws = np.array([stream(0, "client", k).random(50) for k in range(200)])
    neighbours = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.04  # 4 standard errors of 10,000 pairs
    assert abs(draws.mean() - 0.5) < 0.012


def test_streams_neither_read_nor_move_the_global_generators():
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    expected = (np.random.random(), random.random(), torch.rand(1).item())
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    stream(0, "a").random(10)
    assert (np.random.random(), random.random(), torch.rand(1).item()) == expected


# Registry


@pytest.fixture
def flavours() -> Registry:
    flavours = Registry("flavour")

    @flavours
    def vanilla(sugar: int = 1):
        """Plain, as a rule.

        More is not shown."""
        return lambda: ("vanilla", sugar)

    @flavours
    def almond(nuts: int, *, roast: float = 0.5):
        if nuts < 0:
            raise ValueError("nuts must not be negative")
        return lambda: ("almond", nuts, roast)

    return flavours


def test_a_decorated_function_has_its_own_name_options_and_first_line(flavours):
    assert list(flavours) == ["almond", "vanilla"]
    assert flavours.build("vanilla", {"sugar": 3})() == ("vanilla", 3)
    assert flavours.build("vanilla")() == ("vanilla", 1)
    assert flavours.describe("vanilla") == "Plain, as a rule."
    assert flavours.describe("almond") == ""
    assert list(flavours.options("almond")) == ["nuts", "roast"]


def test_the_decorator_gives_back_the_function_itself(flavours):
    def mint():
        return lambda: "mint"

    assert flavours(mint) is mint and flavours.get("mint") is mint


def test_a_name_cannot_be_taken_twice(flavours):
    def vanilla():
        return None

    with pytest.raises(UsageError, match="flavour 'vanilla' is registered twice"):
        flavours(vanilla)


@pytest.mark.parametrize(
    "name, options, parts",
    [
        ("vanila", {}, ["unknown flavour: 'vanila'", "Did you mean 'vanilla'?", "Known: almond, vanilla"]),
        ("zzz", {}, ["unknown flavour: 'zzz'. Known:"]),
        ("vanilla", {"suger": 1}, ["'vanilla' has no option 'suger'", "Did you mean 'sugar'?", "Its options: sugar"]),
        ("almond", {}, ["flavour 'almond'", "nuts"]),
        ("almond", {"nuts": -1}, ["flavour 'almond'", "nuts must not be negative"]),
        ("no.such.module:f", {}, ["flavour 'no.such.module:f' cannot be imported"]),
        ("math:nothing", {}, ["flavour 'math:nothing' cannot be imported", "nothing"]),
        (":f", {}, ["flavour ':f' cannot be imported"]),
        (".types:f", {}, ["flavour '.types:f' cannot be imported"]),
    ],
)
def test_what_cannot_be_built_is_said_with_the_name_and_what_there_is(flavours, name, options, parts):
    with pytest.raises(UsageError) as caught:
        flavours.build(name, options)
    assert [part for part in parts if part not in caught.value.message] == [], caught.value.message


def test_a_module_and_function_is_imported_and_takes_options(flavours, tmp_path, monkeypatch):
    (tmp_path / "my_flavours.py").write_text("def lemon(sour: int = 1):\n    return lambda: ('lemon', sour)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert flavours.build("my_flavours:lemon", {"sour": 4})() == ("lemon", 4)
    with pytest.raises(UsageError, match="has no option 'sweet'"):
        flavours.build("my_flavours:lemon", {"sweet": 4})


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("vanilla", {"sugar": "two"}, "sugar must be a whole number, got 'two'"),
        ("vanilla", {"sugar": 2.5}, "sugar must be a whole number, got 2.5"),
        ("vanilla", {"sugar": True}, "sugar must be a whole number, got True"),
        ("almond", {"nuts": 1, "roast": "x"}, "roast must be a number, got 'x'"),
        (
            "almond",
            {"nuts": "1", "roast": "x"},
            "nuts must be a whole number, got '1'; roast must be a number, got 'x'",
        ),
        ("cone", {"dipped": "no"}, "dipped must be true or false, got 'no'"),
        ("cone", {"size": "huge"}, "size must be 'small' or 'large', got 'huge'"),
        ("cone", {"on_top": ["nuts", 1]}, "on_top must be tuple[str, ...], got ['nuts', 1]"),
    ],
)
def test_a_value_of_another_type_than_the_option_has_is_refused(flavours, name, options, said):
    flavours(cone)
    with pytest.raises(UsageError) as caught:
        flavours.build(name, options)
    assert caught.value.message == f"flavour {name!r}: {said}"


def cone(dipped: bool = False, size: Literal["small", "large"] = "small", on_top: tuple[str, ...] = (), guest=None):
    return lambda: (dipped, size, on_top, guest)


def test_values_that_fit_pass_and_options_without_a_type_take_anything(flavours):
    flavours(cone)
    assert flavours.build("almond", {"nuts": 1, "roast": 2})() == ("almond", 1, 2.0), "a whole number is a number"
    made = flavours.build("cone", {"dipped": True, "on_top": ["nuts"], "guest": {"a": 1}})
    assert made() == (True, "small", ("nuts",), {"a": 1}), "recipes have lists where functions have tuples"


def test_a_module_that_fails_while_it_is_imported_is_a_usage_error(flavours, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_flavours.py").write_text("def lemon(:\n")
    (tmp_path / "failing_flavours.py").write_text("1 / 0\n")
    for module, said in (("broken_flavours", "SyntaxError"), ("failing_flavours", "ZeroDivisionError")):
        with pytest.raises(UsageError, match=f"{module}:lemon' cannot be imported: {said}"):
            flavours.build(f"{module}:lemon")
    with pytest.raises(UsageError, match="'math:pi' is not callable"):
        flavours.build("math:pi")


def test_a_cell_of_a_notebook_that_is_run_again_replaces_what_it_registered(flavours):
    def define(taste):
        @flavours
        def mint():
            return taste

        return mint

    define("cool")
    define("hot")
    assert flavours.build("mint") == "hot"
