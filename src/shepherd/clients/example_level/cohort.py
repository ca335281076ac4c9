"""Local training of clients by DP-SGD, one client after another, with the interface of `clients.cohort.Cohort`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from shepherd.clients.example_level.gradients import ExampleGradients, noised
from shepherd.clients.example_level.sampling import Randomness, drawn_rows, planned_batch
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.progress import ObserveTraining, Progress, State
from shepherd.clients.settings import LocalTraining
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.rng import derive
from shepherd.types import ClientFailure, ClientId, ClientModel, ExamplePrivacy, Objective, Tensors, Tokens, Work
from shepherd.updates.privacy.example_account import sampling_rate

Account = Callable[[Work, int], Randomness | None]
"""(work of a client in a round, rows that it holds) -> the randomness of its steps, which are in its ledger by then.

None where they would exceed the client's budget."""


@dataclass
class ExampleCohort:
    """Clients whose local steps are those of DP-SGD (Abadi et al., 2016, 1607.00133, algorithm 1).

    In each step a client draws each of its n rows independently with probability q = b/n, clips the gradient of each
    to the norm C over all trained tensors, adds N(0, z²C²) once to every coordinate of the sum, divides by b, and takes
    one step of its optimizer. A step without rows is a step of noise. The terms of the objective, which depend on no
    row, are added after the noise. `training.max_grad_norm` is not applied.

    What is reported has no loss, no tokens and no seconds: they depend on the rows that were drawn.
    """

    packed: PackedModel
    lora: CohortLora
    settings: LocalTraining
    views: Mapping[ClientId, ClientModel]
    data: Mapping[ClientId, Sequence[Tokens]]
    seed: int
    privacy: ExamplePrivacy
    account: Account
    objective: Objective = field(default_factory=Objective)
    control: Tensors = field(default_factory=dict)
    private: Mapping[ClientId, Tensors] = field(default_factory=dict)
    failures: dict[ClientId, ClientFailure] = field(default_factory=dict)
    reported: dict[ClientId, Progress] = field(default_factory=dict)
    optimizers: dict[ClientId, LocalOptimizer] = field(default_factory=dict)

    def run(
        self, work: Sequence[Work], round_number: int, observe: ObserveTraining
    ) -> dict[ClientId, dict[str, float]]:
        """Train the clients of `work` and return the metrics of those that did not fail: planned steps and rows.

        A client whose noised gradient is not finite, or whose budget is spent, is added to `failures`.
        """
        less_memory = checkpointing(self.packed.model) if self.settings.gradient_checkpointing else nullcontext()
        with self.packed.packing(), less_memory:
            for one in work:
                self._train(one, round_number, observe)
        # The gate takes no count below 1, and the number of target tokens depends on the rows that were drawn.
        return {w.client: {"steps": w.steps, "targets": w.rows} for w in work if w.client not in self.failures}

    def _train(self, work: Work, round_number: int, observe: ObserveTraining) -> None:
        optimizer = self._optimizer(work.client)
        at_once = max(1, min(math.ceil(planned_batch(work)), self.settings.clients_at_once))
        gradients = ExampleGradients(self.packed, self.lora, optimizer, self.settings, at_once)
        randomness = self.account(work, len(self.data[work.client]))
        if randomness is None:
            failure = ClientFailure(work.client, round_number, "refused", "its privacy budget is spent")
            self.failures[work.client] = failure
            return
        with self.lora.attached():
            self._steps(work, optimizer, gradients, randomness, round_number, observe)

    def _steps(
        self,
        work: Work,
        optimizer: LocalOptimizer,
        gradients: ExampleGradients,
        randomness: Randomness,
        round_number: int,
        observe: ObserveTraining,
    ) -> None:
        client, rows = work.client, self.data[work.client]
        batch, rate = planned_batch(work), sampling_rate(work, len(rows))
        deviation = self.privacy.noise_multiplier * self.privacy.clip
        for step, learning_rate in enumerate(work.learning_rates):
            optimizer.begin(step)
            drawn = [(rows[i], self._dropout(work, step, int(i))) for i in drawn_rows(len(rows), rate, randomness)]
            totals = gradients.clipped_sum(drawn, self.privacy.clip)
            norm = float(optimizer.settle_with(noised(totals, deviation, batch, randomness)))
            if not math.isfinite(norm):
                detail = f"the gradient became {norm} in local step {step + 1}"
                self.failures[client] = ClientFailure(client, round_number, "diverged", detail)
            else:
                optimizer.step(learning_rate)
            done = step + 1 == work.steps
            state: State = "failed" if client in self.failures else "done" if done else "training"
            self.reported[client] = Progress(state, step + 1, work.steps)
            observe(self.reported)
            if client in self.failures:
                return

    def _optimizer(self, client: ClientId) -> LocalOptimizer:
        view = self.views[client]
        (slot,) = self.lora.hold([view.adapter], trainable=True).held
        made = LocalOptimizer(slot, view, self.settings, self.objective, self.control, self.private.get(client))
        self.optimizers[client] = made
        return made

    def _dropout(self, work: Work, step: int, row: int) -> int:
        """The seed of a row's dropout masks. It depends on no other row, so that none moves this one's gradient."""
        if not self.settings.dropout:
            return 0
        return derive(self.seed, "dropout", work.client, "example", work.first_row, step, row)
