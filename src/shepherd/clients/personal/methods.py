"""Personalization: local parts, a second adapter, local fine-tuning, clusters.

Five ways to a model per client:

- local parts: what a client trains and does not send, it restores in its next round. They follow from the
  `ClientModel` alone. FedSA-LoRA (2410.01463) shares A and keeps B (federation.method = "fedsa_lora"); after FedPer
  (1912.00818) some modules stay local, those of the last blocks ("fedper_lora").
- `finetune`: the final global model, trained for further steps on the client's rows.
- `ditto`: a second adapter for each client, trained in the same rounds and pulled towards the global one.
- `feddpa`: a second adapter, mixed with the global one by the similarity of an input to the client's rows.
- `ifca`: the adapter of the one of M clusters that fits the client's rows best; all clients of a cluster train it,
  so it is sent (ifca.py).

A client's state between rounds is in `ClientUpdate.private`, by the names below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from shepherd.clients.personal.feddpa import Mix, beside_shared, initial_local
from shepherd.clients.personal.joined import last_slots
from shepherd.errors import ClientError
from shepherd.registry import Registry
from shepherd.types import Adapter, ClientId, ClientModel, Factors, Objective, Tensors

LOCAL = "home/"
"""Prefix of local parts: `home/<module>.A`, `home/<module>.B`."""
PERSONAL = "personal/"
"""Prefix of a client's second adapter: `personal/<module>.A`, `personal/<module>.B`."""

personalizations = Registry("personalization")


class Cost(NamedTuple):
    """The cost of a personalization to a client.

    trainings: passes of local training over the rows of a round. steps: optimizer steps after the last round.
    """

    trainings: int = 1
    steps: int = 0


@dataclass(frozen=True)
class Personalization:
    """The settings of a personalization.

    pull: strength and form of Ditto's proximal term, None without one. steps: optimizer steps after the last round, at
    `learning_rate` (0: that of the run). mix: FedDPA's settings. clusters: the number of clusters, 0 for none. rows:
    the most rows on which a client compares clusters, 0 for all.
    """

    name: str = "none"
    pull: Objective | None = None
    steps: int = 0
    learning_rate: float = 0.0
    mix: Mix | None = None
    clusters: int = 0
    rows: int = 0

    @property
    def in_rounds(self) -> bool:
        """Whether clients train a second adapter in every round."""
        return self.pull is not None or (self.mix is not None and not self.steps)

    @property
    def cost(self) -> Cost:
        """The cost that progress and `shepherd check` account for."""
        return Cost(trainings=2 if self.in_rounds or self.clusters else 1, steps=self.steps)


@personalizations
def none() -> Personalization:
    """No personal models, except for local parts of the method."""
    return Personalization()


@personalizations
def finetune(steps: int = 10, learning_rate: float = 0.0) -> Personalization:
    """The final global model, fine-tuned for some steps on the rows of each client.

    steps: optimizer steps of training.batch_size rows. learning_rate: constant; 0 is training.learning_rate.
    """
    if steps < 1 or learning_rate < 0:
        raise ValueError(f"steps must be at least 1 and learning_rate at least 0, got {steps} and {learning_rate:g}")
    return Personalization("finetune", steps=steps, learning_rate=learning_rate)


@personalizations
def ditto(strength: float = 0.1, form: Literal["factors", "product"] = "factors") -> Personalization:
    """A second adapter in each client, trained with and pulled towards the global one (Ditto, Li et al., 2012.04221).

    v ← v − η(∇F(v) + λ(v − θ_t)) on the rows of the round, which doubles its cost. strength: λ; 0 is local training, a
    large λ stays at the global adapter. form: "product" pulls the increments s·BA instead, which are gauge-invariant.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be at least 0 and finite, got {strength:g}")
    return Personalization("ditto", pull=Objective(proximal=strength, proximal_form=form))


@personalizations
def feddpa(
    variant: Literal["F", "T"] = "F",
    weight: float = 0.5,
    samples: int = 5,
    share: float = 0.0,
    steps: int = 0,
    learning_rate: float = 0.0,
) -> Personalization:
    """A local adapter mixed with the global one for each input (FedDPA, Yang et al., 2403.19211; experimental).

    h = W0 x + (1 − λ) s B_g A_g x + λ s B_l A_l x, where λ is `weight` times the mean cosine of the input with
    `samples` of the client's own training rows: see clients/personal/mixture.py.
    variant "F": after the last round the local adapter starts from the global one and is tuned for `steps` (0: 10) at
    `learning_rate` (0: training.learning_rate). "T": it starts with B = 0 and is trained in every round, on the rows of
    the round, together with the frozen global adapter of the start of the round. share: the weight a of the local
    adapter in training, with 1 − a for the global one; 0 is the default of the variant: 1 in F (alone), 0.5 in T.

    As in the authors' code (Lydia-yang/FedDPA): λ from the last layer's state of the prompt's last token under the
    local adapter alone, five rows, weight 0.5, no floor at 0; in T weights of 0.5 and a separately trained global
    adapter, so that messages are those without personal models (their option of joint training is off). As in accounts
    of the paper: the initialisation of F. Different: rows drawn once (theirs: for each input), the local adapter of T
    is trained in the first round too, and F may have share < 1. Experimental: the paper's text and the layer that
    applies T's two weights were not available; which adapter has which weight matters away from 0.5.
    """
    problems = {
        f"weight must be 0 to 1, got {weight:g}": not 0 <= weight <= 1,
        f"samples must be at least 1, got {samples}": samples < 1,
        f"share must be more than 0 and at most 1, or 0 for the variant's own, got {share:g}": not 0 <= share <= 1,
        f"steps and learning_rate must be at least 0, got {steps} and {learning_rate:g}": min(steps, learning_rate) < 0,
        'steps and learning_rate are those of variant "F": "T" trains in the rounds, as the global adapter does': (
            variant == "T" and bool(steps or learning_rate)
        ),
    }
    if any(problems.values()):
        raise ValueError("; ".join(problem for problem, holds in problems.items() if holds))
    mix = Mix(weight, samples, share or {"F": 1.0, "T": 0.5}[variant])
    return Personalization("feddpa", steps=0 if variant == "T" else steps or 10, learning_rate=learning_rate, mix=mix)


@personalizations
def ifca(clusters: int = 2, rows: int = 0) -> Personalization:
    """A model for each cluster of clients; a client trains the one of least loss on its rows (IFCA, 2006.04088).

    clusters: their number M. Each client receives all M and returns one update. rows: the most rows for the choice, a
    forward pass per cluster; 0 is all rows of the round. clusters = 1 is equivalent to the global model.
    """
    if clusters < 1 or rows < 0:
        raise ValueError(f"clusters must be at least 1 and rows at least 0, got {clusters} and {rows}")
    return Personalization("ifca", clusters=clusters, rows=rows)


def local_parts(view: ClientModel) -> list[tuple[str, str]]:
    """(module, part) of everything that a client trains and does not send.

    These are A or B of all modules where that factor is trained but not sent, and both factors of the local modules,
    even in rounds that train only one of them.
    """
    if view.core is not None:
        return []
    kept = [part for part in "AB" if part not in view.sends and any(part in moves for moves in view.trains)]
    return [(name, part) for name in view.adapter.factors for part in ("AB" if name in view.local_modules else kept)]


def with_local_parts(view: ClientModel, private: Tensors) -> ClientModel:
    """The client model with the client's local parts restored. Raises ClientError for parts of another shape."""
    factors, parts = dict(view.adapter.factors), local_parts(view)
    for module, part in parts:
        kept, expected = private.get(f"{LOCAL}{module}.{part}"), getattr(factors[module], part).shape
        if kept is None:  # its first round with this part
            continue
        if kept.shape != expected:
            raise ClientError(
                f"the client keeps {module}.{part}{list(kept.shape)}, its view has {list(expected)}",
                hint="a local part needs the same rank in every round: set lora.ranks, or another method",
            )
        factors[module] = factors[module]._replace(**{part: kept})
    return replace(view, adapter=replace(view.adapter, factors=factors)) if parts else view


def local_tensors(view: ClientModel, trained: Tensors) -> dict[str, np.ndarray]:
    """The local parts among the trained tensors, by the names under which the client keeps them."""
    return {f"{LOCAL}{module}.{part}": trained[f"{module}.{part}"] for module, part in local_parts(view)}


def second_adapter(view: ClientModel, private: Tensors) -> Adapter:
    """The client's second adapter; the received one where it has none yet, or where the ranks differ."""
    return _kept(view, private) or view.adapter


def second_view(
    personal: Personalization, view: ClientModel, private: Tensors, seed: int, client: ClientId
) -> ClientModel:
    """The client model for training the second adapter, with the global one frozen for FedDPA."""
    if personal.mix is None:
        return ClientModel(second_adapter(view, private))
    local = _kept(view, private) or initial_local(view.adapter, seed, client)
    return beside_shared(view.adapter, local, personal.mix.share)


def second_tensors(view: ClientModel, trained: Tensors) -> dict[str, np.ndarray]:
    """The second adapter after training from `second_view`, by the names under which the client keeps it."""
    return {f"{PERSONAL}{name}": array for name, array in last_slots(trained, view.adapter.r).items()}


def tuned_from(personal: Personalization, adapter: Adapter) -> ClientModel:
    """The client model to tune after the last round: this adapter, with FedDPA joined with a frozen copy of it."""
    return ClientModel(adapter) if personal.mix is None else beside_shared(adapter, adapter, personal.mix.share)


def tuned(adapter: Adapter, trained: Tensors) -> Adapter:
    """The adapter after training from `tuned_from`."""
    last = last_slots(trained, adapter.r)
    return replace(adapter, factors={name: Factors(last[f"{name}.A"], last[f"{name}.B"]) for name in adapter.factors})


def own_adapter(view: ClientModel, private: Tensors) -> Adapter | None:
    """The personal adapter of a client, from the received model and its private tensors; None without one.

    The remainder of the global model also applies to it.
    """
    if any(name.startswith(PERSONAL) for name in private):
        return second_adapter(view, private)
    if any(f"{LOCAL}{module}.{part}" in private for module, part in local_parts(view)):
        return with_local_parts(view, private).adapter
    return None


def _kept(view: ClientModel, private: Tensors) -> Adapter | None:
    factors = {}
    for module, pair in view.adapter.factors.items():
        A, B = (private.get(f"{PERSONAL}{module}.{part}") for part in "AB")
        if A is None or B is None or (A.shape, B.shape) != (pair.A.shape, pair.B.shape):
            return None
        factors[module] = Factors(A, B)
    return replace(view.adapter, factors=factors)


def own_adapters(views: Mapping[ClientId, ClientModel], kept: Mapping[ClientId, Tensors]) -> dict[ClientId, Adapter]:
    """The personal adapters {client: adapter} of all clients that have one."""
    found = {client: own_adapter(view, kept.get(client, {})) for client, view in views.items()}
    return {client: adapter for client, adapter in found.items() if adapter is not None}
