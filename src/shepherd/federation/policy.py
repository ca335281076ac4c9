"""What a site takes part in: its policy applied to a run card, before any row is touched.

    judge(card, policy, own)                 # "admitted", or the code of the first reason against it

Only built-in names are allowed, whatever is registered or imported. Tasks: see task_policy.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shepherd.clients.personal.methods import Personalization, personalizations
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.site_privacy import DP, is_drawn, judge_privacy
from shepherd.federation.verdicts import ADMITTED
from shepherd.registry import Registry
from shepherd.server.composition import REGISTRIES
from shepherd.server.method import Method
from shepherd.server.methods import build_method, methods
from shepherd.server.optimizer import optimizers
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
    federation, personal = card.federation, personalization_of(card)
    reasons = {
        "version": card.version != own.version,
        "base": card.base.digest != own.base
        or bool(policy.bases and not any(card.base.digest.startswith(digest) for digest in policy.bases)),
        "tokenizer": card.tokenizer != own.tokenizer,
        "outside-code": any(map(names_code, _names(card))),
        "optimizer": not is_allowed(_optimizer(card)[0], optimizers, ()),
        "method": not is_allowed(federation.method, methods, policy.methods)
        or method_of(card) is None
        or bool(policy.methods and _replaced(card)),  # a name allows the method, not others under its name
        "personalization": not is_allowed(card.personalization.name, personalizations, policy.personalizations)
        or personal is None,
        "transform": not all(is_allowed(t.name, transforms, policy.transforms) for t in card.transforms),
        "rounds": federation.rounds > policy.max_rounds,
        "steps": max(card.training.local_steps, personal.steps if personal else 0) > policy.max_local_steps,
        "rates": max(card.training.learning_rate, personal.learning_rate if personal else 0) > policy.max_learning_rate,
        "size": card.parameters > policy.max_parameters,
        "cohort": not is_drawn(card) and federation.min_updates < policy.least_cohort,
        "require": not {*policy.require} - {DP} <= own.protections.union(card.offers),
    }
    found = next((code for code, against in reasons.items() if against), "")
    return found or judge_privacy(card, policy, method_of(card), personal.clusters if personal else 0) or ADMITTED


def names_code(text: str) -> bool:
    """Whether a name stands for code of a module: `module:function`."""
    return ":" in text


def builtin(registry: Registry) -> set[str]:
    """The names that this package has registered; those of plug-ins and of the user are left out."""
    return {name for name in registry if registry.get(name).__module__.partition(".")[0] == "shepherd"}


def is_allowed(name: str, registry: Registry, allowed: Collection[str]) -> bool:
    """Whether a name is built-in and one of those allowed; an empty list allows all built-in ones."""
    return name in builtin(registry) and (not allowed or name in allowed)


def _names(card: RunCard) -> Iterator[str]:
    """All texts of a card that could name code: everything but its name, its template and the targets in the base."""
    yield from (card.federation.method, card.personalization.name, *(t.name for t in card.transforms))
    yield from texts_in([card.method, card.server, card.personalization.options, *(t.options for t in card.transforms)])


def texts_in(value: Any) -> Iterator[str]:
    """All texts among the values of JSON."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from texts_in(inner)


def method_of(card: RunCard) -> Method | None:
    """The method of a card; None where its pieces are not built-in, or do not fit each other."""
    optimizer, options = _optimizer(card)
    named: list[tuple[Any, Registry]] = [(card.federation.method, methods), (optimizer, optimizers)]
    if any(type(name) is not str or name not in builtin(registry) for name, registry in named):
        return None
    for kind in _replaced(card):
        spec = card.method[kind]
        name = spec if not isinstance(spec, Mapping) else spec.get("name", "")  # "": options of the method's own piece
        if type(name) is not str or ((name or spec == name) and name not in builtin(REGISTRIES[kind])):
            return None
    try:
        return build_method(card.federation.method, card.method, optimizer, options)
    except Exception:  # whatever a value of another kind leads to
        return None


def _replaced(card: RunCard) -> set[str]:
    """The kinds of the pieces of its method that a card replaces. The method is a known one."""
    return card.method.keys() & REGISTRIES.keys() - methods.options(card.federation.method).keys()


def _optimizer(card: RunCard) -> tuple[str, Mapping[str, Any]]:
    options = {key: value for key, value in card.server.items() if key != "optimizer"}
    return str(card.server.get("optimizer", "fedavg")), options


def personalization_of(card: RunCard) -> Personalization | None:
    """The personalization of a card; None where its options are not those of a built-in one."""
    name, options = card.personalization.name, card.personalization.options
    if name not in builtin(personalizations) or "name" in options:
        return None
    try:
        return personalizations.build(name, options)
    except Exception:  # whatever a value of another kind leads to
        return None
