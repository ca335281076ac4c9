"""The nouns: frozen dataclasses that every room knows. Shapes and units stand here, once.

Sign: `delta = local − global`, everywhere. Client ids are strings, sorted wherever order could matter.
Adapters are numpy float32, so that a server needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from shepherd.lowrank import LowRank

ClientId = str


def client_id(name: str, clients: Collection[ClientId], labels: Mapping[ClientId, str]) -> ClientId:
    """The client that is meant by an id or a label; `name` itself where no client has it."""
    return name if name in clients else next((client for client, label in labels.items() if label == name), name)


Tensors = Mapping[str, np.ndarray]
"""Arrays by name. A factor of a module is `<module>.A` or `<module>.B`."""
CONTROL, CLUSTER = ".control", "cluster/"
"""Further tensors of an update: `<module>.A.control` of SCAFFOLD, `cluster/<module>.A` of the adapter of a cluster."""
PRIVATE_CONTROL = "control/"
"""Prefix of c_k among a client's private tensors."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `role` is "system", "user", "assistant" or "tool" (a tool's result, shown but never learned); a row of plain text
    is one message of the role "text", which no template touches and which is learned whole. `learned` is False for an
    answer that is shown and not trained on. `reasoning` is the assistant's thinking before `content`, and `extra` a
    canonical JSON object of further fields that only a chat template reads ("tool_calls", "name", "tool_call_id"), or
    "".
    """

    role: str
    content: str
    learned: bool = True
    reasoning: str = ""
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its response.

    `messages` ends with the assistant's turn. `context` is the passage that the last user turn is about
    (alpaca's `input`, Dolly's `context`); it is kept apart because truncation cuts it first. `category` drives
    label skew, `source` is the natural client (a file, a user, a language). `tools` is a JSON list of the tools that
    the conversation may call, for the chat template, or "".
    """

    id: str
    messages: tuple[Message, ...]
    category: str = "all"
    source: str = ""
    context: str = ""
    tools: str = ""


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
        """Number of target tokens. Position 0 has no predecessor, so it is never a target."""
        return int(self.loss_mask[1:].sum())


@dataclass(frozen=True)
class Partition:
    """The examples of each client, {client id: (example id, …)}, and the digest of the dataset that was divided.

    labels: {client id: name of the client in the data}; an id is safe for paths and may differ from the name.
    """

    clients: Mapping[ClientId, tuple[str, ...]]
    dataset_digest: str
    held_out: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[ClientId, str] = field(default_factory=dict)

    def label(self, client: ClientId) -> str:
        """The client's name as written; its id where the partition has none."""
        return self.labels.get(client) or client


class Factors(NamedTuple):
    """One module's low-rank pair: A float32[r, in], B float32[out, r]; the increment is scale · B @ A."""

    A: np.ndarray
    B: np.ndarray


@dataclass(frozen=True)
class Adapter:
    """The trainable parameters: low-rank factors by module name, in float32.

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
        """Bytes of the factors in float32, the size of a message without compression."""
        return 4 * self.num_parameters


@dataclass(frozen=True, slots=True)
class Work:
    """The local training of one client in a round: rows of its shuffled stream and the learning rate of each step.

    The stream is that of all epochs, concatenated; the rows are first_row … first_row + rows − 1.
    """

    client: ClientId
    first_row: int
    rows: int
    learning_rates: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.learning_rates)

    def rows_of(self, steps: int) -> int:
        """Rows of the first `steps` steps, spread as evenly as possible, so that no step is empty."""
        return self.rows * steps // self.steps


@dataclass(frozen=True)
class Core:
    """B = basis · blockdiag(values): the core is trained and sent in place of B.

    Fed-SB (2502.15436) has one head, Ravan (2506.05568) several.
    basis {module: float32[out, r]}, values {module: float32[heads, r / heads, r / heads]}.
    """

    basis: Tensors
    values: Tensors


@dataclass(frozen=True, slots=True)
class SlotChoice:
    """The choice of rank slots by the client, from a probe of local training with all of them.

    budget: the most slots over all modules together. steps: those of the probe; 0 is one pass over the client's rows,
    or the number of the round where that is less.
    """

    budget: int
    steps: int = 0


@dataclass(frozen=True)
class ClientModel:
    """The model that a client starts a round from, which parts of it are trained, and which of those are sent.

    Local step i trains `trains[i % len(trains)]`: "AB", "A" or "B". `sends` is "AB", "A", "B" or "core". `slots` holds
    bool[r] by module, the rank slots that are trained and sent (of a core: whole heads); None stands for all. With a
    `choice` the client selects them and reports them in ClientUpdate.slots. The adapter has the rank of the client.
    Modules in `local_modules` are trained like the others and never sent: the client keeps them for its next round.
    """

    adapter: Adapter
    trains: tuple[str, ...] = ("AB",)
    sends: str = "AB"
    slots: Tensors | None = None
    core: Core | None = None
    choice: SlotChoice | None = None
    local_modules: frozenset[str] = frozenset()

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors to send, by name, at the start of the round: float32, only the slots that are trained."""
        return self.gather(self._full())

    def travels(self, name: str) -> bool:
        """Whether the tensor (or control variate) `name` belongs to a module that is sent."""
        return not self.local_modules or _module_and_part(name)[0] not in self.local_modules

    def gather(self, full: Tensors) -> dict[str, np.ndarray]:
        """The sent entries of full tensors (or control variates): rows of A, columns of B, heads of a core.

        Tensors of local modules are left out.
        """
        full = {name: tensor for name, tensor in full.items() if self.travels(name)}
        if self.slots is None:
            return full
        places = {name: self._place(name, self.slots) for name in full}
        return {name: np.compress(may, full[name], axis) for name, (may, axis) in places.items()}

    def scatter(self, name: str, sent: np.ndarray) -> np.ndarray:
        """The inverse of `gather` for the tensor `name`: full size, zeros in the slots that were not sent."""
        if self.slots is None:
            return sent
        may, axis = self._place(name, self.slots)
        shape = list(sent.shape)
        shape[axis] = len(may)
        full = np.zeros(shape, sent.dtype)
        np.moveaxis(full, axis, 0)[may] = np.moveaxis(sent, axis, 0)
        return full

    def chosen(self, slots: Tensors) -> ClientModel:
        """The client model with the slots that a client chose; itself where it leaves no choice.

        Raises ValueError, with a text of ours, for slots that are not bool[r] for each module, that exceed the budget,
        or that come without a choice.
        """
        if self.choice is None:
            if slots:
                raise ValueError(f"slots of {len(slots)} modules, and the client was to choose none")
            return self
        modules = self.adapter.factors
        if slots.keys() != modules.keys():
            missing = [name for name in modules if name not in slots]
            first = f"; {missing[0]} is missing" if missing else ""
            raise ValueError(f"slots of {len(slots)} modules, expected {len(modules)}{first}")
        for name in modules:
            if slots[name].dtype != bool or slots[name].shape != (self.adapter.r,):
                given = f"{slots[name].dtype.name}{list(slots[name].shape[:4])}"
                raise ValueError(f"the slots of {name} are {given}, expected bool[{self.adapter.r}]")
        # By its byte: an array of bool may hold others than 0 and 1, which count as that many.
        made = {name: slots[name].view(np.uint8) != 0 for name in modules}
        total = sum(int(may.sum()) for may in made.values())
        if total > self.choice.budget:
            raise ValueError(f"{total} slots, the limit is {self.choice.budget}")
        return replace(self, slots=made, choice=None)

    def _full(self) -> dict[str, np.ndarray]:
        if self.core is not None:
            return {f"{name}.core": values for name, values in self.core.values.items()}
        return {
            f"{name}.{part}": getattr(pair, part) for name, pair in self.adapter.factors.items() for part in self.sends
        }

    def _place(self, name: str, slots: Tensors) -> tuple[np.ndarray, int]:
        """(which entries along an axis may move, the axis) of the tensor `name`."""
        module, part = _module_and_part(name)
        may = np.asarray(slots[module], bool)
        if self.core is None:
            return may, 1 if part == "B" else 0
        by_head = may.reshape(len(self.core.values[module]), -1)
        if (by_head != by_head[:, :1]).any():
            raise ValueError(f"{module}: a core moves whole heads, and one is to move in part")
        return by_head[:, 0], 0


def _module_and_part(name: str) -> tuple[str, str]:
    module, _, part = name.removesuffix(CONTROL).rpartition(".")
    return module, part


@dataclass(frozen=True)
class Objective:
    """The terms of the local objective besides the loss, the same for all clients of a run.

    proximal: μ of (μ/2)‖θ − θ_t‖² (FedProx, 1812.06127), on the factors, or with form "product" of
    (μ/2)‖s(BA − B_tA_t)‖². rate_ratio: η_B / η_A. scaffold: correct each step by c − c_k (1910.06378).
    """

    proximal: float = 0.0
    proximal_form: str = "factors"
    rate_ratio: float = 1.0
    scaffold: bool = False


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """A transform of updates, as a task and a plan name it: its name in the registry, and its options as JSON values.

    Both sides of the federation build the transform itself from this (updates/transforms.py).
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """Example-level differential privacy of local training (DP-SGD, Abadi et al., 2016, 1607.00133).

    clip: C, the L2 norm to which the gradient of each row is clipped. noise_multiplier: z; the noise on the sum of the
    clipped gradients has the standard deviation zC in every coordinate. repeatable: rows and noise follow from the
    seed, so that there is no privacy.
    """

    clip: float
    noise_multiplier: float
    repeatable: bool = False


@dataclass(frozen=True)
class TrainTask:
    """Server -> clients: one round's work. `views` and `work` have an entry for each client of the cohort.

    `remainder` is an increment that lies frozen beside the base, the same for all clients; `control` is SCAFFOLD's c,
    by the names of the tensors that travel. `clusters` holds each client's views of the clusters' adapters, if any.
    `transforms` are those that each client applies to its update, in this order. With `privacy`, local training is
    DP-SGD, and counts and losses of a client's rows do not travel.
    """

    round: int
    views: Mapping[ClientId, ClientModel]
    seed: int
    work: Mapping[ClientId, Work]
    remainder: Mapping[str, LowRank] = field(default_factory=dict)
    objective: Objective = Objective()
    control: Tensors = field(default_factory=dict)
    clusters: Mapping[ClientId, tuple[ClientModel, ...]] = field(default_factory=dict)
    transforms: tuple[TransformSpec, ...] = ()
    privacy: ExamplePrivacy | None = None

    def part(self, clients: Iterable[ClientId]) -> TrainTask:
        """The task restricted to some of its clients."""
        kept = list(clients)
        clusters = {c: self.clusters[c] for c in kept if c in self.clusters}
        return replace(
            self, views={c: self.views[c] for c in kept}, work={c: self.work[c] for c in kept}, clusters=clusters
        )


@dataclass(frozen=True)
class ClientUpdate:
    """Client -> server: the update of one client; `delta = local − start`, by the names of `ClientModel.tensors`.

    num_examples counts the client's training rows (n_k of FedAvg), num_tokens the target tokens of this round. `slots`
    holds bool[r] by module where the client chooses its slots. `private` is the client's state for its next round,
    never part of a message. `cluster` numbers the cluster that the client chose, from 1; 0 where there are none.
    """

    client: ClientId
    round: int
    delta: Tensors
    num_examples: int
    num_tokens: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    private: Tensors = field(default_factory=dict)
    slots: Tensors = field(default_factory=dict)
    cluster: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the delta and of the chosen slots, one each, when nothing is compressed."""
        return sum(array.nbytes for array in (*self.delta.values(), *self.slots.values()))


@dataclass(frozen=True)
class GlobalModel:
    """The global model: an adapter, a frozen increment that does not fit into it, and the state of the server.

    The effective increment of a module is remainder + scale · B @ A. `memory` holds a method's and a server
    optimizer's arrays by name: moments, fixed bases, control variates.
    """

    adapter: Adapter
    remainder: Mapping[str, LowRank] = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientHistory:
    """The server's record of a client from the last round in which it was sampled.

    loss: mean training loss of its last update, nats per target token; seconds: its duration. None: no update yet.
    """

    round: int
    loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ServerState:
    """Everything that the next round, and so a restart, needs; random streams are derived.

    cursors: each client's position in its row order. clients: the private tensors of simulated clients. strikes:
    consecutive unusable updates of a client; quarantined clients are no longer sampled. history: the record of each
    client sampled before. clusters: the model of each cluster of clients, empty before they are formed. median_norm: of
    the last round's updates before clipping, where updates are clipped to it; 0 before the first. clip: to which the
    next round clips, where privacy adapts it; 0 before the first round.
    """

    round: int
    model: GlobalModel
    cursors: Mapping[ClientId, int] = field(default_factory=dict)
    clients: Mapping[ClientId, Tensors] = field(default_factory=dict)
    strikes: Mapping[ClientId, int] = field(default_factory=dict)
    quarantined: tuple[ClientId, ...] = ()
    history: Mapping[ClientId, ClientHistory] = field(default_factory=dict)
    clusters: tuple[GlobalModel, ...] = ()
    median_norm: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a client announces before a plan is made: how many rows it trains on, and sha256 over them in their order.

    Which rows a round takes follows from their number and order, so both must stay the same within a run.
    """

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client without a usable update: a code of REASONS, and a detail that holds no text of the client."""

    client: ClientId
    round: int
    code: str
    detail: str


REASONS: Mapping[str, str] = {
    # What the gate refuses.
    "not-an-update": "the answer is neither an update nor a failure",
    "too-large": "the message is larger than any that was asked for",
    "format": "the bytes are no safetensors file with an envelope of ours",
    "damaged": "the checksum of the message does not fit its content",
    "fields": "a field is missing, of another type, or out of its range",
    "uninvited": "the client is not in this round's cohort",
    "impostor": "the message names another client than the one that sent it",
    "other-run": "the update belongs to another run",
    "stale-round": "the update belongs to another round",
    "base": "the client trained another base model",
    "tokenizer": "the client used another tokenizer or chat template",
    "rank": "the adapter has another rank than the client was given",
    "scale": "the adapter has another scale than the client was given",
    "tensors": "tensors are missing, or there are others than were asked for",
    "shape": "a tensor has another shape or dtype than was asked for",
    "slots": "the choice of rank slots is none, or of more than the client may move",
    "count": "a count is below 1 or above its limit",
    "cluster": "the number of its cluster is none of those that the client was sent",
    "non-finite": "a value is NaN or infinite, or a tensor so long that float32 has no room for it",
    "norm": "longer than federation.max_update_norm, or a control variate than its delta allows",
    "duplicate": "the client has answered this round already",
    # What befalls a client.
    "diverged": "its own loss or gradient became NaN or infinite",
    "error": "its training raised an exception; `error:ValueError` names the class, the text stays with the client",
    "out-of-memory": "it had not enough memory, not even for smaller passes",
    "lost": "the process that trained it ended",
    "hang": "the process that trained it gave no sign of life",
    "refused": "the policy of the site does not allow the task; `detail` is the code of the reason",
    "no-state": "the site does not have the private state that the task starts from",
}
"""Every code of a ClientFailure and its meaning. Clients that were too late are in the record's `late` instead."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A metric that merges exactly: mean = total / weight. Add two and the mean is that of the union.

    >>> short, long = Stat(total=6.0, weight=2), Stat(total=24.0, weight=12)   # nats, and their target tokens
    >>> short.mean, long.mean, (short + long).mean   # not the mean of the two means
    (3.0, 2.0, 2.142857142857143)
    """

    total: float = 0.0
    weight: float = 0.0

    def __add__(self, other: Stat) -> Stat:
        return Stat(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else float("nan")
