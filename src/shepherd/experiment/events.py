"""Events of a run, in the order of a run: what an observer receives, and a line of `--json` holds.

    def observe(event: Event) -> None:
        if event["event"] == "round":
            print(event["round"], event["held_out_loss"])

    shepherd.run(config, observer=observe)

Losses are in nats per target token, sizes in bytes, times in seconds; clients are named by their ids. In JSON a number
that is not finite is null. A docstring under a field is its text in docs/events.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from shepherd.clients.progress import State


class PhaseEvent(TypedDict):
    """The run enters a phase, or reports what takes long within one."""

    event: Literal["phase"]
    phase: str
    """fetch model, prepare data, load model, prepare model, wait for sites, evaluate, train, personal models, save
    adapter, generate or report."""
    arm: str | None
    """The arm that is trained or evaluated, null where the phase belongs to none."""
    detail: str
    """Text for a person, empty at the beginning of the phase."""


class StartEvent(TypedDict):
    """The inputs are ready and the run directory exists."""

    event: Literal["start"]
    run: str
    """Path of the run directory."""
    config: Mapping[str, Any]
    """The settings, one table per key, with absolute paths."""
    model: str
    """Name of the base."""
    clients: Sequence[str]
    """All clients, sorted."""
    labels: Mapping[str, str]
    """Names of clients that differ from their ids."""
    rounds: int
    """Rounds of the run."""
    arms: Sequence[str]
    """Arms that are trained or evaluated."""
    round: int
    """The last committed round, 0 for a new run."""
    fraction: float
    """Share of the training of all arms that is done, 0 to 1."""


class WarningEvent(TypedDict):
    """Something that a person should know; the run goes on."""

    event: Literal["warning"]
    message: str
    """One sentence or more."""


class EvaluationEvent(TypedDict):
    """A model was evaluated on the held-out rows."""

    event: Literal["evaluation"]
    arm: str
    """The arm of the model."""
    round: int
    """The round after which it was evaluated, 0 for the base."""
    loss: float
    """Held-out loss."""


class ClientRow(TypedDict):
    """The progress of one client in its round."""

    step: int
    """Optimizer steps done."""
    steps: int
    """Optimizer steps of the round, 0 before the first."""
    loss: float | None
    """Loss of the last step, null before the first and where it is not finite."""
    tokens: int
    """Target tokens trained on in this round."""
    state: State
    """State of the client; the last four are those of docs/glossary.md."""
    seen_tokens: int
    """All tokens that passed through the base in this round."""
    tokens_per_second: float | None
    """Speed of this client's training over all its tokens, null before the first step."""


class ClientsEvent(TypedDict):
    """States of clients changed. A round begins with one for the whole cohort."""

    event: Literal["clients"]
    arm: str
    """The arm that is trained, or personal."""
    round: int
    """The round in progress."""
    rounds: int
    """Rounds of the run."""
    clients: Mapping[str, ClientRow]
    """The clients with news."""


class StepEvent(TypedDict):
    """Optimizer steps were done."""

    event: Literal["step"]
    arm: str
    """The arm that is trained, or personal."""
    round: int
    """The round in progress."""
    rounds: int
    """Rounds of the run."""
    clients: Mapping[str, ClientRow]
    """The clients with news."""
    tokens_per_second: float
    """Speed over all tokens of this process."""
    fraction: float
    """Share of the training of all arms that is done, 0 to 1."""
    eta_seconds: float | None
    """Estimated time to the end of the training, null while there is no speed."""


class Failure(TypedDict):
    """A reply that did not count."""

    client: str
    """The client."""
    code: str
    """What went wrong, such as diverged, hang or norm."""
    detail: str
    """Text for a person."""


class SiteRow(TypedDict):
    """A site of a run over sites."""

    state: str
    """Its state in the run (docs/sites.md), empty before it was offered the card."""
    reason: str
    """Code of what is against it, or empty."""
    present: bool
    """Whether it is connected."""
    last: float | None
    """Its last sign, in seconds since 1970, null before the first."""
    bytes_down: int
    """Bytes of the questions to it, since this process began."""
    bytes_up: int
    """Bytes of its answers."""


class SitesEvent(TypedDict):
    """The state of a site changed, in a run over sites."""

    event: Literal["sites"]
    sites: Mapping[str, SiteRow]
    """All sites."""


class RoundLine(TypedDict):
    """A line of rounds.jsonl."""

    round: int
    """Number of the round, from 1."""
    cohort: Sequence[str]
    """Clients sampled, in one draw or more."""
    missing: Sequence[str]
    """Clients without a reply."""
    rejected: Sequence[Failure]
    """Failed, lost and rejected replies."""
    weights: Mapping[str, float]
    """Aggregation weight of each update that counts."""
    train_loss: Mapping[str, float]
    """Mean loss of the local training of each client."""
    steps: Mapping[str, int]
    """Local steps of each client."""
    examples: Mapping[str, int]
    """Rows that each client trained on."""
    tokens: Mapping[str, int]
    """Target tokens that each client trained on."""
    bytes_up: int
    """Bytes from the clients to the server."""
    bytes_down: int
    """Bytes from the server to the clients."""
    seconds: dict[str, float]
    """Seconds of train, aggregate, evaluate and commit."""
    learning_rate: Sequence[float]
    """Learning rate of the first and of the last local step, of the client with the most steps."""
    deviation: float
    """Relative error of averaging the factors separately, against the mean of the products."""
    update_norm: Mapping[str, float]
    """L2 norm of each update."""
    diagnostics: Mapping[str, Any]
    """Agreement of the clients and error of the merge; empty for a skipped round."""
    late: Sequence[str]
    """Clients that replied after the deadline, or after enough others."""
    ignored: Sequence[Failure]
    """Further replies of a client beside the one that counts."""
    quarantined: Sequence[str]
    """Clients quarantined from this round on."""
    skipped: bool
    """Whether too few updates left the model as it was."""
    clusters: Mapping[str, int]
    """Cluster of each client, from 1; empty without clusters."""
    unused_examples: Mapping[str, int]
    """Rows of clients whose update does not count, where known."""
    clipped: NotRequired[int]
    """Updates that count and were longer than `clip_norm`; only with federation.clip_update_norm."""
    clip_norm: NotRequired[float]
    """L2 norm to which updates were clipped, 0 before the first median; only with federation.clip_update_norm."""
    held_out_loss: float | None
    """Held-out loss after the round, null where it was not evaluated."""
    held_out_per_category: Mapping[str, float | None] | None
    """The same of each category."""
    held_out_per_client: Mapping[str, float | None] | None
    """The same of each client, on the held-out rows of its categories."""


class RoundEvent(RoundLine):
    """A round is committed."""

    event: Literal["round"]


class CommittedEvent(RoundLine):
    """A round that was committed before this process began; one for each after the start of a resumed run.

    A round of an older version may lack fields that were added since.
    """

    event: Literal["committed"]


class EndEvent(TypedDict):
    """The run is finished."""

    event: Literal["end"]
    run: str
    """Path of the run directory."""
    summary: Mapping[str, Any]
    """The contents of summary.json."""


class ErrorEvent(TypedDict):
    """The run failed. Only `--json` prints it, as the last line; in Python the exception is raised."""

    event: Literal["error"]
    message: str
    """What went wrong."""
    hint: str
    """How to correct it, or empty."""
    exit_status: int
    """Exit status of the command."""


Event = (
    PhaseEvent
    | StartEvent
    | CommittedEvent
    | WarningEvent
    | EvaluationEvent
    | ClientsEvent
    | StepEvent
    | SitesEvent
    | RoundEvent
    | EndEvent
    | ErrorEvent
)
Emit = Callable[[Event], None]
"""Where the events of a run go."""
