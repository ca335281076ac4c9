"""DP-SGD as a textbook would write it, one row at a time by plain autograd, and sources of randomness to hand in."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from plain_client import low_rank, mask_of, mean_loss
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientModel, ClientUpdate, ExamplePrivacy, Objective, Tokens, TrainTask, Work
from tiny_training import base_model, targets_of


class Given:
    """Randomness that was written down: which rows each step takes, and no noise, or that of a seed."""

    def __init__(self, steps, held: int, seed: int | None = None) -> None:
        self.steps, self.held, self.normals = iter(steps), held, []
        self.rng = None if seed is None else np.random.default_rng(seed)

    def uniform(self, count: int) -> np.ndarray:
        assert count == self.held
        values = np.ones(count)
        values[list(next(self.steps))] = 0.0
        return values

    def normal(self, count: int) -> np.ndarray:
        drawn = np.zeros(count) if self.rng is None else self.rng.standard_normal(count)
        self.normals.append(drawn)
        return drawn


class Drawn:
    """Randomness of a generator: no secret, so that a test repeats."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def uniform(self, count: int) -> np.ndarray:
        return self.rng.random(count)

    def normal(self, count: int) -> np.ndarray:
        return self.rng.standard_normal(count)


def trained_privately(  # noqa: PLR0913
    view: ClientModel,
    rows: list[Tokens],
    randomness,
    *,
    clip: float = 1.0,
    noise: float = 0.0,
    batch: int = 2,
    rates=(0.5, 0.25),
    objective: Objective | None = None,
    observe=lambda report: None,
    **settings,
) -> ClientUpdate:
    """The update of one client by DP-SGD of `len(rates)` steps, with SGD where no optimizer is given."""
    model = base_model()
    modules = targets_of(model)
    task = TrainTask(
        1, {"c": view}, 7, {"c": Work("c", 0, batch * len(rates), tuple(rates))}, objective=objective or Objective(),
        privacy=ExamplePrivacy(clip, noise),
    )  # fmt: skip
    local = LocalTraining(**{"optimizer": "sgd", **settings})
    make = lambda: CohortLora(modules, dropout=local.dropout)  # noqa: E731
    host = TrainingHost(PackedModel(model), make, local, {"c": rows}, lambda task, work, held: randomness)
    (update,) = train(task, {}, host, observe)
    return update


def clipped_by_hand(view: ClientModel, rows: list[Tokens], clip: float, step: int = 0) -> dict[str, np.ndarray]:
    """{trained tensor: Σ of clipped gradients} in float64: one backward pass per row, one norm over all tensors."""
    with _autograd(view) as (model, values):
        return {n: total.numpy() for n, total in _clipped(view, model, values, rows, clip, step).items()}


def trained_by_hand(view: ClientModel, rows, steps, *, clip, batch, rates, noise=()):
    """{tensor: change} by SGD in float64 on the rows of each of `steps`; noise: that of each step, tensor by tensor."""
    with _autograd(view) as (model, values):
        start = {n: value.detach().clone() for n, value in values.items()}
        for step, (drawn, rate) in enumerate(zip(steps, rates, strict=True)):
            totals = _clipped(view, model, values, [rows[i] for i in drawn], clip, step)
            with torch.no_grad():
                for n, total in totals.items():
                    added = torch.from_numpy(noise[step][n]) if noise else 0.0
                    values[n] -= rate * (total + added) / batch
        return {n: (values[n].detach() - start[n]).numpy() for n in values}


def _clipped(view, model, values, rows, clip, step):
    part = view.trains[step % len(view.trains)]
    moving = [n for n in values if n.endswith(".core") or n[-1] in part]
    total = {n: torch.zeros_like(values[n]) for n in moving}
    for row in rows:
        found = torch.autograd.grad(mean_loss(model, [row]), [values[n] for n in moving])
        masked = [g * mask_of(n, g, view) for n, g in zip(moving, found, strict=True)]
        norm = float(torch.cat([g.ravel() for g in masked]).norm())
        for n, g in zip(moving, masked, strict=True):
            total[n] += g * min(1.0, clip / norm)
    return total


@contextmanager
def _autograd(view: ClientModel):
    """(base, trained tensors by name) in float64, with the low-rank terms in effect."""
    model = base_model().double()
    full = replace(view, slots=None, sends=view.sends if view.core is not None else "AB", local_modules=frozenset())
    values = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in full.tensors().items()}

    def factors(name):
        if view.core is None:
            return values[f"{name}.A"], values[f"{name}.B"]
        basis = torch.tensor(view.core.basis[name], dtype=torch.float64)
        return torch.tensor(view.adapter.factors[name].A).double(), basis @ torch.block_diag(*values[f"{name}.core"])

    with low_rank(targets_of(model), factors, view.adapter.scale):
        yield model, values
