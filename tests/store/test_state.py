"""A state comes back from its files in every bit, and equal states have equal files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from federations import SHAPES, R, a_round, begin
from shepherd.errors import ModelError
from shepherd.lowrank import LowRank
from shepherd.model.adapter import load_adapter
from shepherd.model.arrays import from_file, to_bytes
from shepherd.server.methods import build_method
from shepherd.store import Disk
from shepherd.store.state import load_state, save_state, state_files
from shepherd.types import Adapter, ClientHistory, Factors, GlobalModel, ServerState

DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "uint64", "bool")
ARRAY = st.sampled_from(DTYPES).flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0)))
NAMES = st.text(max_size=8) | st.sampled_from(
    ["", "a/b", "a", "b/c", "..", "%2F", "A.B", "é\u2028", "\ud800", "__metadata__"]
)
FINITE = st.none() | st.floats(allow_nan=False, allow_infinity=False)
MEMORIES = st.builds(ClientHistory, st.integers(0, 10**6), FINITE, FINITE)
MODULES = st.lists(st.sampled_from(["h.1.mlp", "h.0.attn", "h.10.attn", "lm_head"]), unique=True, min_size=1)


def matrix(rows: int, columns: int, kind: str = "float32") -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(kind, (rows, columns))


@st.composite
def states(draw) -> ServerState:
    r, modules = draw(st.integers(1, 3)), draw(MODULES)
    factors = {m: Factors(draw(matrix(r, 2)), draw(matrix(3, r))) for m in modules}
    adapter = Adapter(factors, r, draw(st.floats(0.1, 64)), draw(st.booleans()), draw(st.sampled_from(["", "abc"])))

    def model(adapter: Adapter) -> GlobalModel:
        remainder = {
            m: LowRank(draw(matrix(3, q, kind)), draw(matrix(q, 2, kind)))
            for m in draw(MODULES | st.just([]))
            for q, kind in [(draw(st.integers(0, 2)), draw(st.sampled_from(["float32", "float64"])))]
        }
        return GlobalModel(adapter, remainder, draw(st.dictionaries(NAMES, ARRAY, max_size=3)))

    def cluster() -> GlobalModel:
        return model(replace(adapter, factors={m: Factors(draw(matrix(r, 2)), draw(matrix(3, r))) for m in modules}))

    clients = draw(st.dictionaries(NAMES, st.dictionaries(NAMES, ARRAY, max_size=2), max_size=3))
    counts = st.dictionaries(NAMES, st.integers(0, 2**60), max_size=3)
    return ServerState(
        draw(st.integers(0, 10**6)),
        model(adapter),
        draw(counts),
        clients,
        draw(counts),
        tuple(draw(st.lists(NAMES, unique=True, max_size=3))),
        draw(st.dictionaries(NAMES, MEMORIES, max_size=3)),
        tuple(cluster() for _ in range(draw(st.integers(0, 2)))),
        draw(st.just(0.0) | st.floats(0, allow_nan=False, allow_infinity=False)),
    )


def bits(value):
    """A state as something that `==` compares in every bit, and in the order of its arrays."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, tuple):
        return [bits(item) for item in value]
    return value


def everything(state: ServerState) -> list:
    adapter = state.model.adapter
    return [
        state.round, state.median_norm, sorted(state.cursors.items()), sorted(state.strikes.items()), state.quarantined,
        adapter.r, adapter.alpha, adapter.rslora, adapter.base_digest,
        [
            [bits({m: tuple(pair) for m, pair in model.adapter.factors.items()}),
             bits({m: (x.L, x.R) for m, x in model.remainder.items()}), bits(model.memory)]
            for model in (state.model, *state.clusters)
        ],
        bits(dict(sorted(state.clients.items()))), sorted(state.history.items(), key=lambda item: item[0]),
    ]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(states())
def test_every_state_comes_back_in_every_bit_and_in_its_order(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    save_state(folder, state, base_name="base")
    again = load_state(folder)
    assert everything(again) == everything(state)
    assert state_files(again, base_name="base") == state_files(state, base_name="base")
    adapter = load_adapter(folder)
    assert adapter.factors.keys() == state.model.adapter.factors.keys()


@settings(max_examples=30, deadline=None)
@given(states(), st.randoms())
def test_equal_states_have_equal_files_in_whatever_order_their_clients_came(state, rng):
    def shuffled(mapping):
        items = list(mapping.items())
        rng.shuffle(items)
        return dict(items)

    other = replace(
        state,
        cursors=shuffled(state.cursors),
        clients=shuffled(state.clients),
        strikes=shuffled(state.strikes),
        history=shuffled(state.history),
    )
    assert state_files(other, base_name="b") == state_files(state, base_name="b")
    assert state_files(other, base_name="c") != state_files(state, base_name="b")


def some_state() -> ServerState:
    module = {"h.0": Factors(np.ones((1, 2), np.float32), np.zeros((3, 1), np.float32))}
    model = GlobalModel(
        Adapter(module, 1, 2.0, base_digest="abc"),
        {"h.0": LowRank(np.ones((3, 2)), np.ones((2, 2)))},
        {"h.0.A.momentum": np.arange(2.0)},
    )
    clients = {"b": {"x": np.ones(2)}, "a/b": {}, "a": {"b/x": np.zeros(1), "x": np.full((), -0.0)}}
    return ServerState(7, model, {"a": 3}, clients, {"b": 2}, ("c",))


def test_arrays_that_lie_in_memory_in_another_way_have_the_same_files():
    state, base = some_state(), np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (np.asfortranarray(base), np.ascontiguousarray(base.T).T, np.repeat(base, 2, axis=1)[:, ::2]):
        changed = [replace(state, model=replace(state.model, memory={"m": array})) for array in (base, other)]
        assert state_files(changed[0], base_name="b") == state_files(changed[1], base_name="b")


def test_a_bit_of_any_array_or_count_changes_the_files():
    state = some_state()
    files = state_files(state, base_name="b")
    changes = [
        replace(state, round=8), replace(state, cursors={"a": 4}), replace(state, strikes={}),
        replace(state, history={"a": ClientHistory(1, 2.5)}),
        replace(state, quarantined=()), replace(state, clients={**state.clients, "d": {}}),
        replace(state, clients={**state.clients, "a": {**state.clients["a"], "x": np.full((), 0.0)}}),
        replace(state, model=replace(state.model, memory={"h.0.A.momentum": np.arange(2.0, dtype=np.float32)})),
        replace(state, model=replace(state.model, remainder={})),
        replace(state, clusters=(state.model,)), replace(state, clusters=(state.model,) * 2),
    ]  # fmt: skip
    for changed in changes:
        assert state_files(changed, base_name="b") != files


def test_values_that_would_not_come_back_are_refused():
    state = some_state()
    wide = {"h.0": Factors(np.ones((1, 2)), np.zeros((3, 1)))}
    with pytest.raises(ValueError, match=r"float32, but not those of h\.0"):
        state_files(replace(state, model=replace(state.model, adapter=Adapter(wide, 1, 2.0))), base_name="b")
    other = replace(state.model.adapter, factors=wide)
    with pytest.raises(ValueError, match=r"float32, but not those of h\.0"):
        state_files(replace(state, clusters=(GlobalModel(other),)), base_name="b")
    with pytest.raises(ValueError, match="a cluster has another rank, scale or base"):
        state_files(replace(state, clusters=(GlobalModel(replace(state.model.adapter, alpha=3.0)),)), base_name="b")
    for odd in (np.array(["text"]), np.array([object()]), np.ones(1, np.complex64), np.ones(1, np.longdouble)):
        with pytest.raises(ValueError, match="no safetensors type for memory/m"):
            state_files(replace(state, model=replace(state.model, memory={"m": odd})), base_name="b")


def test_what_is_missing_or_too_much_in_the_files_is_named(tmp_path):
    def damaged(name: str, data: bytes | None) -> str:
        save_state(tmp_path, some_state(), base_name="b")
        (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError) as caught:
            load_state(tmp_path)
        assert str(tmp_path) in caught.value.message
        return caught.value.message

    files = state_files(some_state(), base_name="b")
    scalars = json.loads(files["state.json"])

    def without(*path):
        changed = json.loads(files["state.json"])
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return json.dumps(changed).encode()

    for name in files:
        assert f"no {name}" in damaged(name, None)
        damaged(name, b"")
        damaged(name, files[name][: len(files[name]) // 2])
    assert "schema" in damaged("state.json", b"[]")
    assert "schema" in damaged("state.json", b'{"schema": 2}')
    for key in scalars:
        damaged("state.json", without(key))
    assert "clients/b/x" in damaged("state.json", without("order", "clients", "b"))
    assert "remainder/h.0/L" in damaged("state.json", without("order", "remainder", 0))
    assert "does not name: factors" in damaged("state.json", without("order", "adapter", 0))
    tensors, _ = from_file_of(files["state.safetensors"], tmp_path)
    tensors.pop("memory/h.0.A.momentum")
    assert "lacks 'memory/h.0.A.momentum'" in damaged("state.safetensors", to_bytes(tensors))


def from_file_of(data: bytes, folder):
    (folder / "copy").write_bytes(data)
    return from_file(folder / "copy")


def test_every_byte_goes_through_the_disk_that_is_given(tmp_path):
    written = []

    class Noting(Disk):
        def write(self, file, data):
            written.append(file.name)
            super().write(file, data)

    save_state(tmp_path, some_state(), base_name="b", disk=Noting())
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "state.json", "state.safetensors",
    ]  # fmt: skip


def test_equal_tensors_give_equal_bytes_and_their_metadata_in_order():
    tensors = {"b": np.ones(2, np.float32), "a": np.zeros((0, 3))}
    texts = [{"x": "1", "a": "2", "k": "é"}, {"k": "é", "a": "2", "x": "1"}]
    orders = [tensors, dict(reversed(tensors.items()))]
    made = {to_bytes(order, metadata) for order in orders for metadata in texts for _ in range(5)}
    assert len(made) == 1
    header = json.loads(made.pop()[8:].split(b"}}")[0] + b"}}")
    assert list(header["__metadata__"]) == ["a", "k", "x"]


def test_what_frlora_takes_away_from_the_base_is_still_apart_after_a_checkpoint(tmp_path):
    method = build_method("frlora")
    model = a_round(method, begin(method, dtype=np.float32), 1).after
    save_state(tmp_path, ServerState(1, model), base_name="base")
    loaded = load_state(tmp_path).model
    assert {m: rest.apart for m, rest in loaded.remainder.items()} == dict.fromkeys(SHAPES, R)
    resumed, straight = (a_round(method, each, 2).after.remainder for each in (loaded, model))
    assert all(resumed[m].L.tobytes() == straight[m].L.tobytes() for m in SHAPES)
