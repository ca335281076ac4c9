"""Config -> everything that training needs: base, template, tokens per client, held-out rows, adapters' shape."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from shepherd.clients.learning_rates import effective_steps, learning_rates
from shepherd.clients.slots import probe_work
from shepherd.clients.virtual_clock import virtual_seconds
from shepherd.config import Config, TrainingTable
from shepherd.experiment.method import (
    check_clients,
    client_ranks,
    prepare_method,
    prepare_personal,
    prepare_selection,
    rate_ratio,
)
from shepherd.experiment.rows import FederatedData
from shepherd.round import Plan, Policy
from shepherd.server.method import Method
from shepherd.server.weights import population_weights
from shepherd.types import ClientId, Objective, SlotChoice, Work
from shepherd.updates.gate import Gate, Limits

TOKENS_PER_PASS = {"cpu": 512, "mps": 4096, "cuda": 16384}


def share(rows: int, training: TrainingTable) -> tuple[int, int]:
    """(rows, optimizer steps) of a client with so many rows in one round; a batch is never larger than the client."""
    batch = min(training.batch_size, rows)
    if training.local_steps:
        return training.local_steps * batch, training.local_steps
    asked = max(1, round(training.local_epochs * rows))
    return asked, math.ceil(asked / batch)


def peak_rate(config: Config, arm: str = "federated") -> float:
    """The peak learning rate of an arm: its own where one is set, or that of the federated arm."""
    return config.evaluation.own_rates.get(arm, config.training.learning_rate)


def rates(config: Config, steps: int, round_number: int, arm: str = "federated") -> tuple[float, ...]:
    """The learning rates of a client's steps in a round (from 1)."""
    t = config.training
    return learning_rates(
        peak_rate(config, arm),
        steps,
        least=t.min_learning_rate,
        schedule=t.schedule,
        over=t.schedule_over,
        round_index=round_number - 1,
        rounds=config.federation.rounds,
        warmup_steps=t.warmup_steps,
        warmup_rounds=t.warmup_rounds,
    )


def prepare_plan(config: Config, rows: FederatedData) -> Plan:
    """What stays the same over the rounds; the gate still lacks the run's id and the tokenizer's digest.

    Raises the UsageError of `check_clients`.
    """
    federation = config.federation
    check_clients(config, tuple(sorted(rows.clients)), rows.partition.labels)
    method = prepare_method(config)
    ranks = client_ranks(config.lora, sorted(rows.clients), rows.partition.labels)

    def work(client: ClientId, round_number: int, first_row: int) -> Work:
        count, steps = share(len(rows.clients[client]), config.training)
        return Work(client, first_row, count, rates(config, steps, round_number))

    clients = tuple(sorted(rows.clients))
    sizes = {client: len(rows.clients[client]) for client in clients}
    selection, size = prepare_selection(config, method, clients)
    return Plan(
        seed=config.run.seed,
        clients=clients,
        cohort_size=size,
        select=selection,
        method=replace(method, population=population_weights(sizes, federation.weights, federation.max_weight)),
        weights=federation.weights,
        min_updates=federation.min_updates,
        work=work,
        rank=ranks.__getitem__,
        objective=Objective(**config.objective.model_dump() | {"rate_ratio": rate_ratio(config)}),
        policy=Policy(
            on_too_few=federation.on_too_few,
            retries=federation.retries,
            over_select=federation.over_select,
            deadline=federation.deadline,
            quarantine_after=federation.quarantine_after,
            max_weight=federation.max_weight,
            clock=lambda work, number: virtual_seconds(config.run.seed, work, number),
        ),
        sizes=sizes,
        clusters=prepare_personal(config, method).clusters,
        probed={
            c: _probed_rows(method, work(c, 1, 0), len(rows.clients[c])) for c in clients if ranks[c] < config.lora.r
        },
        gate=partial(Gate, Limits(norm=federation.max_update_norm)),
        effective_steps=lambda work, steps, number: _effective_steps(config, method, work, steps, number),
    )


def _effective_steps(config: Config, method: Method, work: Work, steps: int, round_number: int) -> float:
    """FedNova's τ_k, in steps of the recipe's learning rate; all clients have that unit, whatever their first rate.

    With rate_ratio ≠ 1 the proximal term shrinks A and B by unlike factors, and A's are taken where A moves. Adam, and
    the proximal term on increments, have no a_k: there it is the sum of the rates.
    """
    training, objective = config.training, config.objective
    given = work.learning_rates[:steps]
    if training.optimizer != "sgd":
        return effective_steps(given, training.learning_rate)
    both = any("A" in moves for moves in method.pieces.train.of(round_number)[0])
    ratio = 1.0 if both else rate_ratio(config)
    mu = objective.proximal if objective.proximal_form == "factors" else 0.0
    peak = ratio * training.learning_rate
    return effective_steps([ratio * rate for rate in given], peak, training.momentum, mu)


def _probed_rows(method: Method, work: Work, held: int) -> int:
    """Rows of the probe of a client that has to choose its slots, in a round of this work."""
    steps = method.pieces.view.probe
    return 0 if steps is None else probe_work(work, SlotChoice(0, steps), held).rows
