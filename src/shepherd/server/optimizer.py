"""Server optimizers: a step on the pseudo-gradient Δ = Σ c_k (X_k − X), in the linear space of the merge.

An optimizer is two functions: init(Δ) -> state, and step(state, Δ) -> (state, move). Its moments are in
GlobalModel.memory by name, one state for each tensor; only the states of trained tensors change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from shepherd.errors import did_you_mean
from shepherd.lowrank import LowRank
from shepherd.registry import Registry
from shepherd.types import PRIVATE_CONTROL

optimizers = Registry("server optimizer")

State = Mapping[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """A server optimizer: init, step, and coefficients(shares float64[K, r], effective steps float64[K]) -> shares.

    coefficients: for linear steps. on_increments: whether step also accepts LowRank, with + and · alone. by_steps:
    whether coefficients depend on the steps.
    """

    init: Callable[[Any], State] = lambda delta: {}
    step: Callable[[State, Any], tuple[State, Any]] = lambda state, delta: (state, delta)
    coefficients: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda shares, steps: shares
    memoryless: bool = False
    on_increments: bool = False
    by_steps: bool = False
    name: str = ""


@optimizers
def fedavg(learning_rate: float = 1.0) -> Optimizer:
    """θ + η·Δ (FedAvg, McMahan et al., 2017); η = 1 is the mean of the clients."""
    _positive(learning_rate=learning_rate)
    return Optimizer(
        coefficients=lambda shares, steps: learning_rate * shares, memoryless=True, on_increments=True
    )  # fmt: skip


@optimizers
def fednova(learning_rate: float = 1.0) -> Optimizer:
    """Each client's change divided by its local steps τ_k, times their mean τ (FedNova, 2007.07481, eq. 5).

    c_k = η · w_k · τ / τ_k with τ = Σ w_k τ_k / Σ w_k, so that equal τ_k are FedAvg for any sum of the weights. τ_k is
    the paper's ‖a_k‖₁, which the server computes from the rates of the client's steps, the momentum and the proximal
    term (clients.learning_rates.effective_steps). Exact for SGD; for Adam Σ η_i / η, a heuristic. The authors' code
    differs with a proximal term: its τ is the mean number of steps, and momentum is counted in addition.
    """
    _positive(learning_rate=learning_rate)

    def coefficients(shares: np.ndarray, steps: np.ndarray) -> np.ndarray:
        total = shares.sum(axis=0)
        mean_steps = (shares * steps[:, None]).sum(axis=0) / np.where(total == 0, 1.0, total)
        return learning_rate * shares * mean_steps / steps[:, None]

    return Optimizer(coefficients=coefficients, memoryless=True, on_increments=True, by_steps=True)


@optimizers
def fedavgm(learning_rate: float = 1.0, momentum: float = 0.9, rank: int = 0) -> Optimizer:
    """v ← β·v + Δ, θ + η·v (FedAvgM, Hsu et al., 1909.06335); for a product merge v is an increment.

    rank: the bound on the rank of the increment v, 0 for none; without effect on factors.
    """
    _positive(learning_rate=learning_rate)
    _below_one(momentum=momentum)
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")

    def step(state: State, delta: Any) -> tuple[State, Any]:
        velocity = momentum * state["velocity"] + delta if state["velocity"] is not None else delta
        if isinstance(velocity, LowRank):
            velocity = velocity.truncated(rank or None)
        return {"velocity": velocity}, learning_rate * velocity

    return Optimizer(lambda delta: {"velocity": None}, step, on_increments=True)


@optimizers
def fedadagrad(learning_rate: float = 1e-2, momentum: float = 0.0, tau: float = 1e-3) -> Optimizer:
    """v ← v + Δ² (FedAdagrad, Reddi et al., 2003.00295v5, Algorithm 2)."""
    return _adaptive(learning_rate, momentum, tau, lambda v, square: v + square)


@optimizers
def fedyogi(learning_rate: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3) -> Optimizer:
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²) (FedYogi, Reddi et al., 2003.00295v5, Algorithm 2)."""
    _below_one(betas=betas[1])

    def second(v: np.ndarray, square: np.ndarray) -> np.ndarray:
        return v - (1 - betas[1]) * square * np.sign(v - square)

    return _adaptive(learning_rate, betas[0], tau, second)


@optimizers
def fedadam(learning_rate: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3) -> Optimizer:
    """v ← β₂·v + (1 − β₂)·Δ² (FedAdam, Reddi et al., 2003.00295v5, Algorithm 2).

    Without bias correction, as in the paper: with the default betas, a coordinate of constant Δ ≫ τ moves by η in the
    first round, by about 2η around the tenth, and by η again in the limit.
    """
    _below_one(betas=betas[1])
    return _adaptive(learning_rate, betas[0], tau, lambda v, square: betas[1] * v + (1 - betas[1]) * square)


@optimizers
def torch(name: str, learning_rate: float = 1e-3, **options: Any) -> Optimizer:
    """Any optimizer of torch.optim by name, with −Δ as the gradient (FedOpt, Reddi et al., 2003.00295, Alg. 1).

    options: those of the torch class, with its defaults except weight_decay = 0: the server steps on changes, so
    options that depend on the weights are refused. SGD with learning_rate = 1 is FedAvg.
    """
    import torch  # imported here, because the server otherwise needs numpy alone

    _positive(learning_rate=learning_rate)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        n: k for n, k in vars(torch.optim).items() if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)
    }
    del kinds["Optimizer"]
    if name not in kinds:
        raise ValueError(f"torch.optim has no {name!r}.{did_you_mean(name, kinds)} It has: {', '.join(sorted(kinds))}")
    known = set(inspect.signature(kinds[name]).parameters) - {"params", "lr"}
    for key in options.keys() - known:
        near = did_you_mean(key, {*known, "learning_rate"})
        raise ValueError(f"{name} has no option {key!r}.{near} Its options: {', '.join(sorted(known))}")
    if "weight_decay" in known:
        options = {"weight_decay": 0.0, **options}

    def stepped(state: State, delta: np.ndarray, start: float = 0.0) -> tuple[State, np.ndarray]:
        weights = torch.full(delta.shape, start, dtype=torch.float64, requires_grad=True)
        weights.grad = torch.from_numpy(-delta)
        optimizer = kinds[name]([weights], lr=learning_rate, **options)
        for key, value in state.items():
            if value is not None:  # torch keeps step counts in float32 for weights of any dtype
                dtype = torch.float64 if value.ndim else torch.float32
                optimizer.state[weights][key] = torch.tensor(value, dtype=dtype)
        optimizer.step()
        state = {k: v.numpy() for k, v in optimizer.state[weights].items() if v is not None}
        return state, weights.detach().numpy() - start

    def trial(start: float) -> tuple[State, np.ndarray]:
        state, first = stepped({}, np.ones((1, 1)), start)
        state, second = stepped(state, np.full((1, 1), -2.0), start)
        return state, np.concatenate([first, second])

    try:
        (state, moves), (_, others) = trial(0.0), trial(1.0)
    except Exception as error:  # torch's optimizers raise errors of many types for unsupported options
        raise ValueError(f"{name} cannot step so: {type(error).__name__}: {error}") from error
    if not np.allclose(moves, others, rtol=1e-13, atol=1e-14):
        raise ValueError(f"{name} steps by the weights too, and the server knows changes alone; leave out weight_decay")
    return Optimizer(lambda delta: dict.fromkeys(state), stepped)


def _adaptive(learning_rate: float, momentum: float, tau: float, second: Callable) -> Optimizer:
    """m ← β₁m + (1 − β₁)Δ; v ← second(v, Δ²) from v₀ = τ²; θ + η·m / (√v + τ).

    Version 5 of the paper squares Δ. Squaring m instead, as some variants do, moves the model by up to η / √(1 − β₂) in
    the first rounds.
    """
    _positive(learning_rate=learning_rate, tau=tau)
    _below_one(momentum=momentum)

    def init(delta: np.ndarray) -> State:
        return {"m": np.zeros_like(delta), "v": np.full_like(delta, tau**2)}

    def step(state: State, delta: np.ndarray) -> tuple[State, np.ndarray]:
        m = momentum * state["m"] + (1 - momentum) * delta
        v = second(state["v"], delta**2)
        return {"m": m, "v": v}, learning_rate * m / (np.sqrt(v) + tau)

    return Optimizer(init, step)


class ServerStep:
    """An optimizer with its states during one `combine`; `memory` holds the updated states."""

    def __init__(self, optimizer: Optimizer, memory: Mapping[str, np.ndarray], dtype: DTypeLike = np.float32) -> None:
        self.optimizer, self.memory, self.dtype = optimizer, dict(memory), dtype

    @property
    def memoryless(self) -> bool:
        """Whether the optimizer has no state."""
        return self.optimizer.memoryless

    def step(self, name: str, delta: Any) -> Any:
        """The move of the tensor (or, for a product merge, the module) `name` for its pseudo-gradient."""
        state = dict(self.optimizer.init(delta))
        for key, value in state.items():
            stored = f"server.{name}.{key}"
            if isinstance(delta, LowRank) and f"{stored}.L" in self.memory:
                value = LowRank(self.memory[f"{stored}.L"], self.memory[f"{stored}.R"])
            elif stored in self.memory:
                value = self.memory[stored]
            state[key] = None if value is None else value.astype(np.float64)
        after, move = self.optimizer.step(state, delta)
        for key, value in after.items():
            stored = f"server.{name}.{key}"
            if isinstance(value, LowRank):
                kept = value.astype(self.dtype)
                self.memory[f"{stored}.L"], self.memory[f"{stored}.R"] = kept.L, kept.R
            else:
                self.memory[stored] = value.astype(self.dtype)
        return move


def control_step(
    memory: Mapping[str, np.ndarray], changes: Mapping[str, Iterable[np.ndarray]], population: Sequence[float]
) -> dict:
    """The server step of SCAFFOLD: c ← c + Σ_k p_k (c_k⁺ − c_k) over the cohort (1910.06378, Algorithm 1, line 17).

    p_k is the weight of client k in the mean over all clients, not just the cohort: 1/N for uniform weights, as in the
    paper; n_k / Σn by examples. So c = Σ p_k c_k over all clients after every round, for any sampling, and a lost
    update changes neither c nor its c_k; an additional factor for the sampling probability would count changes more
    than once. Training is stationary where c = 0 (there each local step is −η·c), that is Σ p_k ∇f_k = 0. With 1/N for
    clients of unequal weights, it would converge to the optimum of the uniform mean instead.

    changes: c_k⁺ − c_k in float64 by tensor, by client in the order of `population`; c is kept as "control.<tensor>".
    """
    memory = dict(memory)
    for name, of_clients in changes.items():
        terms = (p * change for p, change in zip(population, of_clients, strict=True))  # one client at a time
        total = sum(terms, start=np.zeros(()))
        before = memory.get(f"control.{name}")
        memory[f"control.{name}"] = (total if before is None else before + total).astype(np.float32)
    return memory


def control_without(memory: Mapping[str, np.ndarray], share: float, own: Mapping[str, np.ndarray]) -> dict:
    """c without a quarantined client of weight p_k: c − p_k c_k. own: its private tensors, which contain c_k.

    Otherwise its last c_k would remain in c and bias the optimum of the others. The server has received every change of
    c_k, so this reveals nothing new about the client.
    """
    memory = dict(memory)
    for name, array in own.items():
        kept = f"control.{name.removeprefix(PRIVATE_CONTROL)}"
        if name.startswith(PRIVATE_CONTROL) and kept in memory:
            memory[kept] = (memory[kept].astype(np.float64) - share * array).astype(np.float32)
    return memory


def control(memory: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SCAFFOLD's c by tensor, for a `TrainTask`; empty before the first round."""
    return {key.removeprefix("control."): value for key, value in memory.items() if key.startswith("control.")}


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be a number above 0, got {value}")


def _below_one(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be from 0 up to but less than 1, got {value}")
