"""Local training of a cohort: a task and the clients' tokens in, one update per client out.

The cohort is one batch: each step takes the next rows of every client, runs the frozen base once over all of them
and minimises the sum over clients of each client's own mean, so that training K clients together gives what K
separate trainings give. A real site runs the same code with a cohort of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from shepherd.clients.moving import Moving
from shepherd.clients.personal import Personalization, home_tensors, second_tensors, second_view, with_home
from shepherd.clients.reports import Progress, StepReport
from shepherd.clients.slots import best_slots, probe_work
from shepherd.model.checkpointing import checkpointing
from shepherd.model.forward import ROWS_MULTIPLE, PackedModel, Row, cut, pack
from shepherd.model.lora import CohortLora
from shepherd.rng import derive, stream
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientId,
    ClientUpdate,
    Objective,
    Tensors,
    Tokens,
    TrainTask,
    View,
    Work,
)


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
    personal: Personalization = field(default_factory=Personalization)

    @property
    def tokens_measured(self) -> int:
        """Most tokens in a pass that measures: it keeps nothing for a backward pass."""
        return 2 * self.tokens_per_pass


@dataclass(frozen=True)
class Site:
    """Where clients are trained: the frozen base, how to make an empty cohort on its layers, the settings, the rows."""

    packed: PackedModel
    make_lora: Callable[[], CohortLora]
    settings: LocalTraining
    data: Mapping[ClientId, Sequence[Tokens]]


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
            orders[epoch] = _order(size, client, epoch, seed)
        picked.append(tokens[orders[epoch][index]])
    return picked


def times_walked(size: int, client: ClientId, rows: int, seed: int) -> np.ndarray:
    """int[size]: how often each of a client's rows is among the first `rows` of its walk."""
    passes, rest = divmod(rows, size)
    times = np.full(size, passes)
    times[_order(size, client, passes, seed)[:rest]] += 1
    return times


def _order(size: int, client: ClientId, epoch: int, seed: int) -> np.ndarray:
    return stream(seed, "shuffle", client, epoch).permutation(size)


@dataclass
class Course:
    """One client's way through a round: its slot, its rows step by step, its rates, and what came of it so far."""

    slot: int
    batches: list[list[tuple[int, Tokens]]]  # per step: (place in the walk, row)
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
    views: Mapping[ClientId, View]
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
            client: Moving(
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

    def _course(self, work: Work) -> Course:
        rows = walk(self.data[work.client], work.client, work.first_row, work.rows, self.seed)
        numbered = list(enumerate(rows, start=work.first_row))
        ends = [work.rows_of(step) for step in range(work.steps + 1)]
        batches = [numbered[start:end] for start, end in pairwise(ends)]
        return Course(self.clients.index(work.client), batches, work.learning_rates)

    def _progress(self, client: ClientId, way: Course) -> Progress:
        before = self.before.get(client, Progress())
        step, steps = before.step + len(way.losses), self.trainings * len(way.rates)
        state = "failed" if client in self.failures else "done" if step == steps else "training"
        loss = way.losses[-1] if way.losses else math.nan
        spent = before.targets + way.targets, before.tokens + way.tokens, before.seconds + way.seconds
        return Progress(state, step, steps, loss, *spent)

    def _step(self, active: Mapping[ClientId, Course], step: int, round_number: int) -> None:
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
        self, ways: Sequence[tuple[ClientId, Course]], rows: Sequence[Row], counts: Mapping[int, int], step: int
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


def train(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    site: Site,
    observe: Callable[[StepReport], None] = lambda report: None,
) -> Iterator[ClientUpdate | ClientFailure]:
    """Train the task's clients, `clients_at_once` together; yields one update or failure per client, sorted by name."""
    names, settings = sorted(task.work), site.settings
    lora = site.make_lora().lay(task.remainder)
    # Before there are clusters, nothing but the global adapter is trained.
    trainings = settings.personal.cost.trainings if task.clusters or not settings.personal.clusters else 1
    for start in range(0, len(names), settings.clients_at_once):
        chunk = names[start : start + settings.clients_at_once]
        views = {name: with_home(task.views[name], private.get(name, {})) for name in chunk}
        answers: dict[ClientId, ClientUpdate | ClientFailure] = {}
        told: Mapping[ClientId, Progress] = {}
        if any(view.choice is not None for view in views.values()):
            views, answers, told = _probed(task, views, private, site, lora, trainings, observe)
        if views:
            cohort = Cohort(
                site.packed, lora, settings, views, site.data, task.seed, task.objective, task.control, private,
                before=told, trainings=trainings,
            )  # fmt: skip
            metrics = cohort.run([task.work[name] for name in views], task.round, observe)
            answers |= cohort.failures
            for name in metrics:
                before = private.get(name, {})
                answers[name] = _update(task, name, cohort.moving[name], metrics[name], len(site.data[name]), before)
            told = cohort.told
            del cohort  # its optimizers need not stay in memory beside those of the second adapters
        if settings.personal.in_rounds:
            answers |= _second_adapters(task, private, site, lora, answers, told, observe)
        yield from (answers[name] for name in chunk)


def _probed(
    task: TrainTask,
    views: Mapping[ClientId, View],
    private: Mapping[ClientId, Tensors],
    site: Site,
    lora: CohortLora,
    trainings: int,
    observe: Callable[[StepReport], None],
) -> tuple[dict[ClientId, View], dict[ClientId, ClientUpdate | ClientFailure], dict[ClientId, Progress]]:
    """(the views with every choice of slots made, the clients that failed on the way, what was told of all).

    A probe is the round's own training with all slots; nothing of it but the choice is kept.
    """
    free = {name: replace(view, choice=None) for name, view in views.items() if view.choice is not None}
    cohort = Cohort(
        site.packed, lora, site.settings, free, site.data, task.seed, task.objective, task.control, private
    )  # fmt: skip
    told: dict[ClientId, Progress] = {}

    def report(probe: Mapping[ClientId, Progress]) -> None:  # of the round's steps none is done yet
        for name, row in probe.items():
            state = row.state if row.state == "failed" else "training"
            told[name] = row._replace(state=state, step=0, steps=trainings * task.work[name].steps, targets=0)
        observe(dict(told))

    work = [probe_work(task.work[name], views[name].choice, len(site.data[name])) for name in free]
    made = {
        name: views[name].chosen(
            best_slots(free[name].adapter, cohort.moving[name].tensors(), views[name].choice.budget)
        )
        for name in cohort.run(work, task.round, report)
    }
    failures: dict[ClientId, ClientUpdate | ClientFailure] = {
        name: replace(failure, detail=f"of its probe {failure.detail}") for name, failure in cohort.failures.items()
    }
    return {name: made.get(name, view) for name, view in views.items() if name not in failures}, failures, told


def _update(
    task: TrainTask,
    client: ClientId,
    moving: Moving,
    metrics: Mapping[str, float],
    num_examples: int,
    before: Tensors,
) -> ClientUpdate:
    travels, kept = moving.controls()
    return ClientUpdate(
        client=client,
        round=task.round,
        delta=moving.delta() | travels,
        num_examples=num_examples,
        num_tokens=int(metrics["targets"]),
        steps=int(metrics["steps"]),
        metrics={"loss": metrics["loss"], "last_loss": metrics["last_loss"]},
        private={**before, **kept, **home_tensors(moving.view, moving.tensors())},
        slots=moving.view.slots if task.views[client].choice is not None else {},
    )


def _second_adapters(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    site: Site,
    lora: CohortLora,
    answers: Mapping[ClientId, ClientUpdate | ClientFailure],
    told: Mapping[ClientId, Progress],
    observe: Callable[[StepReport], None],
) -> dict[ClientId, ClientUpdate | ClientFailure]:
    """The clients of these updates train their second adapters on the rows of the round, and keep them."""
    updates = {name: answer for name, answer in answers.items() if isinstance(answer, ClientUpdate)}
    if not updates:
        return {}
    personal = site.settings.personal
    anchors = {name: task.views[name].adapter for name in updates} if personal.pull is not None else {}
    views = {n: second_view(personal, task.views[n], private.get(n, {}), task.seed, n) for n in updates}
    objective = replace(personal.pull or Objective(), rate_ratio=task.objective.rate_ratio)
    cohort = Cohort(
        site.packed, lora, site.settings, views, site.data, task.seed, objective, anchors=anchors,
        before=told, trainings=personal.cost.trainings,
    )  # fmt: skip
    metrics = cohort.run([task.work[name] for name in updates], task.round, observe)
    found: dict[ClientId, ClientUpdate | ClientFailure] = {
        name: replace(failure, detail=f"of its second adapter {failure.detail}")
        for name, failure in cohort.failures.items()
    }
    for name in metrics:
        kept = {**updates[name].private, **second_tensors(task.views[name], cohort.moving[name].tensors())}
        told = {**updates[name].metrics, "personal_loss": metrics[name]["loss"]}
        found[name] = replace(updates[name], private=kept, metrics=told)
    return found
