"""Example-level differential privacy of a recipe: its numbers before the run, and the statement at its end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from shepherd.config import Config
from shepherd.errors import UsageError, plural
from shepherd.experiment.privacy_plan import LITTLE, signal_of
from shepherd.round import Plan, draw_cohort
from shepherd.server.method import Method
from shepherd.types import Adapter, ClientId, GlobalModel, ServerState
from shepherd.updates.privacy.accountant import Epsilons, Rounds, least_noise
from shepherd.updates.privacy.example_account import ExampleAccounts, largest_epsilon, sampling_rate
from shepherd.updates.privacy.example_level import ExampleLevel
from shepherd.updates.privacy.ledger import noise_of, span
from shepherd.updates.replies import Replies

UNIT = "example: one row of a client, as given"
RELATION = "zero-out (REPLACE_SPECIAL): one row is replaced by none, and it still counts in n"
MECHANISM = (
    "Gaussian noise on the sum of clipped gradients of single rows, added once by the client, in every local step"
)
NOT_COVERED = (
    "rows that repeat one another, and several rows of one person: the unit is one row",
    "how many rows a client has, which rounds it takes part in, and how long its steps take",
    "the held-out rows of server and clients, and what is published about them",
    "the arms local and centralised, and personal models that are trained without noise",
    "other runs over the same rows, and copies of a run that both go on: each has an ε of its own, and they add up",
    "the base model and its pretraining data",
    "the rounding of floating-point numbers, by which noise and sum differ from real numbers",
)


def example_level(config: Config, plan: Plan) -> ExampleLevel | None:
    """The mechanism of a recipe for the clients of a plan; None without privacy of examples.

    Raises UsageError where no noise gives privacy.epsilon.
    """
    privacy = config.privacy
    if privacy.unit != "example":
        return None
    check_delta(privacy.delta, plan)
    steps = planned_steps(plan, config.federation.rounds)
    noise = privacy.noise_multiplier
    if noise == "from_epsilon":
        noise = noise_for(privacy.epsilon, steps, privacy.delta)
    planned = {client: Rounds(rate, noise, count) for client, (rate, count) in steps.items()}
    accounts = ExampleAccounts(privacy.delta, privacy.epsilon)
    return ExampleLevel(
        privacy.clip, noise, privacy.delta, planned, privacy.epsilon, privacy.repeatable_noise, accounts
    )


def check_delta(delta: float, plan: Plan) -> None:
    """Raise UsageError where delta is so large that publishing a row at random would pass."""
    most = max(plan.sizes.values())
    if delta > 1 / most:
        raise UsageError(
            f"privacy.delta = {delta:g} for a client of {most:,} rows: at most 1/n, better 1/(10n); "
            f"set {0.1 / most:.2g}"
        )


def planned_steps(plan: Plan, rounds: int) -> dict[ClientId, tuple[float, int]]:
    """(q, steps in all rounds) of each client, if every client that is drawn trains.

    Draws follow from the seed and from no row. A client that is not drawn counts as one that is drawn once.
    """
    model = GlobalModel(Adapter({}, 1, 1.0))
    times: Counter[ClientId] = Counter()
    for number in range(1, rounds + 1):
        cohort = draw_cohort(ServerState(number - 1, model), plan, Replies(), plan.cohort_size)
        times.update([*cohort.work] if cohort is not None else [])
    found = {}
    for client in plan.clients:
        work = plan.work(client, 1, 0)
        found[client] = sampling_rate(work, plan.sizes[client]), max(1, times[client]) * work.steps
    return found


def noise_for(epsilon: float, steps: Mapping[ClientId, tuple[float, int]], delta: float) -> float:
    """The least noise multiplier with which no client exceeds epsilon in its steps. Raises UsageError without one."""
    noise = 0.0
    for _ in steps:
        # Which client has the largest ε hardly depends on the noise, so one or two searches are enough.
        accounts = {client: [Rounds(rate, noise or 1.0, count)] for client, (rate, count) in steps.items()}
        client, found = largest_epsilon(accounts, delta)
        if noise and found.least <= epsilon:
            break
        rate, count = steps[client]
        noise = max(noise, least_noise(epsilon, sampling_rate=rate, rounds=count, delta=delta))
    return noise


def example_forecast(plan: Plan, adapter: Adapter) -> dict[str, Any] | None:
    """What the privacy of a plan will guarantee, and the noise of a step's mean over the clip, z·√p/b.

    p: the numbers that a client trains in a step, on average. b: the planned rows of the smallest step. None without
    privacy of examples.
    """
    level = plan.examples
    if level is None:
        return None
    batch = min(work.rows / work.steps for work in (plan.work(client, 1, 0) for client in plan.clients))
    values = trained_values(plan.method, adapter)
    ratio = level.noise_multiplier * math.sqrt(values) / batch
    guarantee = _guarantee(level, {client: [part] for client, part in level.planned.items()})
    return {
        "private": guarantee["epsilon"] is not None and not level.repeatable,
        **guarantee,
        "values": round(values),
        "noise_over_clip": ratio,
        "signal": signal_of(ratio, max(part.count for part in level.planned.values())),
    }


def trained_values(method: Method, adapter: Adapter) -> float:
    """The numbers that a local step trains, the mean over the steps of two rounds: methods alternate by no more."""
    if heads := method.pieces.start.heads:
        return len(adapter.factors) * adapter.r**2 / heads
    size = {part: sum(getattr(pair, part).size for pair in adapter.factors.values()) for part in "AB"}
    steps = [moves for number in (1, 2) for moves in method.pieces.train.of(number)[0]]
    return sum(size[part] for moves in steps for part in moves) / len(steps)


def extra_slots(plan: Plan, at_once: int) -> int:
    """The memory of DP-SGD in adapters with their optimizer (16 bytes a number): a gradient for each row of a step, and
    sum and noise in float64. 0 without privacy of examples."""
    if plan.examples is None:
        return 0
    batch = max(work.rows / work.steps for work in (plan.work(client, 1, 0) for client in plan.clients))
    return math.ceil((16 + 3 * 8 + 4 * min(math.ceil(batch), at_once)) / 16)


def example_warnings(plan: Plan) -> list[str]:
    """What a person should know of the numbers of a plan with privacy of examples before it begins."""
    level = plan.examples
    if level is None:
        return []
    found, most = [], max(plan.sizes.values())
    if level.noise_multiplier == 0:
        found.append("a noise multiplier of 0 is no privacy: epsilon is infinite")
    elif (epsilon := _largest(level).least) > LITTLE:
        found.append(f"epsilon = {epsilon:.3g} is hardly a guarantee: usual values lie between 1 and 8")
    if level.delta > 1 / (10 * most):
        found.append(f"delta = {level.delta:g} is weak for a client of {most:,} rows: better 1/(10n) = {0.1 / most:g}")
    if whole := sum(part.sampling_rate == 1 for part in level.planned.values()):
        found.append(
            f"{plural(whole, 'client')} {'takes all of its' if whole == 1 else 'take all of their'} rows in every "
            "step: with fewer (training.batch_size) epsilon is smaller"
        )
    if level.repeatable:
        found.append("privacy.repeatable_noise: rows and noise follow from run.seed, so the run is not private")
    return found


def example_statement(level: ExampleLevel, publish_nothing: bool = False) -> dict[str, Any]:
    """The block `privacy` of metrics.json and summary.json, from the lines of all ledgers; an infinite ε is null.

    z and C are [the least, the most] where a run was forced to go on with another recipe.
    """
    ledgers = {client: level.accounts.ledger(client) for client in level.planned}
    spent = {client: [line.rounds for line in ledger.releases] for client, ledger in ledgers.items()}
    lines = [line for ledger in ledgers.values() for line in ledger.releases]
    stated: dict[str, Any] = {}
    if lines:  # what they have, not what the recipe has now
        stated = {key: span(getattr(line, key) for line in lines) for key in ("noise_multiplier", "clip")}
        stated["noise"] = noise_of(lines)
    guarantee = _guarantee(level, spent)
    return {
        "private": guarantee["epsilon"] is not None and all(ledger.private for ledger in ledgers.values()),
        **guarantee,
        **stated,
        "publish_nothing": publish_nothing,
    }


def _guarantee(level: ExampleLevel, spent: Mapping[ClientId, list[Rounds]]) -> dict[str, Any]:
    """ε of the client with the largest one, by both accountants, and what it is about."""
    _, found = largest_epsilon(spent, level.delta)
    parts = [part for parts in spent.values() for part in parts]
    rates = [part.sampling_rate for part in parts]
    steps = [sum(part.count for part in parts) for parts in spent.values()]
    return {
        "unit": UNIT,
        "relation": RELATION,
        "mechanism": MECHANISM,
        "delta": level.delta,
        "budget": level.epsilon or None,
        "clients": len(spent),
        "sampling_rate": [min(rates, default=0.0), max(rates, default=0.0)],
        "steps": [min(steps), max(steps)],
        "noise_multiplier": level.noise_multiplier,
        "clip": level.clip,
        "noise": "repeatable" if level.repeatable else "secret",
        "not_covered": list(NOT_COVERED),
        **found.stated(),
    }


def _largest(level: ExampleLevel) -> Epsilons:
    return largest_epsilon({client: [part] for client, part in level.planned.items()}, level.delta)[1]
