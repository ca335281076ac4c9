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
    """A straggler: the engine stopped waiting for this client, at the deadline or after enough others."""

    client: ClientId
    round: int


Reply = ClientUpdate | Sealed | ClientFailure | Late
"""A reply of an engine for a client: an update, in memory or as a message, a failure, or a straggler."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An update that passed the gate, with its size in bytes on arrival and the L2 norms of its delta, as it is and
    before clipping."""

    update: ClientUpdate
    nbytes: int
    norm: float
    unclipped: float


Outcome = Admitted | ClientFailure | Late
"""The result of the gate for a reply."""


@dataclass(frozen=True)
class Replies:
    """A round's sampled clients and their replies.

    work, views, cluster_views: the task of each sampled client; cluster_views: its client models of the clusters.
    times: the number of draws of each; seconds: from the start of the round to its reply. draws: the number of cohorts
    sampled; shares: the weights of a selection with a fixed denominator. admitted: valid updates, including late ones;
    unusable: failures and rejections in order of arrival; late: stragglers. norms, unclipped, bytes_up: of the admitted
    updates. steps: reported local steps of each client. skipped: no update counts, because too few clients replied or
    none was drawn.
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
    unclipped: Mapping[ClientId, float] = field(default_factory=dict)
    bytes_up: int = 0
    steps: Mapping[ClientId, int] = field(default_factory=dict)
    skipped: bool = False

    @property
    def in_time(self) -> list[ClientUpdate]:
        """Admitted updates that were not late. Float sums depend on order, arrival does not repeat: sort by client."""
        return [self.admitted[c] for c in sorted(self.admitted) if c not in self.late]

    @property
    def counted(self) -> list[ClientUpdate]:
        """The updates that are aggregated, sorted by client."""
        return [] if self.skipped else self.in_time

    @property
    def usable(self) -> int:
        """The number of draws with an update in time, as counted by min_updates."""
        return sum(self.times[update.client] for update in self.in_time)

    @property
    def replied(self) -> set[ClientId]:
        """Clients with a valid update, in time or late."""
        return {*self.admitted, *self.late}

    @property
    def failures(self) -> list[ClientFailure]:
        """Failures and rejections of clients without an admitted update, sorted by client."""
        return sorted((f for f in self.unusable if not self._ignored(f)), key=lambda f: f.client)

    @property
    def ignored(self) -> list[ClientFailure]:
        """Unusable replies of clients with an admitted update, sorted by client."""
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
        """Rows trained on without effect, by client: all rows of an admitted update that does not count, else those of
        the reported steps."""
        lost = self.work.keys() - {update.client for update in self.counted}
        steps = {c: self.work[c].steps if c in self.admitted else self.steps.get(c, 0) for c in lost}
        rows = {c: self.work[c].rows_of(min(steps[c], self.work[c].steps)) for c in sorted(lost)}
        return {client: count for client, count in rows.items() if count}

    def joined(self, other: Replies) -> Replies:
        """These replies combined with those of a further cohort in the same round; the cohorts are disjoint."""
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
            unclipped={**self.unclipped, **other.unclipped},
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

        wanted: the number of draws that count, in order of arrival; later clients are late. None: all count.
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
            unclipped={o.update.client: o.unclipped for o in arrived},
            bytes_up=sum(o.nbytes for o in arrived),
            steps=steps,
        )


def failure_entry(failure: ClientFailure) -> dict[str, str]:
    """A failure as an entry of a round's record."""
    return {"client": failure.client, "code": failure.code, "detail": failure.detail}
