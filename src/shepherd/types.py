"""The nouns: frozen dataclasses that every room knows. Shapes and units stand here, once.

Sign: `delta = local − global`, everywhere. Client ids are strings, sorted wherever order could matter.
Adapters are numpy float32, so that a server needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

ClientId = str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its response.

    `messages` ends with the assistant's turn. `context` is the passage that the last user turn is about
    (alpaca's `input`, Dolly's `context`); it is kept apart because truncation cuts it first. `category` drives
    label skew, `source` is the natural client (a file, a user, a language).
    """

    id: str
    messages: tuple[Message, ...]
    category: str = "all"
    source: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example as the model sees it.

    input_ids int32[n]; loss_mask bool[n], True where the token at that position is a target (it belongs to a
    response or is the end token after one). `cut` counts the tokens that truncation removed.
    """

    id: str
    input_ids: np.ndarray
    loss_mask: np.ndarray
    category: str = "all"
    source: str = ""
    cut: int = 0

    @property
    def targets(self) -> int:
        """Number of tokens that are learned. Position 0 has no predecessor, so it is never a target."""
        return int(self.loss_mask[1:].sum())


@dataclass(frozen=True)
class Partition:
    """Who holds what: {client id: (example id, …)}, and the digest of the dataset that was divided."""

    clients: Mapping[ClientId, tuple[str, ...]]
    dataset_digest: str
    held_out: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Factors(NamedTuple):
    """One module's low-rank pair: A float32[r, in], B float32[out, r]; the increment is scale · B @ A."""

    A: np.ndarray
    B: np.ndarray


@dataclass(frozen=True)
class Adapter:
    """The only thing that is learned: low-rank factors by module name, in float32.

    The increment of a module is `scale · B @ A` with scale = alpha / r, or alpha / √r with rsLoRA
    (Hu et al., 2021, §4.1; Kalajdzievski, 2023).
    """

    factors: Mapping[str, Factors]
    r: int
    alpha: float
    rslora: bool = False
    base_digest: str = ""

    @property
    def scale(self) -> float:
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    @property
    def num_parameters(self) -> int:
        return sum(pair.A.size + pair.B.size for pair in self.factors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the factors in float32: what travels when nothing is compressed."""
        return 4 * self.num_parameters


@dataclass(frozen=True, slots=True)
class Work:
    """One client's share of a round: rows first_row … first_row + rows − 1 of its walk, one rate per optimizer step."""

    client: ClientId
    first_row: int
    rows: int
    learning_rates: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.learning_rates)


@dataclass(frozen=True)
class TrainTask:
    """Server -> clients: train this adapter for one round. `work` has an entry for each client of the cohort."""

    round: int
    adapter: Adapter
    seed: int
    work: Mapping[ClientId, Work]


@dataclass(frozen=True)
class ClientUpdate:
    """Client -> server: what one client learned in one round; `delta = local − global`, per module.

    num_examples counts the rows that the client holds (the n_k of FedAvg), num_tokens the target tokens that it trained
    on in this round.
    """

    client: ClientId
    round: int
    delta: Mapping[str, Factors]
    num_examples: int
    num_tokens: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client that gave no usable update: a short code, and detail that holds no client data."""

    client: ClientId
    round: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Stat:
    """A metric that merges exactly: mean = total / weight. Add two and the mean is that of the union."""

    total: float = 0.0
    weight: float = 0.0

    def __add__(self, other: Stat) -> Stat:
        return Stat(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else float("nan")
