"""Local training of a cohort: a task and the clients' tokens in, one update per client out.

The cohort is one batch: each step takes the next rows of every client, runs the frozen base once over all of them
and minimises the sum over clients of each client's own mean, so that training K clients together gives what K
separate trainings give. A real site runs the same code with a cohort of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from shepherd.model.forward import PackedModel, Row, cut, pack
from shepherd.model.lora import CohortLora
from shepherd.rng import derive, stream
from shepherd.types import ClientFailure, ClientId, ClientUpdate, Tensors, Tokens, TrainTask, Work


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains; the same for all clients of a run. See `[training]` of the recipe for the meanings."""

    optimizer: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    gradient_checkpointing: bool = False
    tokens_per_pass: int = 1024
    clients_at_once: int = 16


@dataclass(frozen=True)
class StepReport:
    """After each step of a cohort: per client (step, steps, loss, target tokens so far), and tokens seen."""

    clients: Mapping[ClientId, tuple[int, int, float, int]]
    failed: frozenset[ClientId]
    tokens: int


def walk(tokens: Sequence[Tokens], client: ClientId, first: int, rows: int, seed: int) -> list[Tokens]:
    """Rows first … first + rows − 1 of a client's endless walk: pass after pass, each in an order of its own.

    The walk goes on over rounds, so no client trains on the same first rows each round.
    """
    size = len(tokens)
    orders: dict[int, np.ndarray] = {}
    picked = []
    for position in range(first, first + rows):
        epoch, index = divmod(position, size)
        if epoch not in orders:
            orders[epoch] = stream(seed, "shuffle", client, epoch).permutation(size)
        picked.append(tokens[orders[epoch][index]])
    return picked


@dataclass
class Course:
    """One client's way through a round: its slot, its rows step by step, its rates, and what came of it so far."""

    slot: int
    batches: list[list[tuple[int, Tokens]]]  # per step: (place in the walk, row)
    rates: tuple[float, ...]
    losses: list[float] = field(default_factory=list)
    targets: int = 0

    def report(self) -> tuple[int, int, float, int]:
        return len(self.losses), len(self.rates), self.losses[-1] if self.losses else math.nan, self.targets

    def metrics(self) -> dict[str, float]:
        mean = float(np.mean(self.losses))
        return {"loss": mean, "last_loss": self.losses[-1], "targets": self.targets, "steps": len(self.losses)}


@dataclass
class Cohort:
    """K clients in training: adapters, optimizers and failures. Lives for one round, or longer for the baselines."""

    packed: PackedModel
    lora: CohortLora
    settings: LocalTraining
    clients: tuple[ClientId, ...]
    data: Mapping[ClientId, Sequence[Tokens]]
    seed: int
    failures: dict[ClientId, ClientFailure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lora.require_grad()
        self.optimizers = [self._optimizer(slot) for slot in range(len(self.clients))]

    def run(
        self, work: Sequence[Work], round_number: int, observe: Callable[[StepReport], None]
    ) -> dict[ClientId, dict[str, float]]:
        """Train every client of `work`; returns the metrics of each that did not fail.

        A client whose loss or gradient is not finite stops there, and is in `failures`.
        """
        courses = {w.client: self._course(w) for w in work}
        seen = 0
        with self.packed.packing(), self.lora.attached(), _checkpointing(self.packed.model, self.settings):
            for step in range(max(w.steps for w in work)):
                active = {c: way for c, way in courses.items() if step < len(way.rates) and c not in self.failures}
                if not active:
                    break
                seen += self._step(active, step, round_number)
                observe(StepReport({c: way.report() for c, way in courses.items()}, frozenset(self.failures), seen))
        return {c: way.metrics() for c, way in courses.items() if c not in self.failures}

    def _course(self, work: Work) -> Course:
        rows = walk(self.data[work.client], work.client, work.first_row, work.rows, self.seed)
        numbered = list(enumerate(rows, start=work.first_row))
        # As even as can be, so that there are as many batches as steps whatever the numbers.
        ends = [work.rows * step // work.steps for step in range(work.steps + 1)]
        batches = [numbered[start:end] for start, end in pairwise(ends)]
        return Course(self.clients.index(work.client), batches, work.learning_rates)

    def _step(self, active: Mapping[ClientId, Course], step: int, round_number: int) -> int:
        """One optimizer step of every active client; returns the number of tokens that went through the base."""
        ways = sorted(active.items(), key=lambda item: item[1].slot)
        counts = {way.slot: sum(row.targets for _, row in way.batches[step]) for _, way in ways}
        rows = [
            Row(way.slot, row, derive(self.seed, "dropout", client, place) if self.settings.dropout else 0)
            for client, way in ways
            for place, row in way.batches[step]
        ]
        sums = self._backward(rows, counts)
        norms = torch.linalg.vector_norm(self.lora.grad, dim=1).tolist()
        for client, way in ways:
            loss, norm = sums[way.slot] / counts[way.slot], norms[way.slot]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
                detail = f"the {what} in local step {step + 1}"
                self.failures[client] = ClientFailure(client, round_number, "non-finite", detail)
                continue
            way.losses.append(loss)
            way.targets += counts[way.slot]
            limit = self.settings.max_grad_norm
            if limit and norm > limit:
                self.lora.grad[way.slot] *= limit / norm
            optimizer = self.optimizers[way.slot]
            optimizer.param_groups[0]["lr"] = way.rates[step]
            optimizer.step()
        return sum(len(row.tokens.input_ids) for row in rows)

    def _backward(self, rows: Sequence[Row], counts: Mapping[int, int]) -> dict[int, float]:
        """Gradient of the sum over clients of each client's own mean loss; returns each slot's summed loss."""
        self.lora.grad.zero_()
        sums = dict.fromkeys(counts, 0.0)
        for part in cut(rows, self.settings.tokens_per_pass):
            batch = pack(part).to(self.packed.device)
            self.lora.segments = batch.segments
            if self.settings.dropout:
                self.lora.dropout_seeds = [
                    (*ends, seed) for ends, seed in zip(pairwise(batch.bounds), batch.seeds, strict=True)
                ]
            nll = self.packed.loss_sums(batch)
            share = torch.tensor([1.0 / counts[s.slot] for s in batch.target_segments], device=nll.device)
            (nll * share).sum().backward()
            for segment, value in zip(batch.target_segments, nll.tolist(), strict=True):
                sums[segment.slot] += value
        return sums

    def _optimizer(self, slot: int) -> torch.optim.Optimizer:
        """A torch optimizer on the client's row of the flat parameters: one vector, updated in place."""
        vector = self.lora.flat.detach()[slot].requires_grad_(True)
        vector.grad = self.lora.grad[slot]
        s = self.settings
        match s.optimizer:
            case "adamw":
                return torch.optim.AdamW([vector], betas=s.betas, weight_decay=s.weight_decay, fused=True)
            case "adam":
                return torch.optim.Adam([vector], betas=s.betas, weight_decay=s.weight_decay, fused=True)
            case "sgd":
                return torch.optim.SGD([vector], lr=1.0, momentum=s.momentum, weight_decay=s.weight_decay)
        raise ValueError(f"unknown optimizer: {s.optimizer!r}. Known: adamw, adam, sgd")


def train(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    packed: PackedModel,
    make_lora: Callable[[int], CohortLora],
    settings: LocalTraining,
    data: Mapping[ClientId, Sequence[Tokens]],
    observe: Callable[[StepReport], None] = lambda report: None,
) -> Iterator[ClientUpdate | ClientFailure]:
    """Train the task's clients, `clients_at_once` together; yields one update or failure per client, sorted by name.

    make_lora(K) makes an empty cohort of K slots of the task's rank and scale.
    """
    names = sorted(task.work)
    for start in range(0, len(names), settings.clients_at_once):
        chunk = tuple(names[start : start + settings.clients_at_once])
        lora = make_lora(len(chunk))
        for slot in range(len(chunk)):
            lora.load(slot, task.views[chunk[slot]].adapter)
        cohort = Cohort(packed, lora, settings, chunk, data, task.seed)
        metrics = cohort.run([task.work[name] for name in chunk], task.round, observe)
        for slot, name in enumerate(chunk):
            if name in cohort.failures:
                yield cohort.failures[name]
                continue
            begin = lora.pack(task.views[name].adapter.factors)
            delta = lora.unpack(lora.flat.detach()[slot].cpu().numpy() - begin)
            measured = metrics[name]
            yield ClientUpdate(
                client=name,
                round=task.round,
                delta={f"{module}.{part}": getattr(pair, part) for module, pair in delta.items() for part in "AB"},
                num_examples=len(data[name]),
                num_tokens=int(measured["targets"]),
                steps=int(measured["steps"]),
                metrics={"loss": measured["loss"], "last_loss": measured["last_loss"]},
            )


@contextmanager
def _checkpointing(model: torch.nn.Module, settings: LocalTraining) -> Iterator[None]:
    """Gradient checkpointing while training. It needs train mode; dropout layers of the frozen base stay off."""
    if not settings.gradient_checkpointing:
        yield
        return
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        enable, disable = model.activation_checkpointing_enable, model.activation_checkpointing_disable
    else:
        enable, disable = model.gradient_checkpointing_enable, model.gradient_checkpointing_disable
    enable()  # both default to use_reentrant=False
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        disable()
        model.eval()
