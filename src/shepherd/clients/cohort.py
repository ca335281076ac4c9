"""Joint local training of a cohort: one packed batch and one optimizer step per client in each local step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.passes import accumulate
from shepherd.clients.progress import ObserveTraining, Progress, State
from shepherd.clients.row_order import next_rows
from shepherd.clients.settings import LocalTraining
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row
from shepherd.rng import derive
from shepherd.types import Adapter, ClientFailure, ClientId, ClientModel, Objective, Tensors, Tokens, Work


@dataclass
class LocalProgress:
    """The local training of one client in a round: its slot, rows and rate of each step, and the losses so far."""

    slot: int
    batches: list[list[tuple[int, Tokens]]]  # per step: (position in the row order, row)
    rates: tuple[float, ...]
    losses: list[float] = field(default_factory=list)
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """The metrics of the update; losses in nats per target token."""
        mean = float(np.mean(self.losses))
        return {"loss": mean, "last_loss": self.losses[-1], "targets": self.targets, "steps": len(self.losses)}


@dataclass
class Cohort:
    """K clients in joint training, in the order of `views`, for one round, or longer in the local and pooled arms.

    `control`: SCAFFOLD's c. `private`: each client's state from earlier rounds. `anchors`: the centre of the proximal
    term where it differs from the initial model of the client. `before`: the progress reported in the earlier of the
    `trainings` of the round. `reported`: the latest progress.
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
    reported: Mapping[ClientId, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clients = tuple(self.views)
        self.lora.hold([view.adapter for view in self.views.values()], trainable=True)
        self.optimizers = {
            client: LocalOptimizer(
                slot, view, self.settings, self.objective, self.control, self.private.get(client),
                self.anchors.get(client),
            )
            for slot, (client, view) in zip(self.lora.held, self.views.items(), strict=True)
        }  # fmt: skip

    def run(
        self, work: Sequence[Work], round_number: int, observe: ObserveTraining
    ) -> dict[ClientId, dict[str, float]]:
        """Train the clients of `work` and return the metrics of those that did not fail.

        A client whose loss or gradient is not finite stops at that step and is added to `failures`.
        """
        progress = {w.client: self._scheduled(w) for w in work}
        less_memory = checkpointing(self.packed.model) if self.settings.gradient_checkpointing else nullcontext()
        with self.packed.packing(), self.lora.attached(), less_memory:
            for step in range(max(w.steps for w in work)):
                active = {
                    c: local for c, local in progress.items() if step < len(local.rates) and c not in self.failures
                }
                if not active:
                    break
                started = time.perf_counter()
                self._step(active, step, round_number)
                took = time.perf_counter() - started
                for local in active.values():
                    local.tokens += sum(len(row.input_ids) for _, row in local.batches[step])
                    local.seconds += took
                self.reported = {client: self._progress(client, local) for client, local in progress.items()}
                observe(self.reported)
        return {c: local.metrics() for c, local in progress.items() if c not in self.failures}

    def _scheduled(self, work: Work) -> LocalProgress:
        rows = next_rows(self.data[work.client], work.client, work.first_row, work.rows, self.seed)
        numbered = list(enumerate(rows, start=work.first_row))
        ends = [work.rows_of(step) for step in range(work.steps + 1)]
        batches = [numbered[start:end] for start, end in pairwise(ends)]
        return LocalProgress(self.clients.index(work.client), batches, work.learning_rates)

    def _progress(self, client: ClientId, local: LocalProgress) -> Progress:
        before = self.before.get(client, Progress())
        step, steps = before.step + len(local.losses), self.trainings * len(local.rates)
        state: State = "failed" if client in self.failures else "done" if step == steps else "training"
        loss = local.losses[-1] if local.losses else math.nan
        spent = before.targets + local.targets, before.tokens + local.tokens, before.seconds + local.seconds
        return Progress(state, step, steps, loss, *spent)

    def _step(self, active: Mapping[ClientId, LocalProgress], step: int, round_number: int) -> None:
        """One optimizer step of every active client."""
        by_slot = sorted(active.items(), key=lambda item: item[1].slot)
        counts = {local.slot: sum(row.targets for _, row in local.batches[step]) for _, local in by_slot}
        rows = [
            Row(local.slot, row, derive(self.seed, "dropout", client, position) if self.settings.dropout else 0)
            for client, local in by_slot
            for position, row in local.batches[step]
        ]
        sums, norms = self._gradients(by_slot, rows, counts, step)
        if self.lora.together and not all(map(math.isfinite, norms)):
            # Shared products spread a NaN of one client to all: repeat the step with separate products.
            self.lora.together = False
            sums, norms = self._gradients(by_slot, rows, counts, step)
            self.lora.together = True
        for (client, local), norm in zip(by_slot, norms, strict=True):
            loss = sums[local.slot] / counts[local.slot]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
                detail = f"the {what} in local step {step + 1}"
                self.failures[client] = ClientFailure(client, round_number, "diverged", detail)
                continue
            local.losses.append(loss)
            local.targets += counts[local.slot]
            self.optimizers[client].clip(norm)
            self.optimizers[client].step(local.rates[step])

    def _gradients(
        self,
        by_slot: Sequence[tuple[ClientId, LocalProgress]],
        rows: Sequence[Row],
        counts: Mapping[int, int],
        step: int,
    ) -> tuple[dict[int, float], list[float]]:
        """(summed loss by slot, norm of each client's gradient); leaves the gradients in the optimizers."""
        for client, _ in by_slot:
            self.optimizers[client].begin(step)
        sums = accumulate(self.packed, self.lora, rows, self.settings)
        return sums, torch.stack(
            [self.optimizers[client].settle(counts[local.slot]) for client, local in by_slot]
        ).tolist()
