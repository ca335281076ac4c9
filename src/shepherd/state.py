"""The state of a federation as four files, and back: what a committed round holds.

    adapter_config.json, adapter_model.safetensors   the global adapter, a PEFT folder that any tool can load
    state.safetensors                                remainder/<module>/L, memory/<name>, clients/<client>/<name>, …
    state.json                                       round, cursors, strikes, quarantined, history, order of names

Every array comes back with its dtype, shape and bits, and every mapping of arrays in its order, because sums over
tensors depend on it; clients are sorted by name. Equal states give equal bytes.
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
from shepherd.store import Disk
from shepherd.tensors import from_file, to_bytes
from shepherd.types import GlobalModel, Memory, ServerState

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

    Raises ValueError for factors that are not float32 and for arrays of objects, texts or complex numbers.
    """
    model = state.model
    wide = [name for name, pair in model.adapter.factors.items() for part in pair if part.dtype != np.float32]
    if wide:
        raise ValueError(f"the factors of an adapter are float32, but not those of {', '.join(wide[:3])}")
    clients = dict(sorted(state.clients.items()))
    tensors = {_key("memory", name): array for name, array in model.memory.items()}
    for module, increment in model.remainder.items():
        tensors |= {_key("remainder", module, "L"): increment.L, _key("remainder", module, "R"): increment.R}
    for client, private in clients.items():
        tensors |= {_key("clients", client, name): array for name, array in private.items()}
    scalars = {
        "schema": SCHEMA,
        "round": int(state.round),
        "cursors": _counts(state.cursors),
        "strikes": _counts(state.strikes),
        "quarantined": list(state.quarantined),
        "history": {client: asdict(memory) for client, memory in sorted(state.history.items())},
        "order": {
            "adapter": list(model.adapter.factors),
            "remainder": list(model.remainder),
            "memory": list(model.memory),
            "clients": {client: list(private) for client, private in clients.items()},
        },
    }
    return adapter_files(model.adapter, base_name=base_name, conv1d=conv1d) | {
        TENSORS: to_bytes(tensors),
        # ASCII: a name may hold what UTF-8 cannot, such as half a surrogate pair.
        SCALARS: (json.dumps(scalars, indent=1, ensure_ascii=True) + "\n").encode("ascii"),
    }


def load_state(folder: Path) -> ServerState:
    """Read what `save_state` wrote. Raises ModelError that names the file and what is wrong with it."""
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
        memory = {name: tensors.pop(_key("memory", name)) for name in order["memory"]}
        remainder = {module: _low_rank(tensors, module) for module in order["remainder"]}
        clients = {
            client: {name: tensors.pop(_key("clients", client, name)) for name in names}
            for client, names in order["clients"].items()
        }
        factors = {name: adapter.factors[name] for name in order["adapter"]}
        state = ServerState(
            round=scalars["round"],
            model=GlobalModel(replace(adapter, factors=factors), remainder, memory),
            cursors=scalars["cursors"],
            clients=clients,
            strikes=scalars["strikes"],
            quarantined=tuple(scalars["quarantined"]),
            history={client: Memory(**memory) for client, memory in scalars["history"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _broken(folder, f"lacks {error}") from None
    if tensors or len(factors) != len(adapter.factors):
        raise _broken(
            folder, f"holds arrays that {SCALARS} does not name: {', '.join(sorted(tensors)[:3]) or 'factors'}"
        )
    return state


def _low_rank(tensors: dict[str, np.ndarray], module: str) -> LowRank:
    return LowRank(tensors.pop(_key("remainder", module, "L")), tensors.pop(_key("remainder", module, "R")))


def _key(*parts: str) -> str:
    """Parts with any characters as one name: "/" stands between them, and in none."""
    return "/".join(quote(part, safe=" ", errors="surrogatepass") for part in parts)


def _counts(by_client: Mapping[str, int]) -> dict[str, int]:
    return {client: int(count) for client, count in sorted(by_client.items())}


def _broken(folder: Path, reason: str) -> ModelError:
    return ModelError(f"the state in {folder} {reason}", hint="resume from an earlier round, or run again")
