"""The client side of IFCA (Ghosh et al., 2006.04088): choose the cluster of least loss and train its adapter.

    losses = cluster_losses(adapters, rows, packed, lora, tokens_per_pass)    # {client: float64[M]}
    number = pick(losses[client])                                             # from 1

A client chooses by the loss on its training rows. The choice does not depend on the other clients of the batch
(decision 0008).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from shepherd.clients.cohort import Cohort
from shepherd.clients.progress import ObserveTraining, Progress
from shepherd.clients.row_order import next_rows
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import ROWS_MULTIPLE, PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.packing import Row, cut, pack
from shepherd.types import CLUSTER, Adapter, ClientFailure, ClientId, ClientUpdate, Tensors, Tokens, TrainTask

HOMELESS = "its loss is not finite under the adapter of any cluster"


def cluster_losses(
    adapters: Mapping[ClientId, Sequence[Adapter]],
    rows: Mapping[ClientId, Sequence[Tokens]],
    packed: PackedModel,
    lora: CohortLora,
    tokens_per_pass: int,
) -> dict[ClientId, np.ndarray]:
    """The mean loss of each client under each of its M adapters, in nats per target token: float64[M].

    The clients form one batch with a slot for each; M passes over the rows, one for each adapter.
    """
    clients = tuple(adapters)
    items = [Row(slot, row) for slot, client in enumerate(clients) for row in rows[client]]
    sums = np.zeros((len(clients), len(next(iter(adapters.values()), ()))))
    for number in range(sums.shape[1]):
        lora.hold([adapters[client][number] for client in clients])
        with packed.packing(), lora.attached(), torch.no_grad():
            for part in cut(items, tokens_per_pass):
                batch = pack(part, ROWS_MULTIPLE).to(packed.device)
                lora.segments = batch.segments
                for segment, value in zip(batch.target_segments, packed.loss_sums(batch).tolist(), strict=True):
                    sums[segment.slot, number] += value
    targets = [sum(row.targets for row in rows[client]) for client in clients]
    return {client: own / count for client, own, count in zip(clients, sums, targets, strict=True)}


def pick(losses: np.ndarray) -> int:
    """The number (from 1) of the cluster of least loss, the first among equals; 0 where no loss is finite."""
    finite = np.isfinite(losses)
    return 1 + int(np.argmin(np.where(finite, losses, np.inf))) if finite.any() else 0


def judged(rows: Sequence[Tokens], client: ClientId, first: int, count: int, most: int, seed: int) -> list[Tokens]:
    """The rows on which a client compares clusters: its next `count` rows, at most all that it holds.

    most: an upper bound on their number, 0 for none.
    """
    return next_rows(rows, client, first, min(count, len(rows), most or count), seed)


def train_in_clusters(
    task: TrainTask,
    private: Mapping[ClientId, Tensors],
    host: TrainingHost,
    observe: ObserveTraining = lambda report: None,
) -> Iterator[ClientUpdate | ClientFailure]:
    """Train the global adapter as `train` does, then the adapter of each client's chosen cluster.

    Both on the rows of the round, `clients_at_once` together; an update contains both deltas.
    """
    reported: dict[ClientId, Progress] = {}
    settings, data = host.settings, host.data

    def watch(report: Mapping[ClientId, Progress]) -> None:
        reported.update(report)
        observe(report)

    found = {answer.client: answer for answer in train(task, private, host, watch)}
    updates = {name: answer for name, answer in found.items() if isinstance(answer, ClientUpdate)}
    names = sorted(updates)
    lora = host.make_lora()
    for start in range(0, len(names), settings.clients_at_once):
        chunk = names[start : start + settings.clients_at_once]
        rows = {
            name: judged(data[name], name, work.first_row, work.rows, settings.personal.rows, task.seed)
            for name, work in ((name, task.work[name]) for name in chunk)
        }
        adapters = {name: [view.adapter for view in task.clusters[name]] for name in chunk}
        losses = cluster_losses(adapters, rows, host.packed, lora, settings.tokens_per_pass)
        picks = {name: pick(losses[name]) for name in chunk}
        for name in (name for name, number in picks.items() if not number):
            found[name] = ClientFailure(name, task.round, "diverged", HOMELESS)
        views = {name: task.clusters[name][number - 1] for name, number in picks.items() if number}
        if not views:
            continue
        cohort = Cohort(
            host.packed, lora, settings, views, data, task.seed, task.objective,
            before=reported, trainings=settings.personal.cost.trainings,
        )  # fmt: skip
        metrics = cohort.run([task.work[name] for name in views], task.round, observe)
        for name, failure in cohort.failures.items():
            found[name] = replace(failure, detail=f"of its cluster's adapter {failure.detail}")
        for name in metrics:
            update = updates[name]
            delta = {f"{CLUSTER}{key}": change for key, change in cohort.optimizers[name].delta().items()}
            measured = {**update.metrics, "cluster_loss": metrics[name]["loss"]}
            found[name] = replace(update, delta={**update.delta, **delta}, metrics=measured, cluster=picks[name])
    yield from (found[name] for name in sorted(found))
