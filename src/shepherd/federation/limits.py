"""What a site can have stated of itself: facts, counts and measures that no honest site sends are not believed.

A coordinator sees no rows, so it cannot know that a number is right. It knows the largest that is possible.
"""

from __future__ import annotations

from shepherd.federation.cards import RunCard
from shepherd.federation.messages import Facts, Measured
from shepherd.federation.verdicts import ADMITTED
from shepherd.types import ClientId, SiteFacts, TrainTask
from shepherd.updates.gate import largest_message
from shepherd.updates.layout import WireError
from shepherd.updates.wire import read_header

MOST_ROWS = 10**7
"""Rows of a site. A plan of rounds is made from them, so a number without a limit would exhaust the memory."""
MOST_LOSS = 1e6
"""Nats per target token. Sums of losses of many sites stay finite."""


def verdict_on(facts: Facts, card: RunCard) -> str:
    """The verdict of a site on the card, where the site states what the run needs; else the reason against it."""
    if facts.verdict != ADMITTED:
        return facts.verdict
    reasons = {
        "version": facts.version != card.version,
        "base": facts.base != card.base.digest,
        "tokenizer": facts.tokenizer != card.tokenizer,
        "no-rows": facts.rows < 1,
        "many-rows": facts.rows > MOST_ROWS,
        "cannot": not facts.digest,
    }
    return next((reason for reason, against in reasons.items() if against), ADMITTED)


def check_counts(update: bytes, task: TrainTask, client: ClientId, facts: SiteFacts | None, card: RunCard) -> None:
    """Check the counts in the header of an update, which may be its weight. Raises WireError."""
    stated = read_header(update, largest_message(task, client)[0]).fields
    rows = stated["num_examples"]
    if facts is None or rows != facts.rows:
        raise WireError("count", "other rows than the site stated at its admission")
    if stated["num_tokens"] > _most_targets(task.work[client].rows, card):
        raise WireError("count", "more target tokens than the rows of its task have")


def is_possible(measured: Measured, facts: SiteFacts | None, card: RunCard) -> bool:
    """Whether a site with these facts can have measured this: it holds out at most half of its rows."""
    names = [name for name, *_ in measured.groups]
    return (
        facts is not None
        and len(set(names)) == len(names)
        and sum(rows for *_, rows in measured.groups) <= facts.rows
        and all(
            0 < weight <= _most_targets(rows, card) and 0 <= total <= MOST_LOSS * weight
            for _, total, weight, rows in measured.groups
        )
    )


def _most_targets(rows: int, card: RunCard) -> int:
    return rows * card.data.max_length
