"""TrainTask <-> bytes: a message (layout.py) that a client reads as strictly as the server reads an update.

The envelope has the fields of the task. Where a field holds arrays, it names tensors of the message: "0", "1", … in the
order of their first use, with `.T` for an array in Fortran order (task_arrays.py). Clients name their models by index,
so that what a cohort shares is written once. Mappings keep their order, arrays their dtype: float32, float64, bool.

    {"round": 3, "seed": 0, "objective": {"proximal": 0.0, …},
     "views": {"<client>": <index>}, "clusters": {"<client>": [<index>, …]},
     "models": [{"factors": {"<module>": ["0", "1"]}, "r": 8, "alpha": 16.0, …, "slots": null, "core": null, …}],
     "work": {"<client>": {"first_row": 0, "rows": 64, "learning_rates": [0.001, …]}},
     "remainder": {"<module>": {"L": "2.T", "R": "3", "apart": 0}}, "control": {"<tensor>": "4"},
     "transforms": [{"name": "clip", "options": {"norm": 1.0}}],
     "privacy": {"clip": 1.0, "noise_multiplier": 0.8, "repeatable": false}}

`privacy` is empty for a task without example-level privacy.

The decomposition that an increment of the remainder came out of (`LowRank.known`) stays with the server, which alone
decomposes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shepherd.lowrank import LowRank
from shepherd.types import (
    ClientId,
    ClientModel,
    ExamplePrivacy,
    GlobalModel,
    Objective,
    TrainTask,
    TransformSpec,
    Work,
)
from shepherd.updates.layout import (
    ITEM_BYTES,
    Kinds,
    check_damage,
    check_fields,
    expect,
    is_number,
    is_size,
    read_header,
    write_message,
)
from shepherd.updates.task_arrays import DTYPES, ArrayReader, ArrayWriter
from shepherd.updates.task_models import ModelWriter, read_model

FORMAT, MODEL_FORMAT = "shepherd-task-1", "shepherd-model-1"
_TASK: Kinds = {
    "round": (int,),
    "seed": (int,),
    "objective": (dict,),
    "views": (dict,),
    "clusters": (dict,),
    "models": (list,),
    "work": (dict,),
    "remainder": (dict,),
    "control": (dict,),
    "transforms": (list,),
    "privacy": (dict,),
}
_OBJECTIVE: Kinds = {
    "proximal": (int, float),
    "proximal_form": (str,),
    "rate_ratio": (int, float),
    "scaffold": (bool,),
}
_WORK: Kinds = {"first_row": (int,), "rows": (int,), "learning_rates": (list,)}
_INCREMENT: Kinds = {"L": (str,), "R": (str,), "apart": (int,)}
_PRIVACY: Kinds = {"clip": (int, float), "noise_multiplier": (int, float), "repeatable": (bool,)}
_TRANSFORM: Kinds = {"name": (str,), "options": (dict,)}
_GLOBAL: Kinds = {"models": (list,), "remainder": (dict,)}
_DEEPEST = 8
"""Levels of lists and objects within the options of a transform."""


def pack_task(task: TrainTask) -> bytes:
    """The bytes of a task, the same for equal tasks whose mappings have the same order.

    Raises ValueError for a number of a field that is not finite, an array that is not float32, float64 or bool, and
    work that names another client than its key.
    """
    if any(work.client != client for client, work in task.work.items()):
        raise ValueError("the work of a client names another client")
    arrays = ArrayWriter()
    models = ModelWriter(arrays)
    fields = {
        "round": task.round,
        "seed": task.seed,
        "objective": asdict(task.objective),
        "views": {client: models.add(view) for client, view in task.views.items()},
        "clusters": {client: [models.add(view) for view in views] for client, views in task.clusters.items()},
        "models": models.entries,
        "work": {
            client: {"first_row": work.first_row, "rows": work.rows, "learning_rates": list(work.learning_rates)}
            for client, work in task.work.items()
        },
        "remainder": _remainder_entries(task.remainder, arrays),
        "control": arrays.add_all(task.control),
        "transforms": [{"name": spec.name, "options": dict(spec.options)} for spec in task.transforms],
        "privacy": {} if task.privacy is None else asdict(task.privacy),
    }
    # The largest items first: so each tensor is aligned.
    return write_message(FORMAT, fields, sorted(arrays.values, key=lambda values: -ITEM_BYTES[values.dtype]))


def read_task(data: bytes, header_limit: int = 2**24) -> TrainTask:
    """The task in `data`; what its clients share is shared again. No array refers to `data`.

    Raises WireError: "too-large" for a header of more than `header_limit` bytes, "damaged" when the checksum does not
    fit, and "format", "fields", "tensors", "shape", "slots" or "non-finite" for what no task has. Whether a task suits
    a client's model and rows is that client's question, and so is which transforms it has and trusts.
    """
    header = read_header(data, header_limit, FORMAT, _TASK, DTYPES.values())
    check_damage(data, header)
    arrays, fields = ArrayReader(data, header), header.fields
    expect(is_size(fields["round"]) and abs(fields["seed"]) < 2**64, "fields", "round or seed is out of range")
    models = [read_model(value, f"model {i}", arrays) for i, value in enumerate(fields["models"])]
    task = TrainTask(
        round=fields["round"],
        views={client: _pick(models, index) for client, index in fields["views"].items()},
        seed=fields["seed"],
        work={c: _read_work(c, f"work {i}", value) for i, (c, value) in enumerate(fields["work"].items())},
        remainder=_read_remainder(fields["remainder"], arrays),
        objective=_read_objective(fields["objective"]),
        control=arrays.take_all(fields["control"], "control"),
        clusters={client: _pick_all(models, indices) for client, indices in fields["clusters"].items()},
        transforms=tuple(_read_transform(value, f"transform {i}") for i, value in enumerate(fields["transforms"])),
        privacy=_read_privacy(fields["privacy"]) if fields["privacy"] else None,
    )
    clients = task.work.keys()
    expect(task.views.keys() == clients, "fields", "views and work are not of the same clients")
    expect(task.clusters.keys() <= clients, "fields", "clusters are of clients without work")
    used = {id(view) for views in (task.views.values(), *task.clusters.values()) for view in views}
    expect(len(used) == len(models), "fields", f"{len(models) - len(used)} models are of no client")
    left = len(header.entries) - len(arrays.taken)
    expect(not left, "tensors", f"{left} tensors are of no field")
    return task


def pack_global(model: GlobalModel) -> bytes:
    """The bytes of a model to be measured: its adapter and remainder, without the memory of the server.

    Raises ValueError for an array that is not float32, float64 or bool.
    """
    arrays = ArrayWriter()
    models = ModelWriter(arrays)
    models.add(ClientModel(model.adapter))
    fields = {"models": models.entries, "remainder": _remainder_entries(model.remainder, arrays)}
    return write_message(MODEL_FORMAT, fields, sorted(arrays.values, key=lambda values: -ITEM_BYTES[values.dtype]))


def read_global(data: bytes, header_limit: int = 2**24) -> GlobalModel:
    """The model in `data`, as strictly as `read_task`. Raises WireError."""
    header = read_header(data, header_limit, MODEL_FORMAT, _GLOBAL, DTYPES.values())
    check_damage(data, header)
    arrays, fields = ArrayReader(data, header), header.fields
    expect(len(fields["models"]) == 1, "fields", f"{len(fields['models'])} models, expected one")
    adapter = read_model(fields["models"][0], "the model", arrays).adapter
    model = GlobalModel(adapter, _read_remainder(fields["remainder"], arrays))
    left = len(header.entries) - len(arrays.taken)
    expect(not left, "tensors", f"{left} tensors are of no field")
    return model


def _remainder_entries(remainder: Mapping[str, LowRank], arrays: ArrayWriter) -> dict[str, dict[str, Any]]:
    return {
        module: {"L": arrays.add(term.L), "R": arrays.add(term.R), "apart": term.apart}
        for module, term in remainder.items()
    }


def _read_remainder(entries: Mapping[str, Any], arrays: ArrayReader) -> dict[str, LowRank]:
    return {
        module: _read_increment(value, f"increment {i}", arrays) for i, (module, value) in enumerate(entries.items())
    }


def _read_work(client: ClientId, where: str, value: Any) -> Work:
    fields = check_fields(value, _WORK, where)
    rates = fields["learning_rates"]
    expect(is_size(fields["first_row"]) and is_size(fields["rows"]), "fields", f"{where}: its rows are out of range")
    known = bool(rates) and all(is_number(rate) and rate >= 0 for rate in rates)
    expect(known, "fields", f"{where}: learning_rates are not numbers of at least 0")
    return Work(client, fields["first_row"], fields["rows"], tuple(rates))


def _read_increment(value: Any, where: str, arrays: ArrayReader) -> LowRank:
    fields = check_fields(value, _INCREMENT, where)
    L, R = (arrays.take(fields[part], where) for part in "LR")
    expect(L.ndim == R.ndim == 2 and L.shape[1] == len(R), "shape", f"{where}: L and R have no product")
    expect(0 <= fields["apart"] <= len(R), "fields", f"{where}: more columns are held apart than there are")
    return LowRank(L, R, apart=fields["apart"])


def _read_objective(value: Any) -> Objective:
    fields = check_fields(value, _OBJECTIVE, "objective")
    expect(is_number(fields["proximal"]) and is_number(fields["rate_ratio"]), "fields", "objective: no such number")
    expect(fields["proximal_form"] in ("factors", "product"), "fields", "proximal_form is not factors or product")
    return Objective(**fields)


def _read_privacy(value: Any) -> ExamplePrivacy:
    fields = check_fields(value, _PRIVACY, "privacy")
    clip, noise = fields["clip"], fields["noise_multiplier"]
    known = is_number(clip) and is_number(noise) and clip > 0 and noise >= 0
    expect(known, "fields", "privacy: clip is not above 0, or noise_multiplier below 0")
    return ExamplePrivacy(**fields)


def _read_transform(value: Any, where: str) -> TransformSpec:
    fields = check_fields(value, _TRANSFORM, where)
    level = [fields["options"]]
    for _ in range(_DEEPEST):  # level by level: recursion would end where a sender nests deeper than the interpreter
        inner = [x for within in level for x in (within.values() if type(within) is dict else within)]
        numbers = [x for x in inner if type(x) in (int, float)]
        expect(all(map(is_number, numbers)), "fields", f"{where}: an option is not finite")
        level = [x for x in inner if type(x) in (dict, list)]
    expect(not level, "fields", f"{where}: its options are nested deeper than {_DEEPEST} levels")
    return TransformSpec(fields["name"], fields["options"])


def _pick_all(models: Sequence[ClientModel], indices: Any) -> tuple[ClientModel, ...]:
    expect(type(indices) is list, "fields", "the clusters of a client are not a list")
    return tuple(_pick(models, index) for index in indices)


def _pick(models: Sequence[ClientModel], index: Any) -> ClientModel:
    expect(is_size(index) and index < len(models), "fields", "a client's model is none of the models")
    return models[index]
