"""Models of a client's own, which never travel: parts that stay at home, a second adapter, tuning afterwards.

Three ways, in order of what they cost a client:

- parts at home: what a view lets move but not travel stays with the client and is in force again in its next round.
  FedSA-LoRA (2410.01463) shares A and keeps B. It follows from the view alone (federation.method = "fedsa_lora").
- `finetune`: the final global model, trained on for some steps on the client's rows.
- `ditto`: a second adapter for each client, trained in the same rounds and pulled towards the global one.

What a client keeps between rounds is in `ClientUpdate.private`, by the names below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from shepherd.errors import ClientError
from shepherd.registry import Registry
from shepherd.types import Adapter, ClientId, Factors, Objective, Tensors, View

HOME = "home/"
"""Prefix of parts at home: `home/<module>.B`."""
PERSONAL = "personal/"
"""Prefix of a client's second adapter: `personal/<module>.A`, `personal/<module>.B`."""

personalizations = Registry("personalization")


class Cost(NamedTuple):
    """What a client pays in all. trainings, forwards: how often it trains on its rows of a round, and how often it only
    takes their losses; steps: optimizer steps after the last round.
    """

    trainings: int = 1
    forwards: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Personalization:
    """What clients do for a model of their own beside the rounds.

    pull: strength and form of Ditto's proximal term, while a second adapter is trained; None has none. steps: optimizer
    steps after the last round, at `learning_rate`, or the run's where that is 0.
    """

    name: str = "none"
    pull: Objective | None = None
    steps: int = 0
    learning_rate: float = 0.0

    @property
    def cost(self) -> Cost:
        """What progress and `shepherd check` count."""
        return Cost(trainings=1 if self.pull is None else 2, steps=self.steps)


@personalizations
def none() -> Personalization:
    """No model of their own, but for parts that the method leaves with the clients."""
    return Personalization()


@personalizations
def finetune(steps: int = 10, learning_rate: float = 0.0) -> Personalization:
    """The final global model, tuned for some steps on the client's own rows.

    steps: optimizer steps of training.batch_size rows. learning_rate: theirs, constant; 0 is training.learning_rate.
    """
    if steps < 1 or learning_rate < 0:
        raise ValueError(f"steps must be at least 1 and learning_rate at least 0, got {steps} and {learning_rate:g}")
    return Personalization("finetune", steps=steps, learning_rate=learning_rate)


@personalizations
def ditto(strength: float = 0.1, form: Literal["factors", "product"] = "factors") -> Personalization:
    """A second adapter in each client, trained beside and pulled towards the global one (Ditto, Li et al., 2012.04221).

    v ← v − η(∇F(v) + λ(v − θ_t)) on the rows that the client trains on anyway, so a round costs twice. strength is λ:
    0 trains alone, a large one stays at the global adapter. form "product" pulls the increments s·BA instead, which do
    not depend on how they are factored.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be at least 0 and finite, got {strength:g}")
    return Personalization("ditto", pull=Objective(proximal=strength, proximal_form=form))


def at_home(view: View) -> tuple[str, ...]:
    """The parts that the view lets move but not travel: () or ("B",) or ("A",)."""
    if view.core is not None:
        return ()
    return tuple(part for part in "AB" if part not in view.sends and any(part in moves for moves in view.trains))


def with_home(view: View, private: Tensors) -> View:
    """The view with the client's own parts in place of the server's. Raises ClientError for parts of another shape."""
    parts = at_home(view)
    if not any(name.startswith(HOME) for name in private) or not parts:
        return view
    factors = {}
    for module, pair in view.adapter.factors.items():
        own = {part: private[f"{HOME}{module}.{part}"] for part in parts}
        for part, array in own.items():
            expected = getattr(pair, part).shape
            if array.shape != expected:
                raise ClientError(
                    f"the client keeps {module}.{part}{list(array.shape)}, its view has {list(expected)}",
                    hint="a part at home needs the same rank in every round: set lora.ranks, or another method",
                )
        factors[module] = pair._replace(**own)
    return replace(view, adapter=replace(view.adapter, factors=factors))


def home_tensors(view: View, learned: Tensors) -> dict[str, np.ndarray]:
    """What stays at home of what a client has learned (tensors by the names of View.tensors)."""
    return {f"{HOME}{name}": array for name, array in learned.items() if name.rsplit(".", 1)[1] in at_home(view)}


def second_adapter(view: View, private: Tensors) -> Adapter:
    """The client's second adapter; the view's own before its first round, and where the ranks differ."""
    factors = {}
    for module, pair in view.adapter.factors.items():
        own = [private.get(f"{PERSONAL}{module}.{part}") for part in "AB"]
        if any(a is None or a.shape != b.shape for a, b in zip(own, pair, strict=True)):
            return view.adapter
        factors[module] = Factors(*own)
    return replace(view.adapter, factors=factors)


def second_tensors(learned: Tensors) -> dict[str, np.ndarray]:
    """A trained second adapter by the names under which the client keeps it."""
    return {f"{PERSONAL}{name}": array for name, array in learned.items()}


def own_adapter(view: View, private: Tensors) -> Adapter | None:
    """A client's model of its own, beside the remainder of the global one: from its view and what it keeps, or None."""
    if any(name.startswith(PERSONAL) for name in private):
        return second_adapter(view, private)
    if at_home(view) and any(name.startswith(HOME) for name in private):
        return with_home(view, private).adapter
    return None


def own_adapters(views: Mapping[ClientId, View], kept: Mapping[ClientId, Tensors]) -> dict[ClientId, Adapter]:
    """The models of all clients that have one."""
    found = {client: own_adapter(view, kept.get(client, {})) for client, view in views.items()}
    return {client: adapter for client, adapter in found.items() if adapter is not None}
