"""The privacy of a run over sites, at its coordinator: the table of its card, N and q of its plans, and its ledgers.

    table = privacy_card(config, sites=10)              # None without privacy; noise and q are fixed by it
    private = Protection(config, table, store, facts)
    plan = private.of(plan)                             # with the one ledger of the run, read and checked once

Unit client: N are the sites of the first round, for good. Each is drawn with the q of the card, a site that is away
counts as zero, and the run ends when it has released as often as it has rounds. Unit example: the sites have noise and
accounts; the ledgers here are of the tasks that were sent, by the rows that sites state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shepherd.clients.selection import cohort_size
from shepherd.config import Config
from shepherd.errors import UsageError, plural
from shepherd.experiment.client_privacy import noise_multiplier, sampling_rate_of
from shepherd.experiment.example_ledgers import with_accounts
from shepherd.experiment.example_privacy import example_statement
from shepherd.experiment.privacy_account import statement, with_ledger
from shepherd.federation.privacy_card import TRUST, PrivacyCard
from shepherd.round import Plan
from shepherd.store import RunDirectory, read_json
from shepherd.types import ClientId, TrainTask
from shepherd.updates.privacy.accountant import Rounds
from shepherd.updates.privacy.publication import PRIVATE

CARD = "card.json"
"""The card of a private run, in private/: a resumed run has the same one, whatever its terms are."""
BY_SITES = (
    "steps that a site repeated by itself, and rows that it stated and has not: epsilon here is that of the tasks that "
    "were sent, and each site keeps the account of its own steps"
)


def privacy_card(config: Config, sites: int) -> PrivacyCard | None:
    """The table of a card: the noise multiplier of a recipe for at least `sites` sites; None without privacy.

    Raises UsageError where no noise gives privacy.epsilon.
    """
    found = config.privacy
    if found.unit == "none":
        return None
    agreed: dict[str, Any] = {
        "clip": found.clip,
        "delta": found.delta,
        "noise": "repeatable" if found.repeatable_noise else "secret",
    }
    if found.unit == "example":
        assert found.noise_multiplier != "from_epsilon", "refused by for_sites"
        return PrivacyCard(
            unit="example", noise_multiplier=found.noise_multiplier, drawn_by="site", trust=TRUST["example"], **agreed
        )  # fmt: skip
    federation = config.federation
    q = sampling_rate_of(config, sites, cohort_size(sites, federation.clients_per_round, federation.fraction))
    if found.delta > 1 / sites:
        raise UsageError(
            f"privacy.delta = {found.delta:g} for {sites:,} sites: at most 1/N, better 1/(10N); set {0.1 / sites:.2g}"
        )
    return PrivacyCard(
        unit="client", noise_multiplier=noise_multiplier(config, q), adaptive_clip=found.adaptive_clip,
        epsilon=found.epsilon, sites=sites, sampling_rate=q, drawn_by="coordinator", trust=TRUST["client"], **agreed,
    )  # fmt: skip


def sites_of_the_card(store: RunDirectory) -> int:
    """N of the card with which a run was begun; 0 where there is none."""
    file = store.path / PRIVATE / CARD
    card = read_json(file) if file.is_file() else {}
    return int((card.get("privacy") or {}).get("sites", 0))


class Protection:
    """The privacy of a run over sites, or that it has none. facts: of the last committed round, as it is resumed."""

    def __init__(
        self, config: Config, card: PrivacyCard | None, store: RunDirectory, facts: Mapping[str, Any] | None
    ) -> None:
        self.card, self.store, self._facts, self._rounds = card, store, facts, config.federation.rounds
        self._publish_nothing = config.privacy.publish_nothing
        self._opened: Plan | None = None
        noise = {"noise_multiplier": card.noise_multiplier} if card is not None else {}
        self._config = config.model_copy(update={"privacy": config.privacy.model_copy(update=noise)})

    def recipe(self, clients_per_round: int) -> Config:
        """The recipe with the noise of the card, so that it is found once, and a number of sites in a round."""
        federation = self._config.federation.model_copy(update={"clients_per_round": clients_per_round})
        return self._config.model_copy(update={"federation": federation})

    @property
    def fixed(self) -> bool:
        """Whether all sites of the first round, and no others, are drawn from in each: N of the account."""
        return self.card is not None and self.card.unit == "client"

    def of(self, plan: Plan) -> Plan:
        """The plan of a round with the mechanism of the card, and with the ledgers of the run.

        Raises DataError, which no --force lifts, where lines of a ledger are missing or changed.
        """
        if plan.privacy is not None and self.card is not None:
            plan = replace(plan, privacy=replace(plan.privacy, sampling_rate=self.card.sampling_rate))
        if self._opened is None:
            self._opened = with_accounts(with_ledger(plan, self.store, self._facts), self.store, self._facts)
        opened = self._opened
        if plan.privacy is not None and opened.privacy is not None:
            plan = replace(plan, privacy=plan.privacy.with_ledger(opened.privacy.ledger))
        if plan.examples is not None and opened.examples is not None:
            plan = replace(plan, examples=plan.examples.with_accounts(opened.examples.accounts))
        return plan

    def sent(self, task: TrainTask, sizes: Mapping[ClientId, int]) -> None:
        """Enter the steps of a task in the ledgers of its sites, before it goes: by the rows that they stated."""
        if self._opened is not None and self._opened.examples is not None:
            for client, work in sorted(task.work.items()):
                self._opened.examples.accounts.enter(task, work, sizes[client])

    def ended(self, number: int) -> str:
        """Why the run ends after round `number`, before its last one, or ""."""
        if self._opened is None or self._opened.privacy is None or number >= self._rounds:
            return ""
        if len(self._opened.privacy.ledger.releases) < self._rounds:
            return ""
        return (
            f"the run ends after round {number} of {self._rounds}: its card has {plural(self._rounds, 'release')}, and "
            "attempts that were not committed count as well"
        )

    def statement(self, plan: Plan) -> dict[str, Any]:
        """The block `privacy` of metrics.json, summary.json and privacy.json; empty without privacy."""
        if plan.privacy is not None:
            return statement(plan.privacy, self._publish_nothing)
        if plan.examples is None:
            return {}
        level = replace(plan.examples, planned=dict.fromkeys(plan.sizes, Rounds(1.0, 0.0, 0)))
        found = example_statement(level, self._publish_nothing)
        return {**found, "not_covered": [*found["not_covered"], BY_SITES]}
