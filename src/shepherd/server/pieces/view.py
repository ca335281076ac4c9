"""Rules for the client model, from which a client starts a round, given the global model.

A client model is exact if its increment is the global one, and lossy if a client of low rank starts from an
approximation. Gauge "shared": slot j of every client is slot j of the server. Gauge "own": another basis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from shepherd.errors import UsageError
from shepherd.lowrank import LowRank
from shepherd.registry import Registry
from shepherd.rng import stream
from shepherd.server.pieces.split import balanced
from shepherd.types import Adapter, ClientId, ClientModel, Core, Factors, GlobalModel, SlotChoice

views = Registry("view")

Scale = Literal["common", "own"]
"""common: every client has the server's scale s. own: the same alpha with s_k = alpha / r_k, and B rescaled."""


@dataclass(frozen=True)
class ViewRule:
    """A rule for the client model: make(model, client, rank, round, seed) -> ClientModel.

    all_slots: clients receive all slots, and their rank is the number that they train. probe: a client of lower rank
    chooses these by a probe of that many steps (see types.SlotChoice); None where the server chooses. by_rank: clients
    of one rank start from the same model.
    """

    make: Callable[[GlobalModel, ClientId, int, int, int], ClientModel]
    mixed_ranks: bool = True
    gauge: Literal["shared", "own"] = "shared"
    all_slots: bool = False
    probe: int | None = None
    needs_zero_B: bool = False
    of_cores: bool = False
    by_rank: bool = False
    name: str = ""


@views
def identity() -> ViewRule:
    """The global adapter; every client has its rank."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        if rank != model.adapter.r:
            raise UsageError(
                f"{client} has rank {rank}, the global adapter {model.adapter.r}, and this method gives all the same",
                hint='leave lora.ranks out, or choose a view of mixed ranks: "prefix", "svd", "fold" or "fresh"',
            )
        return ClientModel(model.adapter)

    return ViewRule(make, mixed_ranks=False, by_rank=True)


@views
def prefix(scale: Scale = "common") -> ViewRule:
    """The first r_k slots (HetLoRA, 2401.06432); lossy for r_k < r."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        _check_rank(model.adapter, client, rank)
        return ClientModel(_of_rank(model.adapter, rank, scale, _first(model.adapter, rank)))

    return ViewRule(make, by_rank=True)


@views
def svd(scale: Scale = "common") -> ViewRule:
    """The best approximation of rank r_k, balanced, in a separate gauge; lossy for r_k < r."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        adapter = model.adapter
        _check_rank(adapter, client, rank)
        factors = {}
        for name, (A, B) in adapter.factors.items():
            if not B.any():  # nothing to decompose: all slots are equivalent
                factors[name] = Factors(A[:rank], B[:, :rank])
                continue
            increment = LowRank(adapter.scale * B.astype(np.float64), A.astype(np.float64))
            rng = stream(seed, "view", client, round_number, name)
            A_k, B_k, _ = balanced(increment.svd(name), adapter.scale, rank, rng)
            factors[name] = Factors(A_k.astype(A.dtype), B_k.astype(B.dtype))
        return ClientModel(_of_rank(adapter, rank, scale, factors))

    return ViewRule(make, gauge="own")


@views
def fold() -> ViewRule:
    """All slots, with r_k random ones trained (Fed-PLoRA, 2602.16936); exact."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        _check_rank(model.adapter, client, rank)
        chosen = stream(seed, "slots", client, round_number).permutation(model.adapter.r)[:rank]
        moves = np.zeros(model.adapter.r, bool)
        moves[chosen] = True
        return ClientModel(model.adapter, slots=dict.fromkeys(model.adapter.factors, moves))

    return ViewRule(make, all_slots=True)


@views
def probe(steps: int = 0) -> ViewRule:
    """All slots, with the r_k · modules trained that a probe changed most (LoRA-A², 2410.22815); exact.

    steps: local steps of the probe, those of the round with all slots; 0 is one pass over the client's rows (the
    paper's epoch), or the number of the round where that is less. Slots are ranked over the whole model, so a module
    may have none. A client of the global rank trains all, without a probe.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        _check_rank(model.adapter, client, rank)
        if rank == model.adapter.r:
            return ClientModel(model.adapter)
        return ClientModel(model.adapter, choice=SlotChoice(rank * len(model.adapter.factors), steps))

    return ViewRule(make, all_slots=True, probe=steps)


@views
def fresh(scale: Scale = "common") -> ViewRule:
    """A new adapter of rank r_k with a zero increment; the remainder holds all earlier updates (FLoRA); exact."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        _check_rank(model.adapter, client, rank)
        if any(pair.B.any() for pair in model.adapter.factors.values()):
            raise UsageError(
                'view "fresh" begins with B = 0, but the global adapter holds an increment that would be lost',
                hint='use it with split "reinit"',
            )
        return ClientModel(_of_rank(model.adapter, rank, scale, _first(model.adapter, rank)))

    return ViewRule(make, gauge="own", needs_zero_B=True, by_rank=True)


@views
def heads() -> ViewRule:
    """The cores; a client of rank r_k < r trains r_k · heads / r of them, drawn in each round (Ravan)."""

    def make(model: GlobalModel, client: ClientId, rank: int, round_number: int, seed: int) -> ClientModel:
        adapter, memory = model.adapter, model.memory
        _check_rank(adapter, client, rank)
        names = list(adapter.factors)
        core = Core({n: memory[f"{n}.basis"] for n in names}, {n: memory[f"{n}.core"] for n in names})
        if rank == adapter.r:
            return ClientModel(adapter, core=core)
        count, size, _ = memory[f"{names[0]}.core"].shape
        if rank % size:
            raise UsageError(
                f"{client} has rank {rank}, which is no whole number of heads of rank {size}",
                hint=f"give it a multiple of {size} in lora.ranks",
            )
        chosen = stream(seed, "heads", client, round_number).permutation(count)[: rank // size]
        moves = np.zeros((count, size), bool)
        moves[chosen] = True
        return ClientModel(adapter, core=core, slots=dict.fromkeys(names, moves.reshape(-1)))

    return ViewRule(make, all_slots=True, of_cores=True)


def _check_rank(adapter: Adapter, client: ClientId, rank: int) -> None:
    # A recipe is bounded where it is read; without one, a factor cut to more rows than it has would pass silently.
    if not 1 <= rank <= adapter.r:
        raise UsageError(
            f"{client} has rank {rank}, outside of 1 to {adapter.r}", hint="set lora.r to the largest of lora.ranks"
        )


def _first(adapter: Adapter, rank: int) -> dict[str, Factors]:
    return {name: Factors(A[:rank], B[:, :rank]) for name, (A, B) in adapter.factors.items()}


def _of_rank(adapter: Adapter, rank: int, scale: Scale, factors: dict[str, Factors]) -> Adapter:
    """An adapter of another rank and scale whose increment is adapter.scale · B @ A of the factors."""
    if rank == adapter.r:
        return replace(adapter, factors=factors)
    if scale == "common":
        return replace(adapter, factors=factors, r=rank, alpha=adapter.scale * (rank**0.5 if adapter.rslora else rank))
    own = replace(adapter, r=rank)
    ratio = adapter.scale / own.scale
    return replace(own, factors={n: Factors(A, (B * ratio).astype(B.dtype)) for n, (A, B) in factors.items()})
