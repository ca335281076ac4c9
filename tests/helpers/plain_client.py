"""One client trained as a textbook would write it: autograd, one sequence at a time, torch's own optimizers.

Knows nothing of packing, cohorts or flat vectors, and takes every gradient by autograd, penalties included. What the
laws of training are measured against.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from shepherd.clients.row_order import next_rows
from shepherd.types import ClientModel, Objective

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@contextmanager
def low_rank(modules, factors, scale):
    """y += scale · x Aᵀ Bᵀ, with (A, B) as `factors(name)` gives them, by plain autograd."""

    def hook(name):
        def add(_layer, inputs, output):
            A, B = factors(name)
            return output + scale * inputs[0] @ A.T @ B.T

        return add

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_loss(model, rows) -> torch.Tensor:
    total, count = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        logits = model(ids[None]).logits[0, :-1]
        mask = torch.from_numpy(row.loss_mask[1:])
        total = total + F.cross_entropy(logits[mask], ids[1:][mask], reduction="sum")
        count += int(mask.sum())
    return total / count


def train_plainly(
    model,
    modules,
    view: ClientModel,
    data,
    client: str,
    rates,
    *,
    optimizer: str = "adamw",
    objective: Objective | None = None,
    control=None,
    own_control=None,
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.5,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    seed: int = 7,
    first: int = 0,
    anchor=None,
):
    """(tensors after the round by name, the losses of each step, c_k⁺ by name).

    The proximal term pulls to `anchor`, an adapter, or to the view.
    """
    objective = objective or Objective()
    start, values = {}, {}
    for name, pair in view.adapter.factors.items():
        start[f"{name}.A"], start[f"{name}.B"] = (torch.tensor(m) for m in pair)
    if view.core is not None:
        start |= {f"{name}.core": torch.tensor(core) for name, core in view.core.values.items()}
    values = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    trained = [n for n in values if n.endswith(".core" if view.core is not None else (".A", ".B"))]
    extra = {"momentum": momentum} if optimizer == "sgd" else {"betas": betas}
    torches = {n: OPTIMIZERS[optimizer]([values[n]], lr=1.0, weight_decay=weight_decay, **extra) for n in trained}
    allowed = {n: mask_of(n, values[n], view) for n in trained}

    def B_of(name):
        if view.core is None:
            return values[f"{name}.B"]
        return torch.tensor(view.core.basis[name]) @ torch.block_diag(*values[f"{name}.core"])

    rows = next_rows(data, client, first, 2 * len(rates), seed)
    losses, rates_of = [], {n: [] for n in trained}
    control, own = control or {}, own_control or {}
    c = {n: torch.tensor(control[n]) if n in control else torch.zeros_like(start[n]) for n in trained}
    c_k = {n: torch.tensor(own[n]) if n in own else torch.zeros_like(start[n]) for n in trained}
    with low_rank(modules, lambda name: (values[f"{name}.A"], B_of(name)), view.adapter.scale):
        for step, rate in enumerate(rates):
            part = view.trains[step % len(view.trains)]
            moving = [n for n in trained if n.endswith(".core") or n[-1] in part]
            loss = mean_loss(model, rows[2 * step : 2 * step + 2])
            penalty = _penalty(objective, view, values, start, moving, B_of, anchor)
            found = torch.autograd.grad(loss + penalty, [values[n] for n in moving])
            gradients = {n: g * allowed[n] for n, g in zip(moving, found, strict=True)}
            norm = torch.cat([g.ravel() for g in gradients.values()]).norm()
            for n in moving:
                values[n].grad = gradients[n] * min(1.0, max_grad_norm / float(norm))
                if objective.scaffold and optimizer == "sgd":
                    values[n].grad += allowed[n] * (c[n] - c_k[n])
                own_rate = rate * (1.0 if n.endswith(".A") else objective.rate_ratio)
                torches[n].param_groups[0]["lr"] = own_rate
                torches[n].step()
                with torch.no_grad():
                    if objective.scaffold:
                        if optimizer != "sgd":
                            values[n] -= own_rate * (c[n] - c_k[n])
                        rates_of[n].append(own_rate)
                    values[n].copy_(torch.where(allowed[n] > 0, values[n], start[n]))
            losses.append(loss.item())
    if view.core is not None:
        for name in view.core.values:
            values[f"{name}.B"] = B_of(name)
    arrays = {n: v.detach().numpy() for n, v in values.items()}
    # A gradient of step i moves the client by η_i, and through the momentum by η_j ρ^(j − i) in each later step.
    total_rate = {n: sum(r * momentum ** (j - i) for j, r in enumerate(own) for i in range(j + 1))
                  for n, own in rates_of.items()}  # fmt: skip
    with torch.no_grad():
        new = {
            n: (c_k[n] - c[n] + (start[n] - values[n]) / total_rate[n] if total_rate[n] else c_k[n]).numpy()
            for n in trained
        }
    return arrays, losses, new


def mask_of(name, value, view):
    """1 where a tensor may move, else 0."""
    if view.slots is None:
        return torch.ones_like(value)
    module, part = name.rsplit(".", 1)
    may = torch.tensor(view.slots[module]).float()
    if part == "core":
        heads, width, _ = value.shape
        may = may.reshape(heads, width)
        return may[:, :, None] * may[:, None, :]
    return may[:, None].expand_as(value) if part == "A" else may.expand_as(value)


def _penalty(objective, view, values, start, moving, B_of, anchor=None):
    if not objective.proximal:
        return torch.zeros(())
    towards = (anchor or view.adapter).factors
    if objective.proximal_form == "factors":
        if anchor is not None:
            start = {f"{n}.{part}": torch.tensor(getattr(p, part)) for n, p in towards.items() for part in "AB"}
        return objective.proximal / 2 * sum((values[n] - start[n]).square().sum() for n in moving)
    total = torch.zeros(())
    for name, pair in towards.items():
        increment = B_of(name) @ values[f"{name}.A"] - torch.tensor(pair.B @ pair.A)
        total = total + (view.adapter.scale * increment).square().sum()
    return objective.proximal / 2 * total
