"""One step of a whole cohort: the clients' sequences in one packed row, one optimizer step for all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.progress import Progress, StepReport
from shepherd.clients.row_order import next_rows
from shepherd.clients.settings import LocalTraining
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import ROWS_MULTIPLE, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack
from shepherd.rng import derive
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientId,
    ClientModel,
    Objective,
    Tensors,
    Tokens,
    Work,
)


@dataclass
class LocalProgress:
    """One client's way through a round: its slot, its rows step by step, its rates, and what came of it so far."""

    slot: int
    batches: list[list[tuple[int, Tokens]]]  # per step: (place in the next_rows, row)
    rates: tuple[float, ...]
    losses: list[float] = field(default_factory=list)
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        mean = float(np.mean(self.losses))
        return {"loss": mean, "last_loss": self.losses[-1], "targets": self.targets, "steps": len(self.losses)}


@dataclass
class Cohort:
    """K clients in training, in the order of `views`. Lives for one round, or longer for the baselines.

    `control` is SCAFFOLD's c, `private` what each client kept from its earlier rounds, `anchors` what the proximal term
    pulls a client towards where that is not its view. `before` is what was told of each client where this is not the
    first of the `trainings` of its round, `told` what was told last.
    """

    packed: PackedModel
    lora: CohortLora
    settings: LocalTraining
    views: Mapping[ClientId, ClientModel]
    data: Mapping[ClientId, Sequence[Tokens]]
    seed: int
    objective: Objective = field(default_factory=Objective)
    control: Tensors = field(default_factory=dict)
    private: Mapping[ClientId, Tensors] = field(default_factory=dict)
    anchors: Mapping[ClientId, Adapter] = field(default_factory=dict)
    before: Mapping[ClientId, Progress] = field(default_factory=dict)
    trainings: int = 1
    failures: dict[ClientId, ClientFailure] = field(default_factory=dict)
    told: Mapping[ClientId, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clients = tuple(self.views)
        self.lora.hold([view.adapter for view in self.views.values()], trainable=True)
        self.moving = {
            client: LocalOptimizer(
                slot, view, self.settings, self.objective, self.control, self.private.get(client),
                self.anchors.get(client),
            )
            for slot, (client, view) in zip(self.lora.held, self.views.items(), strict=True)
        }  # fmt: skip

    def run(
        self, work: Sequence[Work], round_number: int, observe: Callable[[StepReport], None]
    ) -> dict[ClientId, dict[str, float]]:
        """Train every client of `work`; returns the metrics of each that did not fail.

        A client whose loss or gradient is not finite stops there, and is in `failures`.
        """
        courses = {w.client: self._course(w) for w in work}
        less_memory = checkpointing(self.packed.model) if self.settings.gradient_checkpointing else nullcontext()
        with self.packed.packing(), self.lora.attached(), less_memory:
            for step in range(max(w.steps for w in work)):
                active = {c: way for c, way in courses.items() if step < len(way.rates) and c not in self.failures}
                if not active:
                    break
                begin = time.perf_counter()
                self._step(active, step, round_number)
                took = time.perf_counter() - begin
                for way in active.values():
                    way.tokens += sum(len(row.input_ids) for _, row in way.batches[step])
                    way.seconds += took
                self.told = {client: self._progress(client, way) for client, way in courses.items()}
                observe(self.told)
        return {c: way.metrics() for c, way in courses.items() if c not in self.failures}

    def _course(self, work: Work) -> LocalProgress:
        rows = next_rows(self.data[work.client], work.client, work.first_row, work.rows, self.seed)
        numbered = list(enumerate(rows, start=work.first_row))
        ends = [work.rows_of(step) for step in range(work.steps + 1)]
        batches = [numbered[start:end] for start, end in pairwise(ends)]
        return LocalProgress(self.clients.index(work.client), batches, work.learning_rates)

    def _progress(self, client: ClientId, way: LocalProgress) -> Progress:
        before = self.before.get(client, Progress())
        step, steps = before.step + len(way.losses), self.trainings * len(way.rates)
        state = "failed" if client in self.failures else "done" if step == steps else "training"
        loss = way.losses[-1] if way.losses else math.nan
        spent = before.targets + way.targets, before.tokens + way.tokens, before.seconds + way.seconds
        return Progress(state, step, steps, loss, *spent)

    def _step(self, active: Mapping[ClientId, LocalProgress], step: int, round_number: int) -> None:
        """One optimizer step of every active client."""
        ways = sorted(active.items(), key=lambda item: item[1].slot)
        counts = {way.slot: sum(row.targets for _, row in way.batches[step]) for _, way in ways}
        rows = [
            Row(way.slot, row, derive(self.seed, "dropout", client, place) if self.settings.dropout else 0)
            for client, way in ways
            for place, row in way.batches[step]
        ]
        sums, norms = self._gradients(ways, rows, counts, step)
        if self.lora.together and not all(map(math.isfinite, norms)):
            # Shared products carry what is not finite from one client to all: once more, each on its own.
            self.lora.together = False
            sums, norms = self._gradients(ways, rows, counts, step)
            self.lora.together = True
        for (client, way), norm in zip(ways, norms, strict=True):
            loss = sums[way.slot] / counts[way.slot]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
                detail = f"the {what} in local step {step + 1}"
                self.failures[client] = ClientFailure(client, round_number, "non-finite", detail)
                continue
            way.losses.append(loss)
            way.targets += counts[way.slot]
            self.moving[client].clip(norm)
            self.moving[client].step(way.rates[step])

    def _gradients(
        self, ways: Sequence[tuple[ClientId, LocalProgress]], rows: Sequence[Row], counts: Mapping[int, int], step: int
    ) -> tuple[dict[int, float], list[float]]:
        """Each slot's summed loss, and the norm of each client's gradient, which is then in place."""
        for client, _ in ways:
            self.moving[client].begin(step)
        sums = self._backward(rows, counts)
        return sums, torch.stack([self.moving[client].settle(counts[way.slot]) for client, way in ways]).tolist()

    def _backward(self, rows: Sequence[Row], counts: Mapping[int, int]) -> dict[int, float]:
        """Add each client's gradient of its summed loss to its slot; returns each slot's summed loss.

        The division by the number of targets comes afterwards, in float32: a bfloat16 head would round it.
        """
        sums = dict.fromkeys(counts, 0.0)
        for part in cut(rows, self.settings.tokens_per_pass):
            batch = pack(part, ROWS_MULTIPLE).to(self.packed.device)
            self.lora.segments = batch.segments
            if self.settings.dropout:
                ends = pairwise(batch.bounds[: len(batch.seeds) + 1])
                self.lora.dropout_seeds = [(*pair, seed) for pair, seed in zip(ends, batch.seeds, strict=True)]
            nll = self.packed.loss_sums(batch)
            nll.sum().backward()
            for segment, value in zip(batch.target_segments, nll.tolist(), strict=True):
                sums[segment.slot] += value
        return sums
