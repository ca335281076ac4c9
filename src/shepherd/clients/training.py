"""Local training of a cohort: a task and the clients' tokens in, one update or failure per client out.

The cohort is one batch: each step takes the next rows of every client, runs the frozen base once over all of them
and minimises the sum over clients of each client's own mean, so that training K clients together gives what K
separate trainings give. A real site runs the same code with a cohort of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from shepherd.clients.cohort import Cohort
from shepherd.clients.example_level.cohort import ExampleCohort
from shepherd.clients.example_level.sampling import Randomness
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.personal.methods import local_tensors, second_tensors, second_view, with_local_parts
from shepherd.clients.progress import ObserveTraining, Progress
from shepherd.clients.settings import LocalTraining
from shepherd.clients.slots import best_slots, probe_work
from shepherd.errors import ClientError
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
    Work,
)
from shepherd.updates.composition import Transforms, build_transforms


@dataclass(frozen=True)
class TrainingHost:
    """The resources of local training: the frozen base, a factory of adapter slots on its layers, settings and rows.

    account(task, work, rows held): enters a client's steps in its privacy ledger and gives the randomness for them;
    None where its budget is spent.
    """

    packed: PackedModel
    make_lora: Callable[[], CohortLora]
    settings: LocalTraining
    data: Mapping[ClientId, Sequence[Tokens]]
    account: Callable[[TrainTask, Work, int], Randomness | None] | None = None


def train(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    host: TrainingHost,
    observe: ObserveTraining = lambda report: None,
) -> Iterator[ClientUpdate | ClientFailure]:
    """Train the clients of a task, `clients_at_once` together; yield an update or failure for each, sorted by name.

    Raises UsageError for a transform that is not known here.
    """
    names, settings = sorted(task.work), host.settings
    at_once = settings.clients_at_once if task.privacy is None else 1
    transforms = build_transforms(task.transforms)
    lora = host.make_lora().lay(task.remainder)
    # Before clusters exist, the global adapter alone is trained.
    trainings = settings.personal.cost.trainings if task.clusters or not settings.personal.clusters else 1
    for start in range(0, len(names), at_once):
        chunk = names[start : start + at_once]
        views = {name: with_local_parts(task.views[name], private.get(name, {})) for name in chunk}
        replies: dict[ClientId, ClientUpdate | ClientFailure] = {}
        reported: Mapping[ClientId, Progress] = {}
        if any(view.choice is not None for view in views.values()):
            views, replies, reported = _probed(task, views, private, host, lora, trainings, observe)
        if views:
            cohort = _cohort(task, views, private, host, lora, reported, trainings)
            metrics = cohort.run([task.work[name] for name in views], task.round, observe)
            replies |= cohort.failures
            for name in metrics:
                before = private.get(name, {})
                replies[name] = _update(
                    task, name, cohort.optimizers[name], metrics[name], len(host.data[name]), before, transforms
                )
            reported = cohort.reported
            del cohort  # its optimizers need not stay in memory beside those of the second adapters
        if settings.personal.in_rounds:
            replies |= _second_adapters(task, private, host, lora, replies, reported, observe)
        yield from (replies[name] for name in chunk)


def _cohort(
    task: TrainTask,
    views: Mapping[ClientId, ClientModel],
    private: Mapping[ClientId, Tensors],
    host: TrainingHost,
    lora: CohortLora,
    reported: Mapping[ClientId, Progress],
    trainings: int,
) -> Cohort | ExampleCohort:
    """The clients with these models, for the round: as one batch, or each by DP-SGD where the task has `privacy`."""
    if task.privacy is None:
        return Cohort(
            host.packed, lora, host.settings, views, host.data, task.seed, task.objective, task.control, private,
            before=reported, trainings=trainings,
        )  # fmt: skip
    if host.account is None:
        raise ClientError("the task is one of DP-SGD, and there is no ledger here for its steps")
    return ExampleCohort(
        host.packed, lora, host.settings, views, host.data, task.seed, task.privacy, partial(host.account, task),
        task.objective, task.control, private,
    )  # fmt: skip


def _probed(
    task: TrainTask,
    views: Mapping[ClientId, ClientModel],
    private: Mapping[ClientId, Tensors],
    host: TrainingHost,
    lora: CohortLora,
    trainings: int,
    observe: ObserveTraining,
) -> tuple[dict[ClientId, ClientModel], dict[ClientId, ClientUpdate | ClientFailure], dict[ClientId, Progress]]:
    """(client models with all slots chosen, failures of probes, progress of all clients).

    A probe is the local training of the round with all slots; only the choice of slots is kept.
    """
    choices = {name: view.choice for name, view in views.items() if view.choice is not None}
    free = {name: replace(views[name], choice=None) for name in choices}
    cohort = Cohort(
        host.packed, lora, host.settings, free, host.data, task.seed, task.objective, task.control, private
    )  # fmt: skip
    reported: dict[ClientId, Progress] = {}

    def report(probe: Mapping[ClientId, Progress]) -> None:  # none of the round's steps is done yet
        for name, row in probe.items():
            state = row.state if row.state == "failed" else "training"
            reported[name] = row._replace(state=state, step=0, steps=trainings * task.work[name].steps, targets=0)
        observe(dict(reported))

    work = [probe_work(task.work[name], choices[name], len(host.data[name])) for name in free]
    made = {
        name: views[name].chosen(
            best_slots(free[name].adapter, cohort.optimizers[name].tensors(), choices[name].budget)
        )
        for name in cohort.run(work, task.round, report)
    }
    failures: dict[ClientId, ClientUpdate | ClientFailure] = {
        name: replace(failure, detail=f"of its probe {failure.detail}") for name, failure in cohort.failures.items()
    }
    return {name: made.get(name, view) for name, view in views.items() if name not in failures}, failures, reported


def _update(
    task: TrainTask,
    client: ClientId,
    moving: LocalOptimizer,
    metrics: Mapping[str, float],
    num_examples: int,
    before: Tensors,
    transforms: Transforms,
) -> ClientUpdate:
    """The update of a client after its local training, as its transforms let it leave."""
    travels, kept = moving.controls()
    update = ClientUpdate(
        client=client,
        round=task.round,
        delta=moving.delta() | travels,
        num_examples=num_examples,
        num_tokens=int(metrics["targets"]),
        steps=int(metrics["steps"]),
        metrics={name: metrics[name] for name in ("loss", "last_loss") if name in metrics},
        private={**before, **kept, **local_tensors(moving.view, moving.tensors())},
        slots=(moving.view.slots or {}) if task.views[client].choice is not None else {},
    )
    return transforms.on_client(update, moving.view, task.seed)


def _second_adapters(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    host: TrainingHost,
    lora: CohortLora,
    replies: Mapping[ClientId, ClientUpdate | ClientFailure],
    reported: Mapping[ClientId, Progress],
    observe: ObserveTraining,
) -> dict[ClientId, ClientUpdate | ClientFailure]:
    """Train the second adapters of the clients with updates, on the rows of the round, and keep them at the clients."""
    updates = {name: answer for name, answer in replies.items() if isinstance(answer, ClientUpdate)}
    if not updates:
        return {}
    personal = host.settings.personal
    anchors = {name: task.views[name].adapter for name in updates} if personal.pull is not None else {}
    views = {n: second_view(personal, task.views[n], private.get(n, {}), task.seed, n) for n in updates}
    objective = replace(personal.pull or Objective(), rate_ratio=task.objective.rate_ratio)
    cohort = Cohort(
        host.packed, lora, host.settings, views, host.data, task.seed, objective, anchors=anchors,
        before=reported, trainings=personal.cost.trainings,
    )  # fmt: skip
    metrics = cohort.run([task.work[name] for name in updates], task.round, observe)
    found: dict[ClientId, ClientUpdate | ClientFailure] = {
        name: replace(failure, detail=f"of its second adapter {failure.detail}")
        for name, failure in cohort.failures.items()
        if task.privacy is None  # else a training without noise would decide what leaves
    }
    for name in metrics:
        kept = {**updates[name].private, **second_tensors(task.views[name], cohort.optimizers[name].tensors())}
        measured = {**updates[name].metrics, "personal_loss": metrics[name]["loss"]} if task.privacy is None else {}
        found[name] = replace(updates[name], private=kept, metrics=measured)
    return found
