"""A task on the wire: what arrives is what was sent, to the last bit, for every method; what is shared is sent once."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from federations import SEED, a_round, begin
from forged import CHOOSING, TASK
from shepherd.lowrank import LowRank
from shepherd.server.methods import build_method, methods
from shepherd.types import (
    Adapter,
    ClientModel,
    Core,
    ExamplePrivacy,
    GlobalModel,
    Objective,
    SlotChoice,
    TrainTask,
    TransformSpec,
    Work,
)
from shepherd.updates import task_models, task_wire
from shepherd.updates.layout import WireError
from shepherd.updates.task_wire import pack_global, pack_task, read_global, read_task

MIXED_RANKS = {"c": 2, "a": 4, "b": 2}
"""Not in the order of the names: the order of clients has to survive."""


def assert_same(sent: Any, got: Any, where: str = "task") -> None:
    """The same types, fields, keys in the same order, dtypes, shapes, orders in memory and bits."""
    assert isinstance(got, type(sent)) or isinstance(sent, Mapping), where
    if dataclasses.is_dataclass(sent):
        for field in dataclasses.fields(sent):
            if field.compare:  # the decomposition of an increment stays with the server
                assert_same(getattr(sent, field.name), getattr(got, field.name), f"{where}.{field.name}")
    elif isinstance(sent, Mapping):
        assert list(sent) == list(got), where
        for key in sent:
            assert_same(sent[key], got[key], f"{where}[{key}]")
    elif isinstance(sent, (tuple, list)):
        assert len(sent) == len(got), where
        for i, (one, other) in enumerate(zip(sent, got, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(sent, np.ndarray):
        assert (sent.dtype, sent.shape) == (got.dtype, got.shape), where
        assert sent.tobytes() == got.tobytes(), where
        orders = [(array.flags.c_contiguous, array.flags.f_contiguous) for array in (sent, got)]
        assert orders[0] in (orders[1], (False, False)), where
        assert got.flags.writeable, where
    else:
        assert sent == got and type(sent) is type(got), where


def task_of(name: str, number: int, dtype: type = np.float32, **options: Any) -> TrainTask:
    """A task of round `number` for three clients of a method, of mixed ranks where it can."""
    method = build_method(name, options)
    ranks = MIXED_RANKS if method.mixed_ranks else dict.fromkeys("cab", 4)
    model = begin(method, dtype=dtype)
    for earlier in range(1, number):
        model = a_round(method, model, earlier, dict.fromkeys(ranks, 1 / 3), ranks).after
    views = method.views(model, ranks, number, SEED)
    work = {c: Work(c, 7 * i, 5 + i, (0.1, 1 / 3, 5e-324)[: i + 1]) for i, c in enumerate(views)}
    return TrainTask(number, views, 2**63 - 1, work, model.remainder)


@pytest.mark.parametrize("name", list(methods))
def test_the_task_of_every_method_arrives_as_it_was_sent(name):
    for number, dtype in ((1, np.float32), (3, np.float32), (2, np.float64)):
        sent = task_of(name, number, dtype)
        got = read_task(pack_task(sent))
        assert_same(sent, got)
        assert pack_task(got) == pack_task(sent)


def test_the_methods_of_this_table_use_all_parts_of_a_client_model():
    views = [view for name in methods for view in task_of(name, 2).views.values()]
    for part in ("slots", "core", "choice"):
        assert {getattr(view, part) is None for view in views} == {True, False}, part
    assert {bool(view.local_modules) for view in views} == {True, False}
    assert {view.sends for view in views} == {"AB", "A", "B", "core"}
    assert {len(view.trains) for view in views} == {1, 2}
    assert any(not A.flags.c_contiguous for view in views for A, _ in view.adapter.factors.values())


def test_every_field_of_a_task_s_nouns_has_a_place_in_its_envelope():
    """A field that is added to one of them is added to its message, or a client would not get it."""
    increment = {field.name for field in dataclasses.fields(LowRank) if field.compare}
    for kinds, noun, others in (
        (task_wire._TRANSFORM, names_of(TransformSpec), set()),
        (task_wire._PRIVACY, names_of(ExamplePrivacy), set()),
        (task_wire._TASK, names_of(TrainTask), {"models"}),
        (task_wire._OBJECTIVE, names_of(Objective), set()),
        (task_wire._WORK, names_of(Work) - {"client"}, set()),  # the key
        (task_wire._INCREMENT, increment, set()),
        (task_models._MODEL, names_of(ClientModel) - {"adapter"} | names_of(Adapter), set()),
        (task_models._CORE, names_of(Core), set()),
        (task_models._CHOICE, names_of(SlotChoice), set()),
    ):
        assert kinds.keys() - others == noun


def test_the_privacy_of_a_task_arrives_and_numbers_of_no_mechanism_are_refused():
    sent = replace(TASK, privacy=ExamplePrivacy(0.5, 1.25, repeatable=True))
    assert_same(sent, read_task(pack_task(sent)))
    assert read_task(pack_task(TASK)).privacy is None
    for clip, noise in ((0.0, 1.0), (-1.0, 1.0), (1.0, -0.5)):
        with pytest.raises(WireError) as refusal:
            read_task(pack_task(replace(TASK, privacy=ExamplePrivacy(clip, noise))))
        assert refusal.value.code == "fields"


def names_of(noun: type) -> set[str]:
    return {field.name for field in dataclasses.fields(noun)}


def test_scaffold_s_control_the_objective_and_clusters_arrive_as_they_were_sent():
    sent = task_of("flexlora", 3)
    control = {f"{name}.{part}": np.full((3, 2), -0.0, np.float32) for name in "qo" for part in "BA"}
    clusters = {c: (view, replace(view, trains=("A", "B"))) for c, view in sent.views.items() if c != "a"}
    objective = Objective(proximal=1 / 3, proximal_form="product", rate_ratio=16, scaffold=True)
    sent = replace(sent, control=control, clusters=clusters, objective=objective)
    assert_same(sent, read_task(pack_task(sent)))


def test_transforms_travel_by_name_in_their_order_with_options_of_any_finite_json():
    options = {"norm": 1.0, "by": ["q", {"deep": [[1, 2**70, True, None, "x"]]}], "none": {}}
    sent = replace(TASK, transforms=(TransformSpec("noise"), TransformSpec("my_lab.rules:clip", options)))
    assert_same(sent, read_task(pack_task(sent)))


def test_options_of_a_transform_that_nest_too_deep_are_refused_without_a_crash():
    def nested(depth: int, number: int) -> TrainTask:
        return replace(
            TASK, transforms=(TransformSpec("clip", {"x": json.loads("[" * depth + str(number) + "]" * depth)}),)
        )

    assert_same(nested(7, 5), read_task(pack_task(nested(7, 5))))
    for odd in (nested(8, 5), nested(400, 5), nested(7, 10**400)):
        with pytest.raises(WireError, match=r"fields: transform 0: .* (deeper|finite)"):
            read_task(pack_task(odd))


def test_a_model_to_be_measured_arrives_without_the_memory_of_the_server():
    adapter = task_of("flexlora", 3).views["a"].adapter
    remainder = {"q": LowRank(np.asfortranarray(np.ones((4, 3))), np.zeros((3, 5), np.float32), apart=1)}
    sent = GlobalModel(adapter, remainder, {"moment": np.ones(3)})
    assert_same(replace(sent, memory={}), read_global(pack_global(sent)))
    assert pack_global(read_global(pack_global(sent))) == pack_global(sent)


def test_a_message_without_a_model_to_be_measured_is_refused():
    good = pack_global(GlobalModel(TASK.views["a"].adapter))
    for bad in (b"", good[:-1], good + b"x", pack_task(TASK), good.replace(b'\\"remainder\\"', b'\\"remainded\\"')):
        assert bad != good
        with pytest.raises(WireError, match=r"^(format|fields)"):
            read_global(bad)


def test_an_increment_keeps_what_it_holds_apart_and_leaves_its_decomposition_with_the_server():
    L, R = np.asfortranarray(np.arange(12.0).reshape(4, 3)), np.zeros((3, 5), np.float32)
    head, tail = LowRank(L, np.ones((3, 5))).split(2)
    remainder = {"q": LowRank(L, R, apart=2), "o": head, "v": tail, "k": LowRank.zero(4, 5)}
    sent = replace(TASK, remainder=remainder)
    got = read_task(pack_task(sent))
    assert_same(sent, got)
    assert head.known is not None and got.remainder["o"].known is None
    assert len(pack_task(sent)) < len(pack_task(TASK)) + sum(term.nbytes for term in remainder.values()) + 1500


def test_a_part_of_an_array_is_sent_without_the_rest():
    wide = np.arange(40, dtype=np.float32).reshape(8, 5)
    for part in (wide[::2], wide[:, 1:3], wide.T[:, ::-1], wide[:0]):
        assert_same(control := {"c": part}, read_task(pack_task(replace(TASK, control=control))).control)


def test_what_clients_share_is_sent_once_and_is_shared_where_it_arrives():
    many = {f"client-{i}": TASK.views["a"] for i in range(50)}
    equal = {client: copied(view) for client, view in many.items()}
    work = {client: Work(client, 0, 8, (0.1,)) for client in many}
    sent = replace(TASK, views=many, work=work)
    data = pack_task(sent)
    assert pack_task(replace(sent, views=equal)) == data
    assert len(data) < 50 * 110 + len(pack_task(TASK))
    got = read_task(data)
    assert len({id(view) for view in got.views.values()}) == 1
    lower = {client: replace(view, trains=("A",) if i % 2 else ("B",)) for i, (client, view) in enumerate(many.items())}
    got = read_task(pack_task(replace(sent, views=lower)))
    assert len({id(view) for view in got.views.values()}) == 2
    assert len({id(view.adapter.factors["q"].A) for view in got.views.values()}) == 1


def copied(view: ClientModel) -> ClientModel:
    """The same model in separate memory."""
    factors = {name: type(pair)(*(factor.copy() for factor in pair)) for name, pair in view.adapter.factors.items()}
    return replace(view, adapter=replace(view.adapter, factors=factors))


def test_a_part_of_a_task_has_no_bytes_of_the_other_clients():
    views = {c: copied(view) for c, view in TASK.views.items()}
    views["b"].adapter.factors["q"].A[:] = 7.25
    data = pack_task(replace(TASK, views=views).part(["a"]))
    assert np.full(10, 7.25, np.float32).tobytes() not in data and b'\\"b\\"' not in data
    assert list(read_task(data).work) == ["a"]


def test_any_safetensors_reader_opens_a_task():
    sent = replace(TASK, control={"c": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    tensors = safetensors.numpy.load(pack_task(sent))
    (name,) = (name for name in tensors if name.endswith(".T"))
    np.testing.assert_array_equal(tensors[name].T, sent.control["c"])


@pytest.mark.parametrize(
    "change",
    [
        {"objective": Objective(proximal=float("nan"))},
        {"work": {"a": Work("a", 0, 8, (float("inf"),)), "b": Work("b", 0, 8, (0.1,))}},
        {"work": {"a": Work("b", 0, 8, (0.1,)), "b": Work("b", 0, 8, (0.1,))}},
        {"control": {"c": np.zeros(3, np.float16)}},
        {"control": {"c": np.zeros(3, ">f4")}},
        {"control": {"c": np.zeros(3, object)}},
    ],
)
def test_what_has_no_place_in_a_task_is_not_sent(change):
    with pytest.raises(ValueError, match=r"not JSON compliant|another client|no arrays of"):
        pack_task(replace(TASK, **change))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sends": "core"}, "fields"),
        ({"trains": ()}, "fields"),
        ({"local_modules": frozenset({"z"})}, "fields"),
        ({"slots": {"q": np.ones(2, bool)}}, "fields"),
        ({"slots": dict.fromkeys("qv", np.ones(3, bool))}, "shape"),
        ({"slots": dict.fromkeys("qv", np.ones(2))}, "shape"),
        ({"adapter": replace(TASK.views["a"].adapter, r=3)}, "shape"),
        ({"adapter": replace(TASK.views["a"].adapter, r=0)}, "fields"),
        ({"adapter": replace(TASK.views["a"].adapter, factors={})}, "fields"),
        ({"core": Core(dict.fromkeys("qv", np.ones((7, 2))), dict.fromkeys("qv", np.ones((2, 1, 1))))}, "shape"),
        ({"core": Core({"q": np.ones((7, 2))}, {"q": np.ones((2, 1, 1))})}, "fields"),
    ],
)
def test_a_client_model_that_makes_no_sense_in_itself_is_refused(change, code):
    odd = replace(TASK.views["a"], **change)
    with pytest.raises(WireError) as caught:
        read_task(pack_task(replace(TASK, views=dict.fromkeys("ab", odd))))
    assert caught.value.code == code and caught.value.detail.startswith("model 0")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"views": {"a": TASK.views["a"]}}, "fields"),
        ({"clusters": {"z": (TASK.views["a"],)}}, "fields"),
        ({"control": {"c": np.array([1.0, np.nan])}}, "non-finite"),
        ({"remainder": {"q": LowRank(np.zeros((7, 2)), np.zeros((2, 5)), apart=3)}}, "fields"),
        ({"objective": Objective(proximal_form="other")}, "fields"),
        ({"work": {**TASK.work, "b": Work("b", 0, 8, ())}}, "fields"),
        ({"work": {**TASK.work, "b": Work("b", 0, 8, (0.1, -0.1))}}, "fields"),
        ({"work": {**TASK.work, "b": Work("b", -1, 8, (0.1,))}}, "fields"),
    ],
)
def test_a_task_that_makes_no_sense_in_itself_is_refused(change, code):
    with pytest.raises(WireError) as caught:
        read_task(pack_task(replace(TASK, **change)))
    assert caught.value.code == code


def test_a_core_whose_heads_move_in_part_is_refused():
    sent = task_of("ravan", 1, heads=2)
    view = sent.views["c"]
    assert_same(sent, read_task(pack_task(sent)))
    halves = {name: np.arange(4) % 2 == 0 for name in view.adapter.factors}
    odd = replace(sent, views={**sent.views, "c": replace(view, slots=halves)})
    with pytest.raises(WireError, match="slots: model 0: it moves a head"):
        read_task(pack_task(odd))


def test_a_header_is_not_read_when_it_claims_more_than_its_limit():
    data = pack_task(CHOOSING)
    length = int.from_bytes(data[:8], "little")
    assert_same(CHOOSING, read_task(data, header_limit=length))
    with pytest.raises(WireError, match="too-large"):
        read_task(data, header_limit=length - 1)


def test_no_memory_is_taken_for_values_that_a_message_claims_and_does_not_hold():
    entry = {"dtype": "F64", "shape": [2**20, 2**14], "data_offsets": [0, 2**37]}
    data = pack_task(replace(TASK, control={"c": np.zeros((1, 1))}))
    length = int.from_bytes(data[:8], "little")
    document = json.loads(data[8 : 8 + length])
    name = next(name for name, value in document.items() if value.get("dtype") == "F64")
    header = json.dumps({**document, name: entry}).encode()
    claim = len(header).to_bytes(8, "little") + header + data[8 + length :]
    tracemalloc.start()
    with pytest.raises(WireError, match="format"):
        read_task(claim)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
