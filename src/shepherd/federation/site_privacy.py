"""Privacy at a site: what a card promises, judged by the site's own numbers, and what may leave in a private run.

    judge_privacy(card, policy, …)       # before any row is read: "", or the code of the first reason against the card
    judge_rows(card, policy, rows)       # unit example, when the rows are counted and none is trained on
    protected(train, store, run, task, card)

ε is that of the site's own accountant, never a number of the coordinator. Where the coordinator draws the noise, a site
sees neither that it does nor which other sites it samples; how often it samples the site itself, it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec

from shepherd.clients.local_work import local_work
from shepherd.errors import DataError
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.privacy_card import PrivacyCard
from shepherd.federation.site_store import SiteStore, Unwritten
from shepherd.federation.verdicts import Refused
from shepherd.server.composition import from_outside
from shepherd.server.method import Method
from shepherd.types import ClientFailure, ClientUpdate, ExamplePrivacy, TrainTask, TransformSpec
from shepherd.updates.clipping import clipped
from shepherd.updates.privacy.accountant import Rounds, epsilons
from shepherd.updates.privacy.example_account import ExampleRelease
from shepherd.updates.privacy.ledger import releases_in

DP, LEDGER = "dp", "ledger.jsonl"
"""The protection that the table `privacy` of a card gives; the file of a run in which a site enters its own noise."""
ROUNDING = 1e-9
"""Relative room for the rounding of a clip that moves."""
RARE = 1e-6
"""Probability with which a site is drawn more often than `most_trainings`, by chance."""
REPEATS = 3
"""Tasks beyond that, of rounds that the coordinator had to repeat before anything was released."""


def is_drawn(card: RunCard) -> bool:
    """Whether the sites of a round are drawn at random: how many there are is a secret, and the card has the mean."""
    return card.privacy is not None and card.privacy.unit == "client"


# The card


def judge_privacy(card: RunCard, policy: Policy, method: Method | None, clusters: int) -> str:
    """The code of the first reason against the privacy of a card, by what the card says alone; "" for none.

    method, clusters: those of the card. ε of unit client is computed here, by dp-accounting; without it the site
    cannot judge the card, and refuses it.
    """
    found = card.privacy
    if found is None:
        return "require" if DP in policy.require else ""
    if found.unit == "client" and found.cohort < policy.least_cohort:
        return "cohort"
    if voids(card, found, method, clusters) or (DP in policy.require and found.noise != "secret"):
        return "privacy"
    if policy.delta_max and found.delta > policy.delta_max:
        return "epsilon"
    if found.unit == "example" or not _is_limited(policy):
        return "epsilon" if _is_limited(policy) and not found.noise_multiplier else ""
    return _judge_epsilon(_rounds(card, found), found, policy)


def judge_rows(card: RunCard, policy: Policy, rows: int) -> str:
    """The same for the rows of a site that trains by DP-SGD: ε of all rounds, and whether δ is small enough for them.

    rows: those that it holds, not the number that it states.
    """
    found = card.privacy
    if found is None or found.unit != "example" or not _is_limited(policy):
        return ""
    if found.delta > 1 / rows:
        return "epsilon"
    return _judge_epsilon(planned_steps(card, rows, max(rows, policy.min_rows_tell)), found, policy)


def planned_steps(card: RunCard, rows: int, stated: int) -> Rounds:
    """The noised steps of a site in all rounds of a card. rows: n; stated: from which the work of a round follows."""
    training = card.training
    work, steps = local_work(stated, training.batch_size, training.local_steps, training.local_epochs)
    assert card.privacy is not None
    rate = min(1.0, work / (steps * rows))
    return Rounds(rate, card.privacy.noise_multiplier, steps * card.federation.rounds)


def voids(card: RunCard, found: PrivacyCard, method: Method | None, clusters: int) -> bool:
    """Whether settings of a card void its guarantee, as a coordinator of this version refuses (docs/privacy.md)."""
    federation, ranks = card.federation, card.lora.ranks
    mixed = any(rank != card.lora.r for rank in (ranks.values() if isinstance(ranks, Mapping) else ranks))
    if method is None or clusters or found.noise_multiplier == 0:
        return True
    pieces = method.pieces
    if found.unit == "example":
        chosen = mixed and pieces.view.probe is not None
        return federation.weights == "tokens" or federation.clip_update_norm == "median" or chosen
    return bool(
        federation.weights != "uniform"
        or federation.min_updates > 1
        or federation.clip_update_norm
        or mixed
        or card.objective.scaffold
        or method.optimizer.by_steps
        or not pieces.merge.linear
        or pieces.weigh.own
        or pieces.payload.name != "plain"
        or any(from_outside(pieces, method.optimizer))
    )


def epsilon_of(card: RunCard) -> float | None:
    """ε of all rounds of a card of unit client, by this site's own accountant; None for another card, or without it."""
    found = card.privacy
    if found is None or found.unit != "client" or not found.noise_multiplier or find_spec("dp_accounting") is None:
        return None
    return epsilons([_rounds(card, found)], found.delta).least


def _rounds(card: RunCard, found: PrivacyCard) -> Rounds:
    return Rounds(found.sampling_rate, found.noise_multiplier, card.federation.rounds)


def _is_limited(policy: Policy) -> bool:
    return DP in policy.require or policy.epsilon_max > 0


def _judge_epsilon(rounds: Rounds, found: PrivacyCard, policy: Policy) -> str:
    if find_spec("dp_accounting") is None:
        return "accountant"
    limit = policy.epsilon_max or math.inf
    epsilon = epsilons([rounds], found.delta).least
    return "" if epsilon <= limit and epsilon < math.inf else "epsilon"


# A task


def fits_the_card(task: TrainTask, card: RunCard) -> bool:
    """Whether the DP-SGD of a task is that of the card; none without it."""
    found = card.privacy
    if found is None or found.unit == "client":
        return task.privacy is None
    return task.privacy == ExamplePrivacy(found.clip, found.noise_multiplier, found.noise == "repeatable")


def clip_of_the_card(given: list[tuple[str, dict[str, object]]], round_number: int, card: RunCard) -> bool:
    """Whether the first transform of a task clips the update as unit client of the card does."""
    found = card.privacy
    if found is None or not given or given[0][0] != "clip":
        return False
    options = dict(given[0][1])
    norm, report = options.pop("norm", None), options.pop("report", False)
    if options or type(norm) not in (int, float) or report is not found.adaptive_clip or not 0 < norm < 1e300:  # type: ignore[operator]
        return False
    move = abs(math.log(norm / found.clip))  # type: ignore[operator]
    return move <= found.largest_move(round_number) * (1 + ROUNDING) and (found.adaptive_clip or norm == found.clip)


def most_trainings(card: RunCard, most: int) -> int:
    """The most tasks of a run that a site trains: those of its policy, `most`, and of the releases of a private run.

    A run has no more releases than rounds. With probability q in each, a site is drawn more than k times with at most
    exp(-T · KL(k/T ‖ q)) (Chernoff).
    """
    found, rounds = card.privacy, card.federation.rounds
    if found is None:
        return most
    drawn = rounds if found.unit == "example" else _most_drawn(rounds, found.sampling_rate)
    return min(most, drawn + REPEATS)


def _most_drawn(rounds: int, rate: float) -> int:
    for drawn in range(math.ceil(rounds * rate), rounds):
        share = drawn / rounds
        divergence = (share * math.log(share / rate) if share else 0.0) + (
            (1 - share) * math.log((1 - share) / (1 - rate))
        )
        if share > rate and rounds * divergence >= -math.log(RARE):
            return drawn
    return rounds


def protected(
    train: Callable[[], ClientUpdate | ClientFailure], store: SiteStore, run: str, task: TrainTask, card: RunCard
) -> ClientUpdate | ClientFailure:
    """Train, and give what may leave: of unit client an update of at most the norm of the task, of unit example one
    without measures, whose noise is in the site's ledger. Raises Refused("ledger") where it is not."""
    found = card.privacy
    if found is None:
        return train()
    before = entered(store, run) if found.unit == "example" else 0
    reply = train()
    if isinstance(reply, ClientFailure):
        # The trainer's account is the only one that refuses.
        return replace(reply, detail="epsilon") if reply.code == "refused" else reply
    if found.unit == "client":
        own = [spec for spec in task.transforms if spec.name == "clip"]
        return clipped(reply, _norm_of(own)) if len(task.transforms) == len(own) else reply
    after = entered(store, run)
    if after <= before:
        raise Refused("ledger")
    try:
        store.note(run, released=after)
    except Unwritten:  # not to be tried again: each training draws new noise, and spends
        raise Refused("ledger") from None
    return replace(reply, metrics={}, num_tokens=task.work[reply.client].rows)


def _norm_of(specs: list[TransformSpec]) -> float:
    return float(specs[0].options["norm"])


def entered(store: SiteStore, run: str) -> int:
    """The lines of the site's ledger of a run. Raises Refused("ledger") where there are fewer than when the last update
    left, and for one that is none."""
    try:
        lines = len(releases(store, run))
    except DataError:
        raise Refused("ledger") from None
    if lines < store.record(run).get("released", 0):
        raise Refused("ledger")
    return lines


def releases(store: SiteStore, run: str) -> list[ExampleRelease]:
    """The lines of the site's ledger of a run. Raises DataError for one that is none."""
    data = store.place.read(f"runs/{run}/{LEDGER}") or b""
    return [line for line in releases_in(data, ExampleRelease, LEDGER) if isinstance(line, ExampleRelease)]
