"""Transforms of updates: what a client does to its update before it is sent, and what the server adds to a round.

    @transforms
    def clip(norm: float) -> Transform:
        \"\"\"Scale an update down to an L2 norm of at most `norm`.\"\"\"
        def on_client(update, start, rng): ...
        return Transform(on_client=on_client)

Clipping (clipping.py), compression and masking are client halves; privacy noise and a decoded sum are server halves.
Each mechanism is a separate file that composition.py imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from shepherd.registry import Registry
from shepherd.types import ClientId, ClientModel, ClientUpdate, Tensors

transforms = Registry("transform")

Need = Literal["linear", "uniform weights", "no control variates"]
"""linear: the next model depends on the updates through their weighted sum alone. uniform weights: every client weighs
the same. no control variates: the updates have none beside their deltas."""


@dataclass(frozen=True)
class Contributions:
    """What `Method.combine` merges in a round: updates by client, the client models that they start from, weights.

    steps: FedNova's τ_k. Beside the clients' updates there may be pseudo-updates, which no client has sent.
    """

    round: int
    updates: tuple[ClientUpdate, ...] = ()
    views: Mapping[ClientId, ClientModel] = field(default_factory=dict)
    weights: Mapping[ClientId, float] = field(default_factory=dict)
    steps: Mapping[ClientId, float] = field(default_factory=dict)

    def plus(self, name: str, start: ClientModel, delta: Tensors, weight: float) -> Contributions:
        """With a pseudo-update: the tensors of `start` move by `weight` times the delta, beside all others.

        The weights of the other updates stay as they are. No client id has parentheses, so no client has its name.
        Raises ValueError where the name is taken.
        """
        pseudo = f"({name})"
        if pseudo in self.weights:
            raise ValueError(f"a pseudo-update of this round is named {name!r} already")
        # Counts of a client that it is not: one row, one token and one step, as the least that an update has.
        update = ClientUpdate(pseudo, self.round, delta, num_examples=1, num_tokens=1, steps=1)
        return replace(
            self,
            updates=(*self.updates, update),
            views={**self.views, pseudo: start},
            weights={**self.weights, pseudo: weight},
            steps={**self.steps, pseudo: 1.0},
        )


OnClient = Callable[[ClientUpdate, ClientModel, np.random.Generator], ClientUpdate]
"""(update, start, rng) -> the update that is sent."""
OnServer = Callable[[Contributions, ClientModel, np.random.Generator], Contributions]
"""(contributions, start, rng) -> the contributions that are merged."""


@dataclass(frozen=True)
class Transform:
    """A client half, a server half, or both.

    on_client(update, start, rng) gives the update that is sent. It sees all that will leave the client: the delta with
    SCAFFOLD's control variates (their names end in `.control`), counts, metrics and chosen slots; and
    `private`, the state that stays, in which it may keep its own. `start` is the client model that the round started
    from, with the slots that the client chose. Names, shapes and float32 of the delta must remain: the gate checks the
    result as it checks any update.

    on_server(contributions, start, rng) gives what is merged, usually with a pseudo-update (`Contributions.plus`). It
    is also called in a round without updates. `start` is the client model of the global rank. Clusters, diagnostics
    and the record of the round are those of the clients' updates.

    `rng` is a named stream (rng.py), so its numbers repeat: for random masks and stochastic rounding. Keys and privacy
    noise must not repeat, and take the system's randomness instead. `needs`: conditions of the aggregation without
    which a run is refused (server/transform_conflicts.py). setting: the key that asks for it, for messages.
    """

    on_client: OnClient | None = None
    on_server: OnServer | None = None
    needs: frozenset[Need] = frozenset()
    name: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(self.needs - set(get_args(Need)))
        if unknown:
            raise ValueError(f"no such need: {unknown[0]!r}. Known: {', '.join(get_args(Need))}")
