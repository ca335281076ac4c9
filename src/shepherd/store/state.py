"""Server states on disk: the four files of a committed round.

    adapter_config.json, adapter_model.safetensors   the global adapter, a PEFT folder that any tool can load
    state.safetensors                                remainder/<module>/L, memory/<name>, clients/<client>/<name>,
                                                     clusters/<number>/… of the model of each cluster
    state.json                                       round, cursors, strikes, quarantined, history, order of names,
                                                     median norm of updates if they are clipped to it, and the clip
                                                     of the next round where privacy adapts it

Arrays keep their dtype, shape and bits, and mappings of arrays their order, because sums over tensors depend on it;
clients are sorted by name. Equal states give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from safetensors import SafetensorError

from shepherd.errors import ModelError
from shepherd.lowrank import LowRank
from shepherd.model.adapter import adapter_files, load_adapter
from shepherd.model.arrays import from_file, to_bytes
from shepherd.store import Disk
from shepherd.types import Adapter, ClientHistory, Factors, GlobalModel, ServerState

SCALARS, TENSORS, SCHEMA = "state.json", "state.safetensors", 1


def save_state(
    folder: Path, state: ServerState, *, base_name: str, conv1d: bool = False, disk: Disk | None = None
) -> None:
    """Write the four files into `folder`, which exists; `Rounds.commit` makes them durable."""
    disk = disk or Disk()
    for name, data in state_files(state, base_name=base_name, conv1d=conv1d).items():
        disk.write(folder / name, data)


def state_files(state: ServerState, *, base_name: str, conv1d: bool = False) -> dict[str, bytes]:
    """The four files of a state, {name: bytes}. `base_name` and `conv1d` are for PEFT, as in `save_adapter`.

    Raises ValueError for factors that are not float32, for arrays of objects, texts or complex numbers, and for
    clusters whose adapters differ from the global one in rank, scale or base.
    """
    model = state.model
    for adapter in (model.adapter, *(cluster.adapter for cluster in state.clusters)):
        wide = [name for name, pair in adapter.factors.items() for part in pair if part.dtype != np.float32]
        if wide:
            raise ValueError(f"the factors of an adapter are float32, but not those of {', '.join(wide[:3])}")
        if replace(adapter, factors={}) != replace(model.adapter, factors={}):
            raise ValueError("the adapter of a cluster has another rank, scale or base than the global one")
    clients = dict(sorted(state.clients.items()))
    tensors = _other_tensors(model)
    for number, cluster in enumerate(state.clusters, start=1):
        where = ("clusters", str(number))
        tensors |= _other_tensors(cluster, *where)
        for module, pair in cluster.adapter.factors.items():
            tensors |= {_key(*where, "adapter", module, part): getattr(pair, part) for part in "AB"}
    for client, private in clients.items():
        tensors |= {_key("clients", client, name): array for name, array in private.items()}
    scalars = {
        "schema": SCHEMA,
        "round": int(state.round),
        "cursors": _counts(state.cursors),
        "strikes": _counts(state.strikes),
        "quarantined": list(state.quarantined),
        "history": {client: asdict(memory) for client, memory in sorted(state.history.items())},
        **({"median_norm": float(state.median_norm)} if state.median_norm else {}),
        **({"clip": float(state.clip)} if state.clip else {}),
        "order": {
            **_order(model),
            "clients": {client: list(private) for client, private in clients.items()},
            "clusters": [_order(cluster) for cluster in state.clusters],
        },
    }
    return adapter_files(model.adapter, base_name=base_name, conv1d=conv1d) | {
        TENSORS: to_bytes(tensors),
        # ASCII: a name may hold characters outside UTF-8, such as half a surrogate pair.
        SCALARS: (json.dumps(scalars, indent=1, ensure_ascii=True) + "\n").encode("ascii"),
    }


def load_state(folder: Path) -> ServerState:
    """Read the state that `save_state` wrote. Raises ModelError that names the file and the damage."""
    folder = Path(folder)
    try:
        scalars = json.loads((folder / SCALARS).read_text(encoding="ascii"))
        tensors, _ = from_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise _broken(folder, f"has no {Path(error.filename or TENSORS).name}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise _broken(folder, f"cannot be read: {error}") from None
    if not isinstance(scalars, dict) or scalars.get("schema") != SCHEMA:
        raise _broken(folder, f"is not of schema {SCHEMA}, the one that this version reads")
    adapter = load_adapter(folder)
    try:
        order = scalars["order"]
        clients = {
            client: {name: tensors.pop(_key("clients", client, name)) for name in names}
            for client, names in order["clients"].items()
        }
        factors = {name: adapter.factors[name] for name in order["adapter"]}
        clusters = []
        for number, names in enumerate(order["clusters"], start=1):
            where = ("clusters", str(number))
            cluster_factors = {
                name: Factors(*(tensors.pop(_key(*where, "adapter", name, part)) for part in "AB"))
                for name in names["adapter"]
            }
            clusters.append(_model(tensors, names, replace(adapter, factors=cluster_factors), *where))
        state = ServerState(
            round=scalars["round"],
            model=_model(tensors, order, replace(adapter, factors=factors)),
            cursors=scalars["cursors"],
            clients=clients,
            strikes=scalars["strikes"],
            quarantined=tuple(scalars["quarantined"]),
            history={client: ClientHistory(**memory) for client, memory in scalars["history"].items()},
            clusters=tuple(clusters),
            median_norm=scalars.get("median_norm", 0.0),
            clip=scalars.get("clip", 0.0),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _broken(folder, f"lacks {error}") from None
    if tensors or len(factors) != len(adapter.factors):
        raise _broken(
            folder, f"holds arrays that {SCALARS} does not name: {', '.join(sorted(tensors)[:3]) or 'factors'}"
        )
    return state


def _other_tensors(model: GlobalModel, *where: str) -> dict[str, np.ndarray]:
    """A model's tensors except those of its adapter, by keys that begin with `where`."""
    tensors = {_key(*where, "memory", name): array for name, array in model.memory.items()}
    for module, increment in model.remainder.items():
        tensors |= {_key(*where, "remainder", module, part): getattr(increment, part) for part in "LR"}
    return tensors


def _order(model: GlobalModel) -> dict[str, list[str]]:
    return {"adapter": list(model.adapter.factors), "remainder": list(model.remainder), "memory": list(model.memory)}


def _model(
    tensors: dict[str, np.ndarray], order: Mapping[str, list[str]], adapter: Adapter, *where: str
) -> GlobalModel:
    """The model of tensors under the keys of `_other_tensors`, which are removed from `tensors`."""
    memory = {name: tensors.pop(_key(*where, "memory", name)) for name in order["memory"]}
    remainder = {}
    for module in order["remainder"]:
        L, R = (tensors.pop(_key(*where, "remainder", module, part)) for part in "LR")
        # starts.principal takes these factors away first
        remainder[module] = LowRank(L, R, apart=adapter.r if f"{module}.A0" in memory else 0)
    return GlobalModel(adapter, remainder, memory)


def _key(*parts: str) -> str:
    """Parts of any characters as one name, separated by "/", which is escaped within a part."""
    return "/".join(quote(part, safe=" ", errors="surrogatepass") for part in parts)


def _counts(by_client: Mapping[str, int]) -> dict[str, int]:
    return {client: int(count) for client, count in sorted(by_client.items())}


def _broken(folder: Path, reason: str) -> ModelError:
    return ModelError(f"the state in {folder} {reason}", hint="resume from an earlier round, or run again")
