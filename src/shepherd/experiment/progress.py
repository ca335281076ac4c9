"""Reports of clients -> progress events: a row per client, share of the planned tokens, tokens per second, ETA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from shepherd.arms import Arm
from shepherd.clients.personal.methods import Cost
from shepherd.clients.progress import Progress, StepReport
from shepherd.experiment.events import ClientRow, Emit
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.schedule import Schedule
from shepherd.round import Plan
from shepherd.types import ClientId


class Reporter:
    """The phases, warnings and seconds of a run, as events."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.clock = emit, Clock()

    @contextmanager
    def phase(self, name: str, arm: str | None = None) -> Iterator[None]:
        """Announce a phase and charge its seconds to it; training is charged to its arm."""
        self.emit({"event": "phase", "phase": name, "arm": arm, "detail": ""})
        with self.clock.on(arm if name == "train" and arm else name):
            yield

    def detail(self, phase: str, text: str) -> None:
        """A line about what takes long within a phase."""
        self.emit({"event": "phase", "phase": phase, "arm": None, "detail": text})

    def warn(self, *messages: str) -> None:
        for message in messages:
            self.emit({"event": "warning", "message": message})


def training_tokens(
    schedule: Schedule,
    baselines: Sequence[Arm],
    rows: FederatedData,
    plan: Plan,
    local: Sequence[ClientId],
    cost: Cost,
) -> dict[str, float]:
    """About how many tokens each arm trains on, probes included. Baselines pay no more for personal models."""
    length = {c: float(np.mean([len(t.input_ids) for t in held])) for c, held in rows.clients.items()}
    once = {c: plan.work(c, 1, 0).rows * length[c] for c in rows.clients}
    rounds, batch = schedule.rounds, schedule.batch_size
    cohort = rounds * plan.asked * float(np.mean(list(once.values())))
    probes = rounds * plan.asked * float(np.mean([plan.probed.get(c, 0) * length[c] for c in once]))
    first = cohort / rounds if plan.clusters else 0.0  # in the first round there are no clusters to train
    tokens = {"federated": cohort * cost.trainings - first + probes}
    for arm in baselines:
        tokens[arm.name] = arm.budget * (rounds * sum(once[c] for c in local) if arm.per_client else cohort)
    if cost.steps:
        tokens["personal"] = cost.steps * sum(min(batch, len(held)) * length[c] for c, held in rows.clients.items())
    return tokens


def step_tokens(plan: Plan, rows: FederatedData) -> dict[ClientId, float]:
    """The mean tokens of a step of each client, from the planned rows; empty where clients report their tokens."""
    if plan.examples is None:
        return {}
    work = {client: plan.work(client, 1, 0) for client in rows.clients}
    return {
        client: work[client].rows / work[client].steps * float(np.mean([len(row.input_ids) for row in held]))
        for client, held in rows.clients.items()
    }


class Clock:
    """Seconds by what they were spent on. What is timed within something else counts only there, so all add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within = ["other"]
        self.since = time.perf_counter()

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        self._charge()
        self.within.append(name)
        try:
            yield
        finally:
            self._charge()
            self.within.pop()

    def read(self) -> dict[str, float]:
        """Until now, with their sum as "total"."""
        self._charge()
        return {**self.seconds, "total": sum(self.seconds.values())}

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self.within[-1]] = self.seconds.get(self.within[-1], 0.0) + now - self.since
        self.since = now


class Meter:
    """The share of its planned tokens that a run has trained on. `skip` counts those of an earlier process."""

    def __init__(
        self, emit: Emit, planned: Mapping[str, float], rounds: int, of_a_step: Mapping[ClientId, float] | None = None
    ) -> None:
        """planned: about how many tokens each arm trains on (`training_tokens`).

        of_a_step: the mean number in a step of clients that report no tokens, in the federated arm.
        """
        self.emit, self.planned, self.rounds, self.of_a_step = emit, planned, rounds, of_a_step or {}
        self.skipped = self.done = 0.0
        self.begin = time.perf_counter()

    def skip(self, arm: str, share: float = 1.0) -> None:
        """Count a share of an arm that an earlier process has trained."""
        self.skipped += share * self.planned.get(arm, 0.0)

    def steps(self, arm: str) -> Callable[[int, StepReport], None]:
        """The observer of one arm's rounds: a "step" event after steps, a "clients" event where only states changed."""
        rows: dict[str, tuple[int, Progress]] = {}  # client -> round of its last report, its progress

        def observe(number: int, report: StepReport) -> None:
            stepped = False
            for client, news in report.items():
                known_in, known = rows.get(client, (number, Progress()))
                known = known if known_in == number else Progress()
                now = known._replace(state=news) if isinstance(news, str) else news
                rows[client] = number, now
                self.done += now.tokens - known.tokens
                if arm == "federated":
                    self.done += (now.step - known.step) * self.of_a_step.get(client, 0.0)
                stepped |= now.step != known.step or now.tokens != known.tokens
            changed = {client: _row(rows[client][1]) for client in report}
            if not stepped:
                self.emit({"event": "clients", "arm": arm, "round": number, "rounds": self.rounds, "clients": changed})
                return
            rate = self.done / (time.perf_counter() - self.begin)
            left = max(0.0, sum(self.planned.values()) - self.done - self.skipped)  # the plan is about right, no more
            self.emit(
                {
                    "event": "step",
                    "arm": arm,
                    "round": number,
                    "rounds": self.rounds,
                    "clients": changed,
                    "tokens_per_second": rate,
                    "fraction": self.fraction,
                    "eta_seconds": left / rate if rate else None,
                }
            )

        return observe

    @property
    def fraction(self) -> float:
        """The share of all planned tokens that is done, by this process or an earlier one."""
        return min(1.0, (self.done + self.skipped) / sum(self.planned.values()))


def _row(progress: Progress) -> ClientRow:
    """A client in an event. `tokens` are those with a loss, `seen_tokens` all that went through the base."""
    return {
        "step": progress.step, "steps": progress.steps,
        "loss": progress.loss if math.isfinite(progress.loss) else None,
        "tokens": progress.targets, "state": progress.state, "seen_tokens": progress.tokens,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
    }  # fmt: skip
