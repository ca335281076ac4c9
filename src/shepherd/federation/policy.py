"""What a site takes part in: its policy applied to a run card, and to each task, before any row is touched.

    judge(card, policy, own)                 # "admitted", or the code of the first reason against it
    judge_task(task, message, card, policy)  # "", or a code

A site does not trust the coordinator: a task has to be the site's alone, of the card's base, method and objective, and
within the policy's sizes, steps, rates and rounds. Only built-in names are allowed, whatever is registered or imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shepherd.clients.personal.methods import personalizations
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.messages import Finish, Train
from shepherd.federation.verdicts import ADMITTED
from shepherd.federation.window import is_open
from shepherd.registry import Registry
from shepherd.server.methods import methods
from shepherd.server.optimizer import optimizers
from shepherd.types import ClientModel, TrainTask
from shepherd.updates.composition import transforms


@dataclass(frozen=True)
class Own:
    """What a site has: digests of its base and tokenizer, its version, and what its transport protects (`require`)."""

    base: str
    tokenizer: str
    version: str
    protections: frozenset[str] = frozenset()


def largest_answer(card: RunCard) -> int:
    """Bytes of the largest answer: an update in float32 with control variates, and those of a cluster."""
    return 2**20 + 16 * card.parameters


def judge(card: RunCard, policy: Policy, own: Own) -> str:
    """The verdict on a card, but for rows, hours and approval: "admitted", or the code of the first reason against."""
    federation = card.federation
    reasons = {
        "version": card.version != own.version,
        "base": card.base.digest != own.base
        or bool(policy.bases and not any(card.base.digest.startswith(digest) for digest in policy.bases)),
        "tokenizer": card.tokenizer != own.tokenizer,
        "outside-code": any(map(names_code, _names(card))),
        "method": not _allowed(federation.method, methods, policy.methods),
        "optimizer": not _allowed(str(card.server.get("optimizer", "fedavg")), optimizers, ()),
        "personalization": not _allowed(card.personalization.name, personalizations, policy.personalizations),
        "transform": not all(_allowed(t.name, transforms, policy.transforms) for t in card.transforms),
        "rounds": federation.rounds > policy.max_rounds,
        "steps": card.training.local_steps > policy.max_local_steps,
        "rates": card.training.learning_rate > policy.max_learning_rate,
        "size": card.parameters > policy.max_parameters,
        "cohort": federation.min_updates < policy.least_cohort,
        "require": not set(policy.require) <= own.protections.union(card.offers),
    }
    return next((code for code, against in reasons.items() if against), ADMITTED)


def judge_task(task: TrainTask, message: Train | Finish, card: RunCard, policy: Policy, now: datetime) -> str:
    """The code of the first reason against a task; "" for none."""
    client, finishing = message.client, isinstance(message, Finish)
    if task.round != message.round or list(task.work) != [client]:
        return "task"
    work, views = task.work[client], (task.views[client], *task.clusters.get(client, ()))
    reasons = {
        "window": not is_open(policy.window, now),
        "cohort": isinstance(message, Train) and message.cohort < policy.least_cohort,
        "rounds": not 1 <= task.round <= min(card.federation.rounds + finishing, policy.max_rounds + finishing),
        "steps": work.steps > policy.max_local_steps,
        "rows": not policy.min_rows_round <= work.rows <= policy.max_rows,
        "rates": max(work.learning_rates) > policy.max_learning_rate,
        "base": any(view.adapter.base_digest != card.base.digest for view in views),
        "transform": not _transforms_of_the_card(task, card, policy),
        "size": any(view.adapter.num_parameters > card.parameters for view in views),
        "task": not _fits(task, card, views),
    }
    return next((code for code, against in reasons.items() if against), "")


def names_code(text: str) -> bool:
    """Whether a name stands for code of a module: `module:function`."""
    return ":" in text


def builtin(registry: Registry) -> set[str]:
    """The names that this package has registered; those of plug-ins and of the user are left out."""
    return {name for name in registry if registry.get(name).__module__.partition(".")[0] == "shepherd"}


def _allowed(name: str, registry: Registry, allowed: Collection[str]) -> bool:
    return name in builtin(registry) and (not allowed or name in allowed)


def _names(card: RunCard) -> Iterator[str]:
    """All texts of a card that could name code: everything but its name, its template and the targets in the base."""
    yield from (card.federation.method, card.personalization.name, *(t.name for t in card.transforms))
    yield from _texts([card.method, card.server, card.personalization.options, *(t.options for t in card.transforms)])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _texts(inner)


def _transforms_of_the_card(task: TrainTask, card: RunCard, policy: Policy) -> bool:
    """Whether the transforms are those of the card, in order, after the clipping that it asks for; all are built-in."""
    names = [spec.name for spec in task.transforms]
    if any(map(names_code, _texts([dict(spec.options) for spec in task.transforms]))):
        return False
    if not all(_allowed(name, transforms, policy.transforms) for name in names):
        return False
    clips = names[:1] == ["clip"] and card.federation.clip_update_norm != 0
    return names[clips:] == [transform.name for transform in card.transforms]


def _fits(task: TrainTask, card: RunCard, views: tuple[ClientModel, ...]) -> bool:
    """Whether objective, rank and clusters of a task are those of the card."""
    agreed_on, given = card.objective, task.objective
    objective = (given.proximal, given.proximal_form, given.rate_ratio, given.scaffold)
    agreed = (agreed_on.proximal, agreed_on.proximal_form, agreed_on.rate_ratio, agreed_on.scaffold)
    return (
        objective == agreed
        and (given.scaffold or not task.control)
        and all(view.adapter.r <= card.lora.r for view in views)
        and (card.personalization.name == "ifca" or not task.clusters)
    )
