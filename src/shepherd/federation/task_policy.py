"""The policy of a site, applied to a task.

    judge_round(card, policy, rows)                     # before the first task: "", or the reason against each round
    judge_task(task, message, card, policy, now, rows)  # "", or the code of the first reason against it

A site does not trust the coordinator: a task has to be the site's alone, of the card's base, method and objective, and
within the policy's sizes, steps, rates and rounds. Rows, steps and order of a round follow from the card, so that no
two tasks differ by a row; what is trained and sent follows from its method, so that what stays at the site stays there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from shepherd.clients.local_work import local_work
from shepherd.errors import UsageError
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.messages import Finish, Train
from shepherd.federation.policy import is_allowed, method_of, names_code, personalization_of, texts_in
from shepherd.federation.site_privacy import clip_of_the_card, fits_the_card, is_drawn
from shepherd.federation.window import is_open
from shepherd.types import ClientModel, TrainTask, Work
from shepherd.updates.composition import transforms

MOST_HEADER_BYTES = 2**24
"""Bytes of the names, shapes and fields of a task, which take many times as much memory when they are read."""


def judge_round(card: RunCard, policy: Policy, rows: int) -> str:
    """ "rows" or "steps" where every round of a site that states `rows` would be against the policy; "" otherwise."""
    trained, steps = _work(card, rows)
    if not policy.min_rows_round <= trained <= policy.max_rows:
        return "rows"
    return "steps" if steps > policy.max_local_steps else ""


def judge_task(
    task: TrainTask, message: Train | Finish, card: RunCard, policy: Policy, now: datetime, rows: int
) -> str:
    """The code of the first reason against a task; "" for none. rows: of the site, as it stated them."""
    client, finishing = message.client, isinstance(message, Finish)
    if task.round != message.round or list(task.work) != [client]:
        return "task"
    work, views = task.work[client], (task.views[client], *task.clusters.get(client, ()))
    reasons = {
        "window": not is_open(policy.window, now),
        "cohort": isinstance(message, Train) and not is_drawn(card) and message.cohort < policy.least_cohort,
        "rounds": not 1 <= task.round <= min(card.federation.rounds + finishing, policy.max_rounds + finishing),
        "steps": work.steps > policy.max_local_steps,
        "rows": not policy.min_rows_round <= work.rows <= policy.max_rows
        or _effective_rows(work) < policy.min_rows_round,
        "rates": max(work.learning_rates) > (policy.max_learning_rate if finishing else _highest_rate(card, policy)),
        "base": any(view.adapter.base_digest != card.base.digest for view in views),
        "transform": not (finishing and not task.transforms) and not _transforms_of_the_card(task, card, policy),
        "size": any(view.adapter.num_parameters > card.parameters for view in views),
        "privacy": not (finishing or fits_the_card(task, card)),
        "task": not _fits(task, card, views)
        or not (finishing or (_work_of_the_card(work, card, rows) and _views_of_the_method(task, card, views))),
    }
    return next((code for code, against in reasons.items() if against), "")


def _transforms_of_the_card(task: TrainTask, card: RunCard, policy: Policy) -> bool:
    """Whether the transforms are those of the card, in order, after the clipping that it asks for; all are built-in."""
    given = [(spec.name, dict(spec.options)) for spec in task.transforms]
    names = [name for name, _ in given]
    if any(map(names_code, texts_in([options for _, options in given]))):
        return False
    if not all(is_allowed(name, transforms, policy.transforms) for name in names):
        return False
    agreed = [(transform.name, dict(transform.options)) for transform in card.transforms]
    if is_drawn(card):
        return clip_of_the_card(given, task.round, card) and given[1:] == agreed
    norm = card.federation.clip_update_norm
    if norm == "median":  # that of the last round's updates, which the site does not know
        return (given[1:] if names[:1] == ["clip"] else given) == agreed
    return given == ([("clip", {"norm": norm})] if norm else []) + agreed


def _fits(task: TrainTask, card: RunCard, views: tuple[ClientModel, ...]) -> bool:
    """Whether objective, seed, rank and clusters of a task are those of the card."""
    agreed_on, given, personal = card.objective, task.objective, personalization_of(card)
    objective = (given.proximal, given.proximal_form, given.rate_ratio, given.scaffold)
    agreed = (agreed_on.proximal, agreed_on.proximal_form, agreed_on.rate_ratio, agreed_on.scaffold)
    return (
        objective == agreed
        and task.seed == card.seed
        and (given.scaffold or not task.control)
        and all(view.adapter.r <= card.lora.r for view in views)
        and len(views) - 1 in (0, personal.clusters if personal else 0)
    )


def _effective_rows(work: Work) -> float:
    """Rows of a task, weighed by the learning rates of their steps: a step at a rate of 0 shows nothing of its rows."""
    highest = max(work.learning_rates)
    return work.rows * sum(work.learning_rates) / (highest * work.steps) if highest else 0.0


def _highest_rate(card: RunCard, policy: Policy) -> float:
    return min(card.training.learning_rate * (1 + 1e-9), policy.max_learning_rate)  # rounding of a schedule


def _work_of_the_card(work: Work, card: RunCard, rows: int) -> bool:
    """Whether a round's rows and steps are those of the card, for a site that stated `rows`."""
    return (work.rows, work.steps) == _work(card, rows)


def _work(card: RunCard, rows: int) -> tuple[int, int]:
    training = card.training
    return local_work(rows, training.batch_size, training.local_steps, training.local_epochs)


def _views_of_the_method(task: TrainTask, card: RunCard, views: tuple[ClientModel, ...]) -> bool:
    """Whether a task trains, sends and leaves at the site what the method of the card does."""
    method = method_of(card)
    if method is None:
        return False
    pieces = method.pieces
    trains, sends = pieces.train.of(task.round)
    try:
        local = [method.local_modules(view.adapter.factors) for view in views]
    except UsageError:
        return False
    return (
        all((view.trains, view.sends) == (trains, sends) for view in views)
        and [view.local_modules for view in views] == local
        and all((view.core is not None) == pieces.view.of_cores for view in views)
        and all(view.choice is None or pieces.view.probe == view.choice.steps for view in views)
        and (not task.remainder or pieces.remainder.keeps or pieces.start.needs_base)
    )


def shown_of_a_step(work: Work, card: RunCard, policy: Policy) -> Literal["losses", "counts", "steps"]:
    """What the progress of a task may show: a loss is a measure of the rows of a step, of which the smallest is the
    last one where they do not divide evenly. By DP-SGD the drawn rows are a secret, and so are counts of them."""
    if card.privacy is not None and card.privacy.unit == "example":
        return "steps"
    smallest = min(card.training.batch_size, work.rows - (work.steps - 1) * card.training.batch_size)
    return "losses" if smallest >= policy.least_group else "counts"
