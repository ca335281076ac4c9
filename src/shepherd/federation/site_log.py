"""The lines of a site's own log: every message with its bytes, the verdict on it and the site's own loss.

The log stays at the site: `audit.jsonl` of its folder. `shepherd report` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from shepherd.clients.progress import Progress as Steps
from shepherd.clients.progress import StepReport
from shepherd.federation.messages import Measure, Message, Train, is_finite, pack, verdict_of
from shepherd.federation.messages import Progress as Step
from shepherd.federation.site_store import SiteStore


class Progress:
    """What a site sends while it trains, counted on its way out."""

    def __init__(self, report: Callable[[bytes], None]) -> None:
        self.report, self.bytes = report, 0

    def __call__(self, data: bytes) -> None:
        self.bytes += len(data)
        self.report(data)


def reporter(
    message: Train, session: str, report: Callable[[bytes], None], shown: Literal["losses", "counts", "steps"]
) -> Callable[[StepReport], None]:
    """What sends the progress of a task as messages: its steps, with counts and seconds, or with losses too."""

    def send(steps: StepReport) -> None:
        news = steps.get(message.client)
        if isinstance(news, Steps):
            loss = is_finite(news.loss) if shown == "losses" else None
            counts = (0, 0, 0.0) if shown == "steps" else (news.targets, news.tokens, float(news.seconds))
            name = (message.run, message.round, message.attempt, session)
            report(pack(Step(*name, news.state, news.step, news.steps, loss, *counts)))

    return send


class SiteLog:
    """Appends to the log of a site. `now` is its time of day, as text. Raises OSError where it cannot be written."""

    def __init__(self, store: SiteStore, now: Callable[[], str]) -> None:
        self.store, self.now = store, now

    def event(self, event: str, **about: Any) -> None:
        """Something other than the answer to a message."""
        self.store.audit(time=self.now(), event=event, **about)

    def message(
        self, message: Message, received: int, sent: int, answer: Message | None, progress: int, loss: float | None
    ) -> None:
        """A message and its answer, in bytes. loss: the site's own, in nats per target token, also where it stayed."""
        own: dict[str, Any] = {} if loss is None or is_finite(loss) is None else {"loss": loss}
        if isinstance(message, Measure):
            own["of"] = "global" if message.model else "base"
        self.event(
            type(message).__name__.lower(), run=message.run, round=message.round, attempt=message.attempt,
            bytes_in=received, bytes_out=sent, bytes_progress=progress, verdict=verdict_of(answer), **own,
        )  # fmt: skip
