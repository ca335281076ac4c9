"""The privacy plan: before a run, what client-level differential privacy would guarantee and how much noise it needs.

plan_privacy(clients=1000, per_round=50, rounds=200, delta=1e-4, noise=1.0).epsilon      # 3.999
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shepherd.errors import UsageError
from shepherd.server.methods import build_method
from shepherd.server.traffic import table
from shepherd.server.transform_conflicts import reasons
from shepherd.updates.privacy.accountant import ENOUGH, LEAST, Epsilons, Rounds, epsilons, least_noise
from shepherd.updates.transforms import Transform

MOST_ROUNDS = 1_000_000
"""More take minutes to compose."""
MOST_CLIENTS = 10**12
LITTLE = 20.0
"""An ε above it is warned of: e^20 is five hundred million."""
EXAMPLE = "r = 8 on q and v of SmolLM2-135M"
"""The adapter whose values are counted, as in `shepherd list methods`."""
NOISE = Transform(needs=frozenset({"linear", "uniform weights"}), name="noise")
"""What noise on the sum asks of a method."""
BREAKING = (
    "lora.ranks: a rank slot that few clients train is divided by few, so one client moves it by more than the clip",
    'federation.weights other than "uniform": the size of a client would change its bound',
    'selection.name other than "poisson", or a cohort that is published: epsilon is that of a secret, independent draw',
    'federation.on_too_few other than "skip", min_updates above 1, over_select, deadline, quarantine_after: the '
    "failure or the speed of one client would change what the others count for",
    'federation.clip_update_norm = "median", federation.aggregator: they follow from the updates without noise',
    'objective.scaffold, server.optimizer = "fednova", personalization.name = "ifca": state of the clients that no '
    "noise covers",
)
"""Settings that void the guarantee of every method."""
UNIT = "client: all rows of one client"
RELATION = "zero-out (REPLACE_SPECIAL): the rows of one client are replaced by none, and it still counts in N"
MECHANISM = "Gaussian noise on the sum of clipped updates, added once by the server, in every round"
NOT_COVERED = (
    "anything against the server: it sees each update, clips and adds the noise",
    "membership in the federation: that a client takes part is not hidden, what its rows contain is",
    "the server's held-out rows, and what is published about them",
    "losses, counts and norms of clients, cohorts, the arms local and centralised: they carry no noise",
    "one person's rows at several clients: the unit is one client",
    "other runs over the same rows, and copies of a run that both go on: each has an ε of its own, and they add up",
    "the base model and its pretraining data",
    "the rounding of floating-point numbers, by which noise and sum differ from real numbers",
)


@dataclass(frozen=True)
class MethodPlan:
    """One method under this noise.

    values: numbers that a client sends, mean over the rounds of the schedule. noise_over_clip: z·√values/(qN), the norm
    of the noise in a round's mean over the clip, which bounds the norm of an update. breaks: why the method does not
    keep the guarantee, or empty. signal: "yes", "doubtful" or "no", and "none" where the guarantee breaks.
    """

    name: str
    values: float
    noise_over_clip: float
    breaks: str
    signal: str


@dataclass(frozen=True)
class PrivacyPlan:
    """ε at delta of `rounds` rounds with `per_round` of `clients` expected in each, and the noise of each method."""

    clients: int
    per_round: int
    rounds: int
    delta: float
    noise_multiplier: float
    epsilon_pld: float
    epsilon_rdp: float
    methods: tuple[MethodPlan, ...]
    warnings: tuple[str, ...]
    unit: str = UNIT
    relation: str = RELATION
    mechanism: str = MECHANISM
    example: str = EXAMPLE
    breaks: tuple[str, ...] = BREAKING
    not_covered: tuple[str, ...] = NOT_COVERED
    noise_is_added: bool = True

    @property
    def sampling_rate(self) -> float:
        """q = K/N, the probability with which each client is drawn in a round."""
        return self.per_round / self.clients

    @property
    def epsilon(self) -> float:
        """The smaller of the two bounds, infinite without noise."""
        return Epsilons(self.epsilon_pld, self.epsilon_rdp).least

    @property
    def accountant(self) -> str:
        """Which bound `epsilon` is."""
        return Epsilons(self.epsilon_pld, self.epsilon_rdp).accountant


def plan_privacy(
    *,
    clients: int,
    per_round: int,
    rounds: int,
    delta: float,
    noise: float | None = None,
    epsilon: float | None = None,
) -> PrivacyPlan:
    """The plan for a noise multiplier, or for the least one that keeps within `epsilon`.

    Raises UsageError, with all reasons, for numbers that are no plan, where no noise gives `epsilon`, and where the
    extra `dp` is missing.
    """
    problems = _problems(clients, per_round, rounds, delta, noise, epsilon)
    if problems:
        raise UsageError("\n".join(message for message, _ in problems), hint=problems[0][1])
    q = per_round / clients
    if epsilon is not None:
        noise = least_noise(epsilon, sampling_rate=q, rounds=rounds, delta=delta)
    assert noise is not None
    found = epsilons([Rounds(q, noise, rounds)], delta)
    methods = tuple(_method(row, noise, per_round, rounds) for row in table())
    warnings = tuple(noise_warnings(clients, delta, noise, found.least))
    return PrivacyPlan(clients, per_round, rounds, delta, noise, found.pld, found.rdp, methods, warnings)


def _problems(
    clients: int, per_round: int, rounds: int, delta: float, noise: float | None, epsilon: float | None
) -> list[tuple[str, str]]:
    """(sentence, hint) for each number that is not one of a plan."""
    found = []
    if clients < 1:
        found.append(
            (f"clients = {clients}: a federation has at least one client", "--clients N, all that may be drawn")
        )
    elif clients > MOST_CLIENTS:
        found.append(
            (f"clients = {clients:,} is more than a federation can have: {MOST_CLIENTS:,}", "--clients N, all of them")
        )
    if per_round < 1:
        found.append((f"per-round = {per_round}: at least one client is expected in a round", "--per-round K"))
    elif per_round > clients >= 1:
        found.append((
            f"per-round = {per_round} is more than the {clients} clients: each is drawn with probability K/N",
            f"set --per-round to at most {clients}",
        ))  # fmt: skip
    if rounds < 1:
        found.append((f"rounds = {rounds}: there is nothing to account for; at least 1", "--rounds T"))
    elif rounds > MOST_ROUNDS:
        found.append((f"rounds = {rounds} is more than the {MOST_ROUNDS:,} that can be composed", "--rounds T"))
    if not 0 < delta < 1:
        found.append((
            f"delta = {delta:g} is not between 0 and 1: it is the probability with which epsilon may not hold",
            f"at most 1/N, better 1/(10N): --delta {0.1 / min(max(clients, 1), MOST_CLIENTS):g}",
        ))  # fmt: skip
    return [*found, *_noise_problems(noise, epsilon)]


def _noise_problems(noise: float | None, epsilon: float | None) -> Iterator[tuple[str, str]]:
    """The same for the noise and the epsilon, of which one is given."""
    if noise is not None and epsilon is not None:
        yield "noise and epsilon are both given: each follows from the other", "leave one out"
    elif noise is None and epsilon is None:
        yield "neither noise nor epsilon is given", "--noise Z for its epsilon, or --epsilon E for the least noise"
    elif noise is not None and not 0 <= noise < math.inf:
        yield f"noise = {noise:g}: a noise multiplier is a number from 0 on", "usually between 0.5 and 2"
    elif noise is not None and noise > ENOUGH:
        yield f"noise = {noise:g} is more than {ENOUGH:,.0f}, which covers everything", "usually between 0.5 and 2"
    elif epsilon is not None and not 0 < epsilon < math.inf:
        why = "no noise reaches it" if epsilon <= 0 else "it is no bound"
        yield f"epsilon = {epsilon:g}: {why}", "a number above 0, usually between 1 and 8"


def noise_warnings(clients: int, delta: float, noise: float, epsilon: float) -> list[str]:
    """A sentence for each number that makes the guarantee weak, or none."""
    found = []
    if delta > 1 / clients:
        found.append(
            f"delta = {delta:g} is more than 1/N = {1 / clients:g}: publishing all rows of one random client would "
            f"pass; at most 1/N, better 1/(10N) = {0.1 / clients:g}"
        )
    elif delta > 1 / (10 * clients):
        found.append(f"delta = {delta:g} is weak for {clients:,} clients: better 1/(10N) = {0.1 / clients:g}")
    if noise == 0:
        found.append("a noise multiplier of 0 is no privacy: epsilon is infinite")
    elif noise < LEAST:
        found.append(f"no bound is computed for a noise multiplier below {LEAST:g}: epsilon is given as infinite")
    elif epsilon > LITTLE:
        found.append(f"epsilon = {epsilon:.3g} is hardly a guarantee: usual values lie between 1 and 8")
    return found


def _method(row: dict, noise: float, per_round: int, rounds: int) -> MethodPlan:
    values = row["bytes_up"] / 4
    ratio = noise * math.sqrt(values) / per_round
    method = build_method(row["name"])
    conflicts = reasons(NOISE, method, weights="uniform", scaffold=False, clusters=0, mixed_ranks=False)
    breaks = "; ".join(why for _, why, _ in conflicts)
    return MethodPlan(row["name"], values, ratio, breaks, "none" if breaks else signal_of(ratio, rounds))


def signal_of(ratio: float, rounds: int) -> str:
    """Whether updates are visible under noise that is `ratio` times the clip in each round: yes, doubtful or no."""
    # √rounds: updates add up at most like the rounds, independent noise like their root.
    return "yes" if ratio <= 1 else "doubtful" if ratio <= math.sqrt(rounds) else "no"
