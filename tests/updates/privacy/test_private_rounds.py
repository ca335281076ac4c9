"""Rounds of numbers with client-level differential privacy: who is drawn, what one client moves, what is released."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from number_engine import NumberEngine
from shepherd.clients.selection import build_selection
from shepherd.errors import UsageError
from shepherd.experiment.plan import with_transforms
from shepherd.round import Plan, Policy, draw_cohort, run_round
from shepherd.server.methods import build_method
from shepherd.types import Adapter, ClientFailure, ClientUpdate, Factors, GlobalModel, Objective, ServerState, Work
from shepherd.updates.clipping import REPORTED
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.privacy import client_level
from shepherd.updates.privacy.client_level import ClientLevel
from shepherd.updates.privacy.ledger import Ledger
from shepherd.updates.privacy.noise import Noise
from shepherd.updates.replies import Late, Replies
from tiny_transforms import spec

CLIENTS = tuple(f"c{k:02}" for k in range(20))
R, WIDTH = 4, 2500
CLIP = 0.5


def state(**changes) -> ServerState:
    """A model of two modules, with 10,000 numbers in A and in B of each."""
    rng = np.random.default_rng(3)
    factors = {
        name: Factors(rng.normal(0, 0.1, (R, WIDTH)).astype("f4"), rng.normal(0, 0.1, (WIDTH, R)).astype("f4"))
        for name in ("k", "q")
    }
    return replace(ServerState(0, GlobalModel(Adapter(factors, R, 4.0))), **changes)


def private(method: str = "fedit", optimizer: str = "fedavg", **changes) -> Plan:
    """A plan with z = 1, C = 0.5, and q = 1/4 of twenty clients: noise of 0.1 on each value of the mean."""
    mechanism = {"sampling_rate": 0.25, "noise_multiplier": 1.0, "clip": CLIP, "delta": 1e-2}
    privacy = ClientLevel(CLIENTS, **mechanism | changes)
    return Plan(
        seed=0,
        clients=CLIENTS,
        cohort_size=5,
        select=build_selection("poisson"),
        method=build_method(method, {}, optimizer),
        weights="uniform",
        min_updates=1,
        work=lambda client, number, first: Work(client, first, 1 + CLIENTS.index(client), (0.1,)),
        rank=lambda client: R,
        objective=Objective(),
        policy=Policy(on_too_few="skip"),
        gate=lambda: Gate(Limits(norm=1e4)),
        privacy=privacy,
    )


def update(client: str, task, size: float = 3.0, **changes) -> ClientUpdate:
    """An update in a direction of the client's, with this L2 norm."""
    rng = np.random.default_rng([5, CLIENTS.index(client)])
    drawn = {name: rng.normal(size=tensor.shape) for name, tensor in task.views[client].tensors().items()}
    norm = math.sqrt(sum(float((value**2).sum()) for value in drawn.values()))
    delta = {name: (value * size / norm).astype("f4") for name, value in drawn.items()}
    return replace(ClientUpdate(client, task.round, delta, task.work[client].rows, 10, 1, {"loss": 1.0}), **changes)


class Clients(NumberEngine):
    """An engine whose clients reply as `replies` has it: an update that none of them clips, where it has nothing."""

    def __init__(self, **replies) -> None:
        self.replies, self.cohorts = replies, []

    def train(self, task, deadline, enough, observe):
        self.cohorts.append(tuple(task.work))
        made = (self.replies.get(client, update)(client, task) for client in task.work)
        return [reply for reply in made if reply is not None]


def absent(client, task):
    return None


def moved(before: ServerState, after: ServerState) -> dict[str, np.ndarray]:
    """By how much each tensor moved, as float64 vectors."""
    pairs = [(before.model.adapter.factors, after.model.adapter.factors)]
    return {
        f"{module}.{part}": (np.float64(getattr(new[module], part)) - getattr(old[module], part)).ravel()
        for old, new in pairs
        for module in old
        for part in "AB"
    }


def as_bytes(of: ServerState) -> list[bytes]:
    return [array.tobytes() for pair in of.model.adapter.factors.values() for array in pair]


def nobody(plan: Plan) -> Plan:
    """The plan with the same noise and weight, in whose rounds nobody is drawn."""

    class Empty(ClientLevel):
        def draw(self, round_number):
            return ()

    return replace(plan, privacy=Empty(**vars(plan.privacy)))


# What one client moves

BAD = {
    "all reply": {},
    "another fails": {"c03": lambda client, task: ClientFailure(client, task.round, "diverged", "")},
    "another is lost": {"c03": absent},
    "another is late": {"c03": lambda client, task: Late(client, task.round)},
    "another is refused": {"c03": lambda client, task: update(client, task, 1e5)},
    "another is not finite": {"c03": lambda client, task: update(client, task, math.nan)},
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("size", [0.1, 3.0, 1e3])
def test_without_one_clients_data_the_sum_moves_by_at_most_the_clip(case, size):
    plan = private(noise_multiplier=0.0, sampling_rate=0.5, repeatable=7)  # the same cohort, and no noise
    drawn = plan.privacy.draw(1)
    assert "c03" in drawn
    others = BAD[case]
    mine = next(client for client in drawn if client not in BAD[case])
    with_it, record = run_round(state(), plan, Clients(**others, **{mine: lambda c, t: update(c, t, size)}))
    without, _ = run_round(state(), plan, Clients(**others, **{mine: absent}))
    apart = math.sqrt(sum(float((v**2).sum()) for v in moved(without, with_it).values()))
    bound = CLIP / 10  # qN = 10
    assert apart <= bound * (1 + 1e-5)
    assert apart == pytest.approx(min(size, CLIP) / 10, rel=1e-4), "in full where it is shorter"
    assert set(record.weights.values()) == {1 / 10} and mine in record.weights


def test_the_weight_of_an_update_is_one_by_qn_however_many_reply_with_however_many_rows():
    for engine in (Clients(), Clients(**dict.fromkeys(CLIENTS[::2], absent))):
        for _ in range(5):
            _, record = run_round(state(), private(sampling_rate=0.6), engine)
            assert set(record.weights.values()) <= {1 / 12}


def test_clients_in_quarantine_or_with_strikes_stay_in_the_pool():
    plan, out = private(sampling_rate=0.5), CLIENTS[:15]
    before = state(quarantined=out, strikes=dict.fromkeys(out, 9))
    cohorts = [draw_cohort(before, plan, Replies(), 10) for _ in range(40)]
    assert {client for cohort in cohorts for client in cohort.work} == set(CLIENTS)
    assert {share for cohort in cohorts for share in cohort.shares.values()} == {1 / 10}


# The noise


def test_the_noise_of_a_round_is_normal_with_z_times_the_clip_over_qn_in_every_tensor():
    before = state()
    after, record = run_round(before, nobody(private(noise_multiplier=2.0)), Clients())
    expected = 2.0 * CLIP / 5
    for name, values in moved(before, after).items():
        assert abs(values.std() / expected - 1) < 4.9 / math.sqrt(2 * values.size), name
        assert abs(values.mean()) < 4.9 * expected / math.sqrt(values.size)
        assert stats.kstest(values / expected, "norm").pvalue > 1e-7, name
    assert record.clip_norm == CLIP and record.clipped is None and not record.diagnostics


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e3])
def test_the_noise_does_not_depend_on_the_updates_of_a_round(size):
    plan, before = private(sampling_rate=1.0, noise_multiplier=2.0), state()
    replies = Clients(**dict.fromkeys(CLIENTS, lambda client, task: update(client, task, size)))
    after, _ = run_round(before, plan, replies)
    without, _ = run_round(before, private(sampling_rate=1.0, noise_multiplier=0.0), replies)
    for name, values in moved(without, after).items():
        assert abs(values.std() / (2.0 * CLIP / 20) - 1) < 4.9 / math.sqrt(2 * values.size), name


def test_the_noise_is_uncorrelated_between_tensors_rounds_and_runs_of_one_seed():
    draws = []
    for _ in range(2):
        at = state()
        for _ in range(2):
            after, _ = run_round(at, nobody(private()), Clients())
            draws += moved(at, after).values()
            at = after
    shared = np.abs(np.corrcoef(np.stack(draws)) - np.eye(16))
    assert shared.max() < 6 / math.sqrt(R * WIDTH)


@pytest.mark.parametrize("method", ["ffa_lora", "rolora", "fed_sb"])
def test_noise_covers_every_value_that_clients_send(method):
    plan = nobody(private(method))
    base = {name: np.random.default_rng(1).normal(size=(40, 40)) for name in ("k", "q")}
    small = Adapter({name: Factors(np.ones((R, 40), "f4"), np.zeros((40, R), "f4")) for name in base}, R, 4.0)
    before = ServerState(0, plan.method.start(small, 0, base))
    start = plan.method.view(before.model, "(server)", R, 1, 0)
    given = client_level.Contributions(1)
    given, _ = plan.privacy.release(given, start, CLIP, [])
    (noise,) = given.updates
    sent = start.tensors()
    assert {n: v.shape for n, v in noise.delta.items()} == {n: v.shape for n, v in sent.items()}
    assert all((value != 0).all() for value in noise.delta.values())
    after, _ = run_round(before, plan, Clients())
    assert as_bytes(after) != as_bytes(before)


def test_an_empty_round_moves_the_model_by_noise_and_is_in_the_ledger():
    plan = private(sampling_rate=1e-9)
    before, engine = state(), Clients()
    after, record = run_round(before, plan, engine)
    assert record.cohort == () and record.skipped is False and engine.cohorts == []
    assert all((values != 0).mean() > 0.99 for values in moved(before, after).values())
    assert [line.round for line in plan.privacy.ledger.releases] == [1]


def test_a_round_whose_clients_all_fail_releases_noise_too():
    before = state()
    after, record = run_round(before, private(sampling_rate=1.0), Clients(**dict.fromkeys(CLIENTS, absent)))
    assert len(record.missing) == 20 and not record.skipped
    assert all((values != 0).mean() > 0.99 for values in moved(before, after).values())


def test_without_noise_and_clip_and_with_everyone_a_round_is_fedavg_bit_for_bit():
    for optimizer in ("fedavg", "fedadam"):
        plan = private(optimizer=optimizer, noise_multiplier=0.0, clip=1e30, sampling_rate=1.0)
        plain = replace(plan, privacy=None, select=build_selection("everyone"), cohort_size=20)
        ours, theirs = state(), state()
        for _ in range(2):
            ours, theirs = run_round(ours, plan, Clients())[0], run_round(theirs, plain, Clients())[0]
        assert as_bytes(ours) == as_bytes(theirs)


# The ledger before the noise


def test_the_line_of_a_release_is_written_before_its_noise_is_drawn(monkeypatch):
    events = []

    class Watched(Noise):
        def normal(self, count):
            events.append("noise")
            return super().normal(count)

    monkeypatch.setattr(client_level, "Noise", Watched)
    plan = private()
    written = plan.privacy.with_ledger(Ledger(write=lambda line: events.append(line["round"])))
    run_round(state(round=6), replace(plan, privacy=written), Clients())
    assert events == [7, "noise", "noise", "noise", "noise"]


def test_where_the_line_cannot_be_written_nothing_is_released():
    def full(line):
        raise OSError("no space")

    plan = private()
    broken = replace(plan, privacy=plan.privacy.with_ledger(Ledger(write=full)))
    with pytest.raises(OSError, match="no space"):
        run_round(state(), broken, Clients())


def test_a_round_again_has_another_cohort_and_other_noise_and_both_attempts_count():
    plan, engine = private(sampling_rate=0.5, noise_multiplier=3.0), Clients()
    first, second = (run_round(state(), plan, engine)[0] for _ in range(2))
    assert engine.cohorts[0] != engine.cohorts[1]
    assert as_bytes(nobody_again(plan)) != as_bytes(nobody_again(plan)) and as_bytes(first) != as_bytes(second)
    lines = plan.privacy.ledger.releases
    assert [(line.attempt, line.round) for line in lines[:2]] == [(1, 1), (2, 1)]
    both, one = plan.privacy.ledger.epsilon(1e-2), Ledger(lines[:1]).epsilon(1e-2)
    assert both.least > one.least


def nobody_again(plan: Plan) -> ServerState:
    return run_round(state(), nobody(plan), Clients())[0]


def test_repeatable_noise_repeats_with_its_cohort_and_is_marked_in_the_ledger():
    plan, engine = private(sampling_rate=0.5, repeatable=3), Clients()
    first, second = (run_round(state(), plan, engine)[0] for _ in range(2))
    assert as_bytes(first) == as_bytes(second) and engine.cohorts[0] == engine.cohorts[1]
    assert not plan.privacy.ledger.private
    other = private(sampling_rate=0.5, repeatable=4)
    assert as_bytes(run_round(state(), other, Clients())[0]) != as_bytes(first)


# Adaptive clipping


def test_the_clip_of_the_next_round_follows_the_noised_count_and_is_part_of_the_state():
    plan = private(sampling_rate=1.0, adaptive=True, noise_multiplier=0.0)
    far = Clients()  # all are longer than the clip
    after, _ = run_round(state(), plan, far)
    assert after.clip == pytest.approx(CLIP * math.exp(0.1))
    near = Clients(**dict.fromkeys(CLIENTS, lambda c, t: update(c, t, 0.1)))
    again, record = run_round(after, plan, near)
    assert record.clip_norm == after.clip and again.clip == pytest.approx(CLIP)
    assert [line.clip for line in plan.privacy.ledger.releases] == [CLIP, after.clip]


def test_clients_report_their_norms_only_where_the_clip_adapts():
    asked = []

    def watch(client, task):
        asked.append(task.transforms[0].options)
        return update(client, task, CLIP, metrics={"loss": 1.0, REPORTED: 9.0})

    engine = Clients(**dict.fromkeys(CLIENTS, watch))
    plan = private(sampling_rate=1.0, adaptive=True, noise_multiplier=0.0)
    after, _ = run_round(state(), plan, engine)
    assert after.clip > CLIP, "what they report is longer than the clip"
    run_round(state(), private(sampling_rate=1.0), engine)
    assert asked[0] == {"norm": CLIP, "report": True} and asked[-1] == {"norm": CLIP}


def test_the_count_has_noise_and_the_updates_have_the_rest():
    plan = private(sampling_rate=0.6, adaptive=True)  # σ_b = 0.6, z_Δ = 1.809
    assert plan.privacy.update_noise == pytest.approx(1.80907, abs=1e-5)
    before = state()
    after, _ = run_round(before, nobody(plan), Clients())
    for values in moved(before, after).values():
        assert abs(values.std() / (1.80907 * CLIP / 12) - 1) < 4.9 / math.sqrt(2 * values.size)
    tiny = plan.method.view(state().model, "(server)", R, 1, 0)
    tiny = replace(tiny, adapter=replace(tiny.adapter, factors={"q": Factors(np.ones((R, 1), "f4"), np.ones((1, R)))}))
    clips = [plan.privacy.release(client_level.Contributions(1), tiny, CLIP, [])[1] for _ in range(400)]
    spread = np.log(np.array(clips) / CLIP)
    assert abs(spread.std() / (0.2 * 0.6 / 12) - 1) < 4.9 / math.sqrt(800), "σ_b through the exponential"
    assert plan.privacy.ledger.releases[0].count_noise == pytest.approx(0.6)
    assert plan.privacy.ledger.releases[0].noise_multiplier == 1.0, "what both releases spend together"


# Settings and records


def test_what_goes_down_is_planned_and_does_not_show_the_size_of_the_cohort():
    plan = private(sampling_rate=0.5)
    assert len({run_round(state(), plan, Clients())[1].bytes_down for _ in range(5)}) == 1


def test_the_budget_reaches_for_all_planned_rounds_and_an_attempt_that_failed_takes_the_last_one():
    plan = private(sampling_rate=0.5, noise_multiplier=3.0)
    three = Ledger(line_of(plan, number) for number in (1, 2, 3)).epsilon(1e-2).least
    budgeted = replace(plan.privacy, epsilon=three)
    assert all(budgeted.affords(number, 3) for number in (1, 2, 3))
    spent = budgeted.with_ledger(Ledger([line_of(plan, 1), line_of(plan, 1)]))
    assert spent.affords(2, 3)
    assert not spent.with_ledger(Ledger([*spent.ledger.releases, line_of(plan, 2)])).affords(3, 3)
    assert plan.privacy.affords(10**6, 10**6), "without a budget"


def line_of(plan: Plan, number: int):
    return plan.privacy._release(number, CLIP)


def test_the_server_half_of_a_transform_is_refused_beside_privacy():
    with pytest.raises(UsageError, match=r"\[privacy\] and the server half of transform \"tiny_transforms:push\""):
        with_transforms(private(), [spec("push")], R)
    assert with_transforms(private(), [spec("clip", norm=1.0)], R).transforms.built
