"""FedDPA's local adapter in training (Yang et al., 2403.19211): its initialisation, with the global one frozen.

Inference with both adapters is in clients/personal/mixture.py.
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
    """Settings of FedDPA's mixture.

    weight: λ of an input like the client's training rows. samples: training rows that an input is compared with.
    share: weight of the local adapter in training; the global one has 1 − share.
    """

    weight: float
    samples: int
    share: float


def initial_local(shared: Adapter, seed: int, client: ClientId) -> Adapter:
    """A local adapter with B = 0, of the rank and scale of the global one."""
    sizes = {name: (A.shape[1], len(B)) for name, (A, B) in shared.factors.items()}
    own = derive(seed, "local adapter", client)
    return fresh_adapter(sizes, shared.r, shared.alpha, own, rslora=shared.rslora, base_digest=shared.base_digest)


def beside_shared(shared: Adapter, local: Adapter, share: float) -> ClientModel:
    """The client model share · local + (1 − share) · shared, in which only the slots of `local`, the last, move."""
    if share == 1:
        return ClientModel(local)
    both = joined(shared, local, (1 - share, share))
    moves = np.arange(both.r) >= shared.r
    return ClientModel(both, slots=dict.fromkeys(both.factors, moves))
