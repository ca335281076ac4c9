"""The plan of a run: what stays the same over its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from shepherd.clients.learning_rates import effective_steps
from shepherd.clients.slots import probe_work
from shepherd.clients.virtual_clock import virtual_seconds
from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.experiment.client_privacy import client_level
from shepherd.experiment.example_privacy import example_level
from shepherd.experiment.method import Composition, check_clients, prepare_selection
from shepherd.experiment.named_clients import client_ranks
from shepherd.experiment.schedule import Schedule
from shepherd.round import Plan, Policy
from shepherd.server.method import Method
from shepherd.server.transform_conflicts import conflicts
from shepherd.server.weights import population_weights
from shepherd.types import ClientId, Objective, SlotChoice, TransformSpec, Work
from shepherd.updates.composition import build_transforms
from shepherd.updates.gate import Gate, Limits


def prepare_plan(
    config: Config,
    composition: Composition,
    sizes: Mapping[ClientId, int],
    schedule: Schedule,
    labels: Mapping[ClientId, str] = {},
) -> Plan:
    """What stays the same over the rounds; the gate still lacks the run's id and the tokenizer's digest.

    sizes: the training rows of each client, all that a plan knows of them. labels: their names in the data, where they
    are others. Raises the UsageError of `check_clients`.
    """
    federation, method = config.federation, composition.method
    clients = tuple(sorted(sizes))
    check_clients(config, composition, clients, labels)
    ranks = client_ranks(config.lora, clients, labels)
    sizes = {client: sizes[client] for client in clients}

    def work(client: ClientId, round_number: int, first_row: int) -> Work:
        count, steps = schedule.share(sizes[client])
        return Work(client, first_row, count, schedule.rates(steps, round_number))

    selection, size = prepare_selection(config, method, clients)
    plan = Plan(
        seed=config.run.seed,
        clients=clients,
        cohort_size=size,
        select=selection,
        method=replace(method, population=population_weights(sizes, federation.weights, federation.max_weight)),
        weights=federation.weights,
        min_updates=federation.min_updates,
        work=work,
        rank=ranks.__getitem__,
        objective=Objective(**config.objective.model_dump() | {"rate_ratio": composition.rate_ratio}),
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
        clusters=composition.personal.clusters,
        clip=federation.clip_update_norm,
        privacy=client_level(config, clients, size),
        probed={c: _probed_rows(method, work(c, 1, 0), sizes[c]) for c in clients if ranks[c] < config.lora.r},
        gate=partial(Gate, Limits(norm=federation.max_update_norm)),
        effective_steps=partial(_effective_steps, config, composition),
    )
    return replace(plan, examples=example_level(config, plan))


def with_transforms(plan: Plan, specs: Sequence[TransformSpec], r: int) -> Plan:
    """The plan with these transforms of updates, in their order on a client. r: the rank of the global adapter.

    Raises UsageError, for all problems at once, for unknown names and options and for what the plan cannot give them.
    """
    transforms = build_transforms(specs)
    problems = list(
        conflicts(
            transforms,
            plan.method,
            weights=plan.weights,
            scaffold=plan.objective.scaffold,
            clusters=plan.clusters,
            mixed_ranks=any(plan.rank(client) < r for client in plan.clients),
        )
    )
    for transform in transforms.built if plan.privacy is not None else ():
        if transform.on_server is not None:
            what = transform.setting or f'transform "{transform.name}"'
            problems.append(
                f"[privacy] and the server half of {what} do not fit: it comes before the noise; leave it out"
            )
    if text := "\n".join(problems):
        raise UsageError(text)
    return replace(plan, transforms=transforms)


def _effective_steps(config: Config, composition: Composition, work: Work, steps: int, round_number: int) -> float:
    """FedNova's τ_k, in steps of the recipe's learning rate; all clients have that unit, whatever their first rate.

    With rate_ratio ≠ 1 the proximal term shrinks A and B by unlike factors, and A's are taken where A moves. Adam, and
    the proximal term on increments, have no a_k: there it is the sum of the rates.
    """
    training, objective = config.training, config.objective
    given = work.learning_rates[:steps]
    if training.optimizer != "sgd":
        return effective_steps(given, training.learning_rate)
    both = any("A" in moves for moves in composition.method.pieces.train.of(round_number)[0])
    ratio = 1.0 if both else composition.rate_ratio
    mu = objective.proximal if objective.proximal_form == "factors" else 0.0
    peak = ratio * training.learning_rate
    return effective_steps([ratio * rate for rate in given], peak, training.momentum, mu)


def _probed_rows(method: Method, work: Work, held: int) -> int:
    """Rows of the probe of a client that has to choose its slots, in a round of this work."""
    steps = method.pieces.view.probe
    return 0 if steps is None else probe_work(work, SlotChoice(0, steps), held).rows
