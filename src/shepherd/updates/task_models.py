"""Client models as entries of a task's envelope, and back: equal models are one entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from shepherd.types import Adapter, ClientModel, Core, Factors, SlotChoice, Tensors
from shepherd.updates.layout import Kinds, check_fields, expect, is_number, is_size
from shepherd.updates.task_arrays import CHOICES, ArrayReader, ArrayWriter

_MODEL: Kinds = {
    "factors": (dict,),
    "r": (int,),
    "alpha": (int, float),
    "rslora": (bool,),
    "base_digest": (str,),
    "trains": (list,),
    "sends": (str,),
    "slots": (dict, type(None)),
    "core": (dict, type(None)),
    "choice": (dict, type(None)),
    "local_modules": (list,),
}
_CORE: Kinds = {"basis": (dict,), "values": (dict,)}
_CHOICE: Kinds = {"budget": (int,), "steps": (int,)}
_TRAINS, _SENDS = ("AB", "A", "B"), ("AB", "A", "B", "core")


class ModelWriter:
    """Client models to write, each by its index in `entries`."""

    def __init__(self, arrays: ArrayWriter) -> None:
        self.entries: list[dict[str, Any]] = []
        self._arrays = arrays
        self._by_text: dict[str, int] = {}
        self._by_id: dict[int, tuple[int, ClientModel]] = {}  # with the model, so that no other takes its id

    def add(self, model: ClientModel) -> int:
        """The model's index. Raises ValueError for an array that is not float32, float64 or bool."""
        if id(model) not in self._by_id:
            entry = self._entry(model)
            text = json.dumps(entry)
            if text not in self._by_text:
                self._by_text[text] = len(self.entries)
                self.entries.append(entry)
            self._by_id[id(model)] = self._by_text[text], model
        return self._by_id[id(model)][0]

    def _entry(self, model: ClientModel) -> dict[str, Any]:
        adapter, core, choice, arrays = model.adapter, model.core, model.choice, self._arrays
        return {
            "factors": {name: [arrays.add(A), arrays.add(B)] for name, (A, B) in adapter.factors.items()},
            "r": adapter.r,
            "alpha": adapter.alpha,
            "rslora": adapter.rslora,
            "base_digest": adapter.base_digest,
            "trains": list(model.trains),
            "sends": model.sends,
            "slots": None if model.slots is None else arrays.add_all(model.slots),
            "core": None if core is None else {part: arrays.add_all(getattr(core, part)) for part in _CORE},
            "choice": None if choice is None else asdict(choice),
            "local_modules": sorted(model.local_modules),
        }


def read_model(value: Any, where: str, arrays: ArrayReader) -> ClientModel:
    """The client model of an entry; `where` is its place in the envelope. Raises WireError."""
    fields = check_fields(value, _MODEL, where)
    r, trains, sends, local = (fields[name] for name in ("r", "trains", "sends", "local_modules"))
    expect(is_size(r) and r > 0 and is_number(fields["alpha"]), "fields", f"{where}: r or alpha is out of range")
    factors = _read_factors(fields["factors"], where, r, arrays)
    known = bool(trains) and all(part in _TRAINS for part in trains)
    expect(known and sends in _SENDS, "fields", f"{where}: trains or sends is not of {', '.join(_SENDS)}")
    unique = all(type(name) is str and name in factors for name in local) and len(set(local)) == len(local)
    expect(unique, "fields", f"{where}: local_modules are not modules of it, each once")
    core = None if fields["core"] is None else _read_core(fields["core"], where, r, factors, arrays)
    expect(core is not None or sends != "core", "fields", f"{where}: it sends a core and has none")
    slots = None if fields["slots"] is None else arrays.take_all(fields["slots"], f"{where}, slots", CHOICES)
    if slots is not None:
        _check_slots(slots, where, r, factors, core)
    adapter = Adapter(factors, r, fields["alpha"], fields["rslora"], fields["base_digest"])
    choice = None if fields["choice"] is None else _read_choice(fields["choice"], where)
    return ClientModel(adapter, tuple(trains), sends, slots, core, choice, frozenset(local))


def _read_factors(names: Mapping[str, Any], where: str, r: int, arrays: ArrayReader) -> dict[str, Factors]:
    expect(bool(names), "fields", f"{where} has no modules")
    factors = {}
    for i, (module, pair) in enumerate(names.items()):
        place = f"{where}, module {i}"
        expect(type(pair) is list and len(pair) == 2, "fields", f"{place} is not a pair of factors")
        A, B = (arrays.take(name, place) for name in pair)
        fits = A.ndim == B.ndim == 2 and len(A) == B.shape[1] == r
        expect(fits, "shape", f"{place}: its factors are not of rank {r}")
        factors[module] = Factors(A, B)
    return factors


def _read_core(value: Any, where: str, r: int, factors: Mapping[str, Factors], arrays: ArrayReader) -> Core:
    fields = check_fields(value, _CORE, f"{where}, core")
    basis, values = (arrays.take_all(fields[part], f"{where}, {part}") for part in _CORE)
    of_modules = basis.keys() == values.keys() == factors.keys()
    expect(of_modules, "fields", f"{where}: its core is not of its modules")
    for i, module in enumerate(factors):
        heads = values[module].shape[0] if values[module].ndim else 0
        size = r // max(heads, 1)
        fits = values[module].shape == (heads, size, size) and heads * size == r
        fits = fits and basis[module].shape == factors[module].B.shape
        expect(fits, "shape", f"{where}, module {i}: its core does not fit its factors")
    return Core(basis, values)


def _check_slots(slots: Tensors, where: str, r: int, factors: Mapping[str, Factors], core: Core | None) -> None:
    expect(slots.keys() == factors.keys(), "fields", f"{where}: its slots are not of its modules")
    expect(all(may.shape == (r,) for may in slots.values()), "shape", f"{where}: its slots are not {r} by module")
    if core is None:
        return
    for module, may in slots.items():
        heads = may.reshape(len(core.values[module]), -1)
        whole = bool((heads == heads[:, :1]).all())
        expect(whole, "slots", f"{where}: it moves a head of its core in part")


def _read_choice(value: Any, where: str) -> SlotChoice:
    fields = check_fields(value, _CHOICE, f"{where}, choice")
    expect(all(map(is_size, fields.values())), "fields", f"{where}: its choice of slots is out of range")
    return SlotChoice(**fields)
