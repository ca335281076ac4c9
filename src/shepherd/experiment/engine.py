"""The engine of a run: in this process, or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from shepherd.engines.local import LocalEngine
from shepherd.engines.workers import Workers
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.trainer import worker_engine
from shepherd.round import Engine


@contextmanager
def open_engine(inputs: Inputs, run_id: str) -> Iterator[Engine]:
    """Who trains the clients, until the block ends. Workers share the threads of this process."""
    table, clients, examples = inputs.config.run, inputs.data.clients, inputs.plan.examples
    host = inputs.trainer.host(clients)
    local = LocalEngine(host if examples is None else replace(host, account=examples.accounts.enter))
    if not table.workers:
        yield local
        return
    threads = max(1, torch.get_num_threads() // table.workers)
    build = partial(worker_engine, inputs.resolved, threads)
    if examples is not None:
        build = partial(build, open_ledger=examples.accounts.open_ledger)
    with Workers(table.workers, build, clients, local, run=run_id, patience=table.patience) as workers:
        yield workers
