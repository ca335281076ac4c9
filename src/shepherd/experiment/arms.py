"""A trained baseline: adapters, losses, curves and budget, in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from shepherd.clients.progress import StepReport
from shepherd.errors import DataError, ModelError
from shepherd.evaluation.row_losses import RowLosses
from shepherd.model.adapter import load_adapter, save_adapter
from shepherd.model.arrays import from_file, to_bytes
from shepherd.model.lora import CohortLora
from shepherd.store import check_sealed
from shepherd.store.adapters import client_folder
from shepherd.types import Adapter, ClientFailure, ClientId

Observe = Callable[[int, StepReport], None]
Measure = Callable[[CohortLora], list[RowLosses]]
"""The adapters that are laid in -> the losses of each on all held-out rows."""

POOLED = "pooled"
"""The key of the model of an arm that has one model, not one per client."""


@dataclass(frozen=True)
class Budget:
    """The budget that an arm used, without clients that failed. `optimizer_steps` is the sum over its clients.

    `optimizer_steps_per_client` counts steps in sequence: those of a client that takes part in every round.
    `learning_rate` is the peak of its schedule.
    """

    optimizer_steps: int
    optimizer_steps_per_client: float
    rows: int
    target_tokens: int
    learning_rate: float


@dataclass
class TrainedArm:
    """An arm's outcome: adapters by client, or of its one model under POOLED; held-out losses, curves, budget.

    per_client: the arm has one model per client.
    """

    adapters: dict[str, Adapter]
    losses: dict[str, RowLosses]
    curves: dict[str, list[tuple[int, float]]]
    budget: Budget
    failures: tuple[ClientFailure, ...] = ()
    per_client: bool = False


def save_arm(
    folder: Path, arm: TrainedArm, *, base_name: str, conv1d: bool = False, keep: Collection[ClientId] = ()
) -> None:
    """Write a finished baseline: losses, curves, budget, failures; the adapter of an arm of one model, or those of the
    clients in `keep`, each a PEFT folder, but for clients whose training failed."""
    arrays = {
        f"{number}/{part}": getattr(losses, part)
        for number, losses in enumerate(arm.losses.values())
        for part in ("nll", "tokens", "hits")
    }
    (folder / "losses.safetensors").write_bytes(to_bytes(arrays))
    rest = {
        "names": list(arm.losses),
        "curves": arm.curves,
        "budget": asdict(arm.budget),
        "failures": [asdict(failure) for failure in arm.failures],
    }
    (folder / "arm.json").write_text(json.dumps(rest, ensure_ascii=True) + "\n", encoding="utf-8")
    kept = {client_folder(folder, name): arm.adapters[name] for name in keep if name in arm.adapters}
    for place, adapter in (kept if arm.per_client else {folder: arm.adapters[POOLED]}).items():
        save_adapter(place, adapter, base_name=base_name, conv1d=conv1d)


def load_arm(folder: Path, per_client: bool) -> TrainedArm:
    """A baseline as `save_arm` wrote it, without adapters of single clients. Raises DataError for damage."""
    try:
        check_sealed(folder)
        rest = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
        arrays, _ = from_file(folder / "losses.safetensors")
        return TrainedArm(
            adapters={} if per_client else {POOLED: load_adapter(folder)},
            losses={
                name: RowLosses(*(arrays[f"{number}/{part}"] for part in ("nll", "tokens", "hits")))
                for number, name in enumerate(rest["names"])
            },
            curves={name: [(number, loss) for number, loss in curve] for name, curve in rest["curves"].items()},
            budget=Budget(**rest["budget"]),
            failures=tuple(ClientFailure(**failure) for failure in rest["failures"]),
            per_client=per_client,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ModelError) as error:
        raise DataError(
            f"the arm that was trained before the run stopped, {folder}, is damaged: {error}",
            hint="delete that folder: shepherd resume trains the arm again",
        ) from None
