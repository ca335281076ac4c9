"""Local training of a cohort: a task and the clients' tokens in, one update per client out.

The cohort is one batch: each step takes the next rows of every client, runs the frozen base once over all of them
and minimises the sum over clients of each client's own mean, so that training K clients together gives what K
separate trainings give. A real site runs the same code with a cohort of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shepherd.clients.cohort import Cohort
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.personal.methods import home_tensors, second_tensors, second_view, with_home
from shepherd.clients.progress import ObserveTraining, Progress
from shepherd.clients.settings import LocalTraining
from shepherd.clients.slots import best_slots, probe_work
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import (
    ClientFailure,
    ClientId,
    ClientModel,
    ClientUpdate,
    Objective,
    Tensors,
    Tokens,
    TrainTask,
)


@dataclass(frozen=True)
class TrainingHost:
    """Where clients are trained: the frozen base, how to make an empty cohort on its layers, the settings, the rows."""

    packed: PackedModel
    make_lora: Callable[[], CohortLora]
    settings: LocalTraining
    data: Mapping[ClientId, Sequence[Tokens]]


def train(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    site: TrainingHost,
    observe: ObserveTraining = lambda report: None,
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
    views: Mapping[ClientId, ClientModel],
    private: Mapping[ClientId, Tensors],
    site: TrainingHost,
    lora: CohortLora,
    trainings: int,
    observe: ObserveTraining,
) -> tuple[dict[ClientId, ClientModel], dict[ClientId, ClientUpdate | ClientFailure], dict[ClientId, Progress]]:
    """(the views with every choice of slots made, the clients that failed on the way, what was told of all).

    A probe is the round's own training with all slots; nothing of it but the choice is kept.
    """
    choices = {name: view.choice for name, view in views.items() if view.choice is not None}
    free = {name: replace(views[name], choice=None) for name in choices}
    cohort = Cohort(
        site.packed, lora, site.settings, free, site.data, task.seed, task.objective, task.control, private
    )  # fmt: skip
    told: dict[ClientId, Progress] = {}

    def report(probe: Mapping[ClientId, Progress]) -> None:  # of the round's steps none is done yet
        for name, row in probe.items():
            state = row.state if row.state == "failed" else "training"
            told[name] = row._replace(state=state, step=0, steps=trainings * task.work[name].steps, targets=0)
        observe(dict(told))

    work = [probe_work(task.work[name], choices[name], len(site.data[name])) for name in free]
    made = {
        name: views[name].chosen(best_slots(free[name].adapter, cohort.moving[name].tensors(), choices[name].budget))
        for name in cohort.run(work, task.round, report)
    }
    failures: dict[ClientId, ClientUpdate | ClientFailure] = {
        name: replace(failure, detail=f"of its probe {failure.detail}") for name, failure in cohort.failures.items()
    }
    return {name: made.get(name, view) for name, view in views.items() if name not in failures}, failures, told


def _update(
    task: TrainTask,
    client: ClientId,
    moving: LocalOptimizer,
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
        slots=(moving.view.slots or {}) if task.views[client].choice is not None else {},
    )


def _second_adapters(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    site: TrainingHost,
    lora: CohortLora,
    answers: Mapping[ClientId, ClientUpdate | ClientFailure],
    told: Mapping[ClientId, Progress],
    observe: ObserveTraining,
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
        measured = {**updates[name].metrics, "personal_loss": metrics[name]["loss"]}
        found[name] = replace(updates[name], private=kept, metrics=measured)
    return found
