"""The cards that a site was offered, and the verdict of a person on each; while the site's process runs, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import UsageError, did_you_mean
from shepherd.federation.cards import Policy, RunCard, read_card
from shepherd.federation.site_store import Folder, SiteStore
from shepherd.federation.verdicts import ADMITTED, DECLINED, WAITING


@dataclass(frozen=True)
class Offered:
    """A card that was offered to a site. verdict: of a person, WAITING before there is one."""

    card: RunCard
    verdict: str
    over: bool

    @property
    def run(self) -> str:
        return self.card.run

    @property
    def waits(self) -> bool:
        """Whether a person has still to decide."""
        return self.verdict == WAITING and not self.over


def offers(folder: Path) -> list[Offered]:
    """The cards in the folder of a site."""
    store, found = SiteStore(Folder(folder)), []
    for run in store.runs():
        data = store.card(run)
        if data is not None:
            card, record = read_card(data), store.record(run)
            found.append(
                Offered(card, store.decision(run, card.digest), bool(record.get("over") or record.get("left")))
            )
    return found


def find_offer(folder: Path, run: str | None) -> Offered:
    """A card by the id of its run, the beginning of one, or its name; without one the only card that waits.

    Raises UsageError.
    """
    known = offers(folder)
    if run is None:
        waiting = [offer for offer in known if offer.waits]
        if len(waiting) == 1:
            return waiting[0]
        if waiting:
            raise UsageError(f"{len(waiting)} runs wait for approval", hint=f"name one: {_listed(waiting)}")
        raise UsageError(f"no run waits for approval at {folder}", hint="a card arrives when the coordinator serves")
    found = [offer for offer in known if offer.run == run] or [
        offer for offer in known if offer.run.startswith(run) or (offer.card.name == run and not offer.over)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{run} is more than one run", hint=f"name one by its id: {_listed(found)}")
    near = did_you_mean(run, [*(offer.run for offer in known), *(offer.card.name for offer in known)])
    hint = f"offered: {_listed(known)}" if known else "a card arrives when the coordinator serves"
    raise UsageError(f"no card of a run {run} was offered.{near}", hint=hint)


def decide(folder: Path, offer: Offered, approve: bool) -> None:
    """Approve or decline a card. The site's process reads it at the next offer, which comes within seconds."""
    SiteStore(Folder(folder)).decide(offer.run, offer.card.digest, ADMITTED if approve else DECLINED)


def needs_person(policy: Policy) -> bool:
    """Whether a person approves each card."""
    return policy.approve == "ask"


def _listed(found: list[Offered]) -> str:
    return ", ".join(f"{offer.run[:12]} ({offer.card.name})" for offer in found)
