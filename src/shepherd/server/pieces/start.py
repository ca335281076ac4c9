"""Initialisation of a method: the global model before the first round, from an adapter with B = 0.

Quantities fixed for the run are in memory: "seed", "<module>.A0" and ".B0", or "<module>.basis" with ".core".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shepherd.errors import UsageError
from shepherd.lowrank import LowRank, orthonormal_rows
from shepherd.registry import Registry
from shepherd.rng import stream
from shepherd.server.pieces.split import balanced
from shepherd.server.uploads import expand_core
from shepherd.types import Adapter, Factors, GlobalModel

starts = Registry("start")


@dataclass(frozen=True)
class Start:
    """An initialisation: make(adapter, seed, base) -> GlobalModel. base: {module: W0 [out, in]} if needs_base.

    heads: the number of cores of each module; 0 for factors.
    """

    make: Callable[[Adapter, int, Mapping[str, np.ndarray] | None], GlobalModel]
    needs_base: bool = False
    heads: int = 0
    name: str = ""


@starts
def given() -> Start:
    """The adapter of LoRA: A Kaiming-uniform, B zero (Hu et al., 2021)."""
    return Start(lambda adapter, seed, base: GlobalModel(adapter, memory=_seed(seed)))


@starts
def orthonormal() -> Start:
    """A with orthonormal rows from the seed, B zero: steps are three times those with Kaiming rows, of norm 0.58."""

    def make(adapter: Adapter, seed: int, base: object) -> GlobalModel:
        factors = {
            name: Factors(_orthonormal(seed, name, A), np.zeros_like(B)) for name, (A, B) in adapter.factors.items()
        }
        return GlobalModel(replace(adapter, factors=factors), memory=_seed(seed))

    return Start(make)


@starts
def principal() -> Start:
    """The top singular triples of the base weights in A and B, subtracted in the remainder (FRLoRA).

    Slots beyond the rank of the weights get a random A and B = 0.
    """

    def make(adapter: Adapter, seed: int, base: Mapping[str, np.ndarray] | None) -> GlobalModel:
        weights = base or {}
        missing = sorted(set(adapter.factors) - set(weights))
        if missing:
            raise UsageError(
                f"a start from principal directions needs the base weights, and those of {missing[0]} are not there",
                hint="give start() a mapping of base weights by module, or choose another start",
            )
        factors, remainder, memory = {}, {}, _seed(seed)
        for name, (A, B) in adapter.factors.items():
            weight = np.asarray(weights[name], np.float64)
            if weight.shape != (len(B), A.shape[1]):
                raise UsageError(f"{name}: base weights {list(weight.shape)}, expected {[len(B), A.shape[1]]}")
            if adapter.r > min(weight.shape):
                raise UsageError(
                    f"{name}: base weights {list(weight.shape)} have no {adapter.r} principal directions",
                    hint=f"set lora.r to at most {min(weight.shape)}",
                )
            top = LowRank.beside_identity(weight).svd(name)
            A0, B0, _ = balanced(top, adapter.scale, adapter.r, stream(seed, "principal", name))
            pair = Factors(A0.astype(A.dtype), B0.astype(B.dtype))
            factors[name], memory[f"{name}.A0"], memory[f"{name}.B0"] = pair, pair.A, pair.B
            remainder[name] = LowRank(-adapter.scale * pair.B, pair.A, apart=adapter.r)
        return GlobalModel(replace(adapter, factors=factors), remainder, memory)

    return Start(make, needs_base=True)


@starts
def cores(heads: int = 1) -> Start:
    """Zero cores between fixed orthonormal bases from the seed: B = basis @ blockdiag(cores), A fixed."""
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")

    def make(adapter: Adapter, seed: int, base: object) -> GlobalModel:
        if adapter.r % heads:
            raise UsageError(f"{heads} heads do not divide rank {adapter.r}", hint="set lora.r to a multiple of heads")
        size = adapter.r // heads
        factors, memory = {}, _seed(seed)
        for name, (A, B) in adapter.factors.items():
            basis = _orthonormal(seed, f"{name}.basis", B.T).T.copy()
            core = np.zeros((heads, size, size), B.dtype)
            memory[f"{name}.basis"], memory[f"{name}.core"] = basis, core
            factors[name] = Factors(_orthonormal(seed, name, A), expand_core(basis, core).astype(B.dtype))
        return GlobalModel(replace(adapter, factors=factors), memory=memory)

    return Start(make, heads=heads)


def _orthonormal(seed: int, name: str, like: np.ndarray) -> np.ndarray:
    """Orthonormal rows of the shape and dtype of `like` [r, n], a pure function of (seed, name)."""
    rows, n = like.shape
    if rows > n:
        raise UsageError(
            f"{name}: {rows} orthonormal rows do not fit into {n} dimensions", hint=f"set lora.r to at most {n}"
        )
    return orthonormal_rows(stream(seed, "orthonormal", name), rows, np.zeros((0, n))).astype(like.dtype)


def _seed(seed: int) -> dict[str, np.ndarray]:
    return {"seed": np.array(seed, np.uint64)}
