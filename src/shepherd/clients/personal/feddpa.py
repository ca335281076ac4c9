"""FedDPA's local adapter in training (Yang et al., 2403.19211): where it begins, and the global one frozen beside it.

What a client does with both adapters afterwards is in clients/personal/mixture.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shepherd.clients.personal.joined import joined
from shepherd.model.adapter import fresh_adapter
from shepherd.rng import derive
from shepherd.types import Adapter, ClientId, ClientModel


@dataclass(frozen=True)
class Mix:
    """weight: λ of an input that looks like the client's own. samples: training rows that it is held against.

    share: weight of the local adapter in training, beside 1 − share of the global one.
    """

    weight: float
    samples: int
    share: float


def begun(shared: Adapter, seed: int, client: ClientId) -> Adapter:
    """A local adapter that changes nothing yet, of the rank and scale of the global one."""
    sizes = {name: (A.shape[1], len(B)) for name, (A, B) in shared.factors.items()}
    own = derive(seed, "local adapter", client)
    return fresh_adapter(sizes, shared.r, shared.alpha, own, rslora=shared.rslora, base_digest=shared.base_digest)


def beside(shared: Adapter, local: Adapter, share: float) -> ClientModel:
    """share · local + (1 − share) · shared, of which the slots of `local`, the last ones, may move."""
    if share == 1:
        return ClientModel(local)
    both = joined(shared, local, (1 - share, share))
    moves = np.arange(both.r) >= shared.r
    return ClientModel(both, slots=dict.fromkeys(both.factors, moves))
