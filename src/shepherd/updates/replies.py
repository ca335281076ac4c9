"""A cohort's replies: the updates that were admitted, and the clients that failed, were rejected, late or lost.

replies = replies.joined(more)      # of a further cohort in the same round
replies.counted                     # the updates that the next model is made of
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shepherd.types import ClientFailure, ClientId, ClientModel, ClientUpdate, Work
from shepherd.updates.wire import Sealed


@dataclass(frozen=True, slots=True)
class Late:
    """A straggler: the engine stopped to wait for this client, at the deadline or after enough others."""

    client: ClientId
    round: int


Reply = ClientUpdate | Sealed | ClientFailure | Late
"""What an engine yields for a client: an update, in memory or as it travelled, a failure, or that it was late."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An update that passed the gate. nbytes and norm (L2) are those of the delta as it arrived."""

    update: ClientUpdate
    nbytes: int
    norm: float


Outcome = Admitted | ClientFailure | Late
"""What became of a reply at the gate."""


@dataclass(frozen=True)
class Replies:
    """A round's sampled clients and their replies.

    work, views, cluster_views: what each sampled client starts from; cluster_views holds its views of the clusters'
    models. times: how often each was drawn; seconds: from the start of the round to its reply. draws: how many cohorts
    were sampled; shares: the weights that a selection with a fixed denominator gave. admitted: updates in order, late
    ones too; unusable: failures and rejections as they came; late: stragglers. norms, bytes_up: of the admitted ones.
    steps: local steps that each client reported. skipped: too few replied, or nobody was drawn, so nothing counts.
    """

    work: Mapping[ClientId, Work] = field(default_factory=dict)
    views: Mapping[ClientId, ClientModel] = field(default_factory=dict)
    cluster_views: Mapping[ClientId, tuple[ClientModel, ...]] = field(default_factory=dict)
    times: Mapping[ClientId, int] = field(default_factory=dict)
    seconds: Mapping[ClientId, float] = field(default_factory=dict)
    draws: int = 0
    shares: Mapping[ClientId, float] = field(default_factory=dict)
    admitted: Mapping[ClientId, ClientUpdate] = field(default_factory=dict)
    unusable: tuple[ClientFailure, ...] = ()
    late: frozenset[ClientId] = frozenset()
    norms: Mapping[ClientId, float] = field(default_factory=dict)
    bytes_up: int = 0
    steps: Mapping[ClientId, int] = field(default_factory=dict)
    skipped: bool = False

    @property
    def in_time(self) -> list[ClientUpdate]:
        """Admitted updates that were not late. Float sums depend on order, arrival does not repeat: sort by client."""
        return [self.admitted[c] for c in sorted(self.admitted) if c not in self.late]

    @property
    def counted(self) -> list[ClientUpdate]:
        """The updates that the next model is made of, by client."""
        return [] if self.skipped else self.in_time

    @property
    def usable(self) -> int:
        """Draws with an update in time: what min_updates counts."""
        return sum(self.times[update.client] for update in self.in_time)

    @property
    def replied(self) -> set[ClientId]:
        """Clients with an update in order, in time or late."""
        return {*self.admitted, *self.late}

    @property
    def failures(self) -> list[ClientFailure]:
        """Failures and rejections of clients without an admitted update, by client."""
        return sorted((f for f in self.unusable if not self._ignored(f)), key=lambda f: f.client)

    @property
    def ignored(self) -> list[ClientFailure]:
        """Unusable replies of clients with another one that stands, by client."""
        return sorted((f for f in self.unusable if self._ignored(f)), key=lambda f: f.client)

    def _ignored(self, failure: ClientFailure) -> bool:
        return failure.client in self.replied or failure.code == "duplicate"

    @property
    def missing(self) -> tuple[ClientId, ...]:
        """Sampled clients without any reply."""
        heard = {*self.replied, *(f.client for f in self.failures)}
        return tuple(c for c in sorted(self.work) if c not in heard)

    @property
    def unused(self) -> dict[ClientId, int]:
        """Rows that clients trained on in vain: all of an admitted update that does not count, else those of the
        steps that the client reported."""
        lost = self.work.keys() - {update.client for update in self.counted}
        steps = {c: self.work[c].steps if c in self.admitted else self.steps.get(c, 0) for c in lost}
        rows = {c: self.work[c].rows_of(min(steps[c], self.work[c].steps)) for c in sorted(lost)}
        return {client: count for client, count in rows.items() if count}

    def joined(self, other: Replies) -> Replies:
        """These and the replies of a further cohort in the same round; no client is in both."""
        return Replies(
            work={**self.work, **other.work},
            views={**self.views, **other.views},
            cluster_views={**self.cluster_views, **other.cluster_views},
            times={**self.times, **other.times},
            seconds={**self.seconds, **other.seconds},
            draws=self.draws + other.draws,
            shares={**self.shares, **other.shares},
            admitted={**self.admitted, **other.admitted},
            unusable=(*self.unusable, *other.unusable),
            late=self.late | other.late,
            norms={**self.norms, **other.norms},
            bytes_up=self.bytes_up + other.bytes_up,
            steps={**self.steps, **other.steps},
            skipped=self.skipped or other.skipped,
        )

    def surplus(self, arrived: Iterable[ClientId], wanted: int | None) -> set[ClientId]:
        """Of clients in order of arrival those after the first `wanted` draws; None: none are."""
        found, left = set(), math.inf if wanted is None else wanted
        for client in arrived:
            if left <= 0:
                found.add(client)
            left -= self.times[client]
        return found

    def received(self, outcomes: list[Outcome], steps: Mapping[ClientId, int], wanted: int | None = None) -> Replies:
        """A sampled cohort with the outcomes of its replies, in order of arrival.

        wanted: how many draws count, the first to arrive; the clients after them are late. None: all count.
        """
        arrived = sorted((o for o in outcomes if isinstance(o, Admitted)), key=lambda o: self.seconds[o.update.client])
        admitted = {o.update.client: o.update for o in arrived}
        late = {o.client for o in outcomes if isinstance(o, Late)} - admitted.keys()
        return replace(
            self,
            admitted=admitted,
            unusable=tuple(o for o in outcomes if isinstance(o, ClientFailure)),
            late=self.late | late | self.surplus(admitted, wanted),
            norms={o.update.client: o.norm for o in arrived},
            bytes_up=sum(o.nbytes for o in arrived),
            steps=steps,
        )


def failure_entry(failure: ClientFailure) -> dict[str, str]:
    """A failure as an entry of a round's record."""
    return {"client": failure.client, "code": failure.code, "detail": failure.detail}
