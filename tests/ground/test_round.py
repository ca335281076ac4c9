"""One round with an engine made of numbers: who counts, what moves, what is recorded."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from number_engine import NumberEngine
from shepherd.clients.pool import Draw, Pool, Selection
from shepherd.clients.progress import Progress
from shepherd.clients.selection import build_selection
from shepherd.clients.virtual_clock import virtual_seconds
from shepherd.errors import ClientError
from shepherd.round import Plan, Policy, notes, run_round
from shepherd.server.methods import build_method
from shepherd.server.weights import capped
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientHistory,
    ClientUpdate,
    Factors,
    GlobalModel,
    Objective,
    ServerState,
    TrainTask,
    TransformSpec,
    Work,
)
from shepherd.updates.composition import Transforms, build_transforms
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.replies import Late
from tiny_transforms import built, spec

CLIENTS = ("a", "b", "c")


def adapter(value: float = 0.0) -> Adapter:
    return Adapter({"q": Factors(np.full((1, 3), value, np.float32), np.full((2, 1), value, np.float32))}, 1, 1.0)


def begin(number: int = 0, value: float = 0.0, **changes) -> ServerState:
    return ServerState(number, GlobalModel(adapter(value)), **changes)


def plan(**changes) -> Plan:
    usual = Plan(
        seed=0,
        clients=CLIENTS,
        cohort_size=3,
        select=build_selection("uniform"),
        method=build_method("fedit"),
        weights="examples",
        min_updates=1,
        work=lambda client, number, first: Work(client, first, {"a": 1, "b": 2, "c": 5}[client], (0.1, 0.05)),
        rank=lambda client: 1,
        objective=Objective(),
    )
    return replace(usual, **changes)


def update(client: str, task: TrainTask, value: float, **changes) -> ClientUpdate:
    delta = {"q.A": np.full((1, 3), value, np.float32), "q.B": np.full((2, 1), 2 * value, np.float32)}
    rows = task.work[client].rows if client in task.work else 1
    return replace(ClientUpdate(client, task.round, delta, rows, 10 * rows, 2, {"loss": 1.0}), **changes)


class Answers(NumberEngine):
    """An engine that gives what `answer(task)` returns."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def train(self, task, deadline, enough, observe):
        return self.answer(task)


def all_three(task: TrainTask) -> list:
    return [update(client, task, value) for client, value in (("a", 8.0), ("b", 4.0), ("c", 1.6))]


def test_the_next_adapter_is_the_old_one_plus_the_mean_by_examples():
    state, record = run_round(begin(0, 1.0), plan(), Answers(all_three))
    # (1·8 + 2·4 + 5·1.6) / 8 = 3
    np.testing.assert_allclose(state.model.adapter.factors["q"].A, 4.0, rtol=1e-6)
    np.testing.assert_allclose(state.model.adapter.factors["q"].B, 7.0, rtol=1e-6)
    assert dict(record.weights) == {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}
    assert record.learning_rate == (0.1, 0.05)
    assert record.bytes_up == record.bytes_down == 3 * 4 * 5


def test_the_deviation_of_a_round_is_of_what_its_method_merges():
    # One increment by factors that are turned against each other, which whole rotations take back.
    start = Adapter({"q": Factors(np.eye(2, 3, dtype=np.float32), np.eye(2, dtype=np.float32))}, 2, 2.0)

    def turned(task):
        for client, c in (("a", 1.0), ("b", 0.6), ("c", 0.8)):
            turn = np.float32([[c, -((1 - c * c) ** 0.5)], [(1 - c * c) ** 0.5, c]])
            A, B = start.factors["q"]
            yield update(client, task, 0.0, delta={"q.A": turn.T @ A - A, "q.B": B @ turn - B})

    of = {}
    for strength in (0.0, 1.0):
        method = build_method("fedrot_lora", {"strength": strength})
        state = ServerState(1, GlobalModel(start))
        of[strength] = run_round(state, plan(method=method, rank=lambda client: 2), Answers(turned))[1].deviation
    assert of[0.0] > 0.01 and of[1.0] < 1e-6


def test_the_order_of_arrival_changes_no_bit():
    states = [
        run_round(begin(), plan(), Answers(lambda t, o=order: [all_three(t)[i] for i in o]))[0]
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    ]
    assert len({state.model.adapter.factors["q"].A.tobytes() for state in states}) == 1


def test_a_client_that_answers_twice_counts_once():
    once, _ = run_round(begin(), plan(), Answers(all_three))
    twice, record = run_round(begin(), plan(), Answers(lambda t: [*all_three(t), update("c", t, 99.0)]))
    assert twice.model.adapter.factors["q"].A.tobytes() == once.model.adapter.factors["q"].A.tobytes()
    assert sum(record.weights.values()) == 1


@pytest.mark.parametrize(
    ("code", "state"), [("diverged", "failed"), ("error:ValueError", "failed"), ("out-of-memory", "failed"),
                        ("lost", "lost"), ("hang", "lost")],
)  # fmt: skip
def test_whoever_watches_sees_the_word_of_the_report_for_each_reply(code, state):
    def answer(task):
        failure = ClientFailure("b", task.round, code, "")
        return [update("a", task, 1.0), failure, update("c", task, float("nan"))]

    seen: dict[str, str] = {}
    run_round(begin(), plan(), Answers(answer), seen.update)
    assert seen == {"a": "done", "b": state, "c": "rejected"}


def test_failed_rejected_and_missing_clients_are_named_and_do_not_walk_on():
    def answer(task):
        broken = update("b", task, float("nan"))
        return [update("a", task, 1.0), broken]

    state, record = run_round(begin(4, cursors={"a": 7, "b": 7, "c": 7}), plan(), Answers(answer))
    assert record.missing == ("c",)
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "non-finite")]
    assert dict(record.weights) == {"a": 1.0}
    assert dict(state.cursors) == {"a": 8, "b": 7, "c": 7}
    assert state.round == record.round == 5


def test_an_answer_of_somebody_who_was_not_asked_does_not_count():
    _, record = run_round(begin(), plan(), Answers(lambda t: [update("a", t, 1.0), update("z", t, 1.0)]))
    assert list(record.weights) == ["a"] and record.rejected[0]["code"] == "uninvited"


def test_too_few_usable_updates_end_the_run_with_every_reason():
    failures = lambda task: [ClientFailure("a", 1, "diverged", "the loss became nan in local step 2")]  # noqa: E731
    with pytest.raises(ClientError) as caught:
        run_round(begin(), plan(), Answers(failures))
    assert "round 1: 0 usable updates, 1 needed" in caught.value.message
    assert "a: diverged: the loss became nan in local step 2" in caught.value.message
    assert "learning_rate" in caught.value.hint and caught.value.exit_code == 6
    with pytest.raises(ClientError, match="3 usable updates, 4 needed"):
        run_round(begin(), plan(min_updates=4), Answers(all_three))


# Policies


def asked(tasks: list[TrainTask]):
    """An engine that notes each task and lets everybody answer."""

    def answer(task):
        tasks.append(task)
        return [update(client, task, 1.0) for client in task.work]

    return Answers(answer)


def many(count: int = 10, **changes) -> Plan:
    return plan(
        clients=tuple(f"c{i}" for i in range(count)),
        work=lambda client, number, first: Work(client, first, 1, (0.1, 0.05)),
        **changes,
    )


def failing(*names: str, code: str = "error:ValueError"):
    return Answers(
        lambda task: [ClientFailure(c, task.round, code, "") if c in names else update(c, task, 1.0) for c in task.work]
    )


def test_a_skipped_round_leaves_model_and_cursors_and_counts_the_strikes():
    before = begin(4, 1.0, cursors={"a": 7}, strikes={"b": 1})
    state, record = run_round(before, plan(min_updates=2, policy=Policy(on_too_few="skip")), failing("a", "b"))
    assert record.skipped and record.weights == {} and record.train_loss == {}
    assert state.model is before.model and state.cursors == {"a": 7} and state.round == 5
    assert state.strikes == {"a": 1, "b": 2}
    assert [r["client"] for r in record.rejected] == ["a", "b"]


def test_waiting_draws_others_into_the_same_round_until_enough_have_answered():
    waits = many(cohort_size=3, min_updates=3, policy=Policy(on_too_few="wait", retries=9))
    first = run_round(begin(), many(cohort_size=3), asked([]))[1].cohort
    state, record = run_round(begin(), waits, failing(*first[:2]))
    assert set(first) < set(record.cohort), "the first draw is the one without a policy"
    assert len(record.weights) == 3 and {r["client"] for r in record.rejected} >= set(first[:2])
    assert state.round == 1


def test_waiting_asks_nobody_twice_and_ends_with_its_limit():
    rounds: list[TrainTask] = []

    def nobody(task):
        rounds.append(task)
        return [ClientFailure(c, 1, "lost", "") for c in task.work]

    with pytest.raises(ClientError, match="0 usable updates, 3 needed"):
        run_round(
            begin(), many(cohort_size=3, min_updates=3, policy=Policy(on_too_few="wait", retries=2)), Answers(nobody)
        )
    names = [c for task in rounds for c in task.work]
    assert len(rounds) == 3 and len(names) == len(set(names)) == 9
    rounds.clear()
    with pytest.raises(ClientError):
        run_round(begin(), many(4, cohort_size=3, policy=Policy(on_too_few="wait", retries=9)), Answers(nobody))
    assert sorted(c for task in rounds for c in task.work) == ["c0", "c1", "c2", "c3"], "then nobody is left"


@pytest.mark.parametrize("arrival", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)])
def test_over_selection_asks_more_and_counts_the_first_to_arrive(arrival):
    # 4 · 1.3 = 5.2, so 6 are asked and the 4 that come first count.
    names = run_round(begin(), many(cohort_size=6), asked([]))[1].cohort
    times = dict(zip(names, arrival, strict=True))
    policy = Policy(over_select=0.3, clock=lambda work, number: times[work.client])
    _, record = run_round(begin(), many(cohort_size=4, policy=policy), asked([]))
    assert record.cohort == names
    assert set(record.weights) == {c for c in names if times[c] < 4}
    assert record.late == tuple(sorted(c for c in names if times[c] >= 4)) and record.missing == ()
    assert record.bytes_up == 6 * 20, "late updates travelled too"


def test_who_comes_after_enough_others_does_not_walk_on():
    policy = Policy(over_select=2.0, clock=lambda work, number: {"a": 1.0, "b": 2.0, "c": 3.0}[work.client])
    before = begin(cursors={"a": 10, "b": 20, "c": 30})
    state, record = run_round(before, plan(cohort_size=1, policy=policy), asked([]))
    assert record.late == ("b", "c") and state.cursors == {"a": 11, "b": 20, "c": 30}


def test_rows_of_work_that_does_not_count_are_in_the_record():
    # Work of 1, 2 and 5 rows, in two steps each.
    clock = lambda work, number: {"a": 1.0, "b": 2.0, "c": 3.0}[work.client]  # noqa: E731
    _, record = run_round(begin(), plan(cohort_size=1, policy=Policy(over_select=2.0, clock=clock)), asked([]))
    assert record.examples == {"a": 1} and record.unused_examples == {"b": 2, "c": 5}, "late, after enough others"
    _, record = run_round(begin(), plan(policy=Policy(deadline=2.5, clock=clock)), asked([]))
    assert record.late == ("c",) and record.unused_examples == {}, "who is known to be late is not simulated"


@pytest.mark.parametrize(("told", "rows"), [((), 0), ((0, 1), 2), ((0, 1, 2), 5), ((0, 1, 2, 3), 5)])
def test_of_a_client_that_failed_the_rows_of_the_steps_that_it_told_of_are_in_the_record(told, rows):
    # c has 5 rows in two steps: 5 · 1 // 2 = 2 in the first. A third step is of a second adapter, on the same rows.
    class Told(Answers):
        def train(self, task, deadline, enough, observe):
            for step in told:
                observe({"c": Progress("training", step, 4)})
            observe({"c": "failed"})
            return super().train(task, deadline, enough, observe)

    skips = plan(min_updates=3, policy=Policy(on_too_few="skip"))
    state, record = run_round(begin(), skips, Told(failing("c").answer))
    assert record.unused_examples == {"a": 1, "b": 2} | ({"c": rows} if rows else {}) and state.cursors == {}


def test_who_is_asked_depends_on_the_seed_and_on_the_round_alone():
    def cohorts(seed: int, **state) -> list[tuple[str, ...]]:
        asks = many(cohort_size=3, seed=seed)
        return [run_round(begin(n, **state), asks, asked([]))[1].cohort for n in range(4)]

    assert cohorts(0) == cohorts(0, cursors={"c1": 9}) != cohorts(1)
    assert len(set(cohorts(0))) > 1


def test_a_further_draw_of_a_round_has_a_random_stream_of_its_own():
    drawn = []

    def draw(pool, size, rng):
        drawn.append(rng.random(4).tolist())
        return Draw(pool.clients[:1])

    waits = plan(select=Selection(draw), min_updates=2, policy=Policy(on_too_few="wait"))
    run_round(begin(), waits, asked([]))
    assert len(drawn) == 2 and drawn[0] != drawn[1]


def test_a_late_answer_forgives_strikes_as_any_good_answer_does():
    policy = Policy(deadline=10.0, quarantine_after=3, clock=lambda work, number: {"c": 11.0}.get(work.client, 1.0))
    state, record = run_round(begin(strikes={"b": 2, "c": 2}), plan(policy=policy), failing("b"))
    assert record.late == ("c",) and state.strikes == {"b": 3} and state.quarantined == ("b",)


def test_without_a_clock_the_first_to_be_yielded_count():
    policy = Policy(over_select=1.0)
    _, record = run_round(begin(), plan(cohort_size=1, policy=policy), Answers(lambda t: all_three(t)[::-1]))
    (client,) = record.weights
    assert client == max(record.cohort) and len(record.cohort) == 2


def test_a_failed_client_is_replaced_by_one_that_was_asked_beyond_the_cohort():
    names = run_round(begin(), many(cohort_size=6), asked([]))[1].cohort
    _, record = run_round(begin(), many(cohort_size=4, policy=Policy(over_select=0.5)), failing(*names[:2]))
    assert set(record.weights) == set(names[2:]) and record.late == ()


def test_who_misses_the_deadline_is_late_and_its_update_enters_no_round():
    seconds = {"a": 1.0, "b": 10.0, "c": 10.1}
    tasks: list[TrainTask] = []
    policy = Policy(deadline=10.0, clock=lambda work, number: seconds[work.client])
    state, record = run_round(begin(cursors={"c": 5}), plan(policy=policy), asked(tasks))
    assert set(record.weights) == {"a", "b"} and record.late == ("c",) and record.missing == ()
    assert state.cursors["c"] == 5 and set(tasks[0].work) == {"a", "b"}
    late = update("c", tasks[0], 99.0)
    _, record = run_round(state, plan(), Answers(lambda task: [update("a", task, 1.0), late]))
    assert set(record.weights) == {"a"} and record.rejected[0]["code"] == "stale-round"


def test_when_all_miss_the_deadline_the_error_says_so():
    with pytest.raises(ClientError, match=r"b: late: the deadline is 0.5 s"):
        run_round(begin(), plan(policy=Policy(deadline=0.5, clock=lambda work, number: 1.0)), Answers(all_three))


def test_strikes_quarantine_a_client_and_a_good_update_forgives_them():
    thrice = plan(policy=Policy(quarantine_after=3))
    state = begin()
    for expected in (1, 2):
        state, record = run_round(state, thrice, failing("b"))
        assert state.strikes == {"b": expected} and record.quarantined == state.quarantined == ()
    forgiven, _ = run_round(state, thrice, Answers(all_three))
    assert forgiven.strikes == {}
    state, record = run_round(state, thrice, failing("b"))
    assert record.quarantined == state.quarantined == ("b",)
    tasks: list[TrainTask] = []
    state, record = run_round(state, thrice, asked(tasks))
    assert set(tasks[0].work) == set(record.cohort) == {"a", "c"}
    assert record.quarantined == () and state.quarantined == ("b",)


@pytest.mark.parametrize("code", ["lost", "hang", "refused"])
def test_a_lost_client_gets_no_strike_and_keeps_those_that_it_has(code):
    at_once = plan(policy=Policy(quarantine_after=1, on_too_few="skip"))
    state, record = run_round(begin(), at_once, failing("a", "b", code=code))
    assert [entry["code"] for entry in record.rejected] == [code, code]
    assert state.strikes == {} and record.quarantined == ()
    thrice = plan(policy=Policy(quarantine_after=3))
    state, _ = run_round(begin(strikes={"b": 2}), thrice, failing("b", code=code))
    assert state.strikes == {"b": 2}
    state, record = run_round(state, thrice, failing("b"))
    assert record.quarantined == ("b",)


def test_when_all_are_quarantined_the_error_names_them():
    with pytest.raises(ClientError, match="a: quarantined\n  b: quarantined"):
        run_round(begin(quarantined=("a", "b", "c")), plan(), Answers(all_three))


def test_what_a_client_sends_beside_its_update_is_recorded_and_costs_it_nothing():
    def answer(task):
        return [update("a", task, float("nan")), *all_three(task), update("b", task, 9.0)]

    state, record = run_round(begin(), plan(policy=Policy(quarantine_after=1)), Answers(answer))
    assert [(i["client"], i["code"]) for i in record.ignored] == [("a", "non-finite"), ("b", "duplicate")]
    assert set(record.weights) == set(CLIENTS) and record.rejected == () and state.quarantined == ()


def test_an_update_after_the_engine_gave_its_client_up_is_ignored():
    def answer(task):
        return [ClientFailure("b", task.round, "hang", ""), *all_three(task)]

    _, record = run_round(begin(), plan(), Answers(answer))
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "hang")]
    assert [(r["client"], r["code"]) for r in record.ignored] == [("b", "duplicate")]
    assert set(record.weights) == {"a", "c"}


def test_a_late_client_keeps_its_private_state_of_before():
    private = {"memory": np.ones(2, np.float32)}
    answer = Answers(lambda task: [update(c, task, 1.0, private=private) for c in task.work])
    policy = Policy(over_select=0.5, clock=lambda work, number: float(ord(work.client)))
    state, record = run_round(begin(), plan(cohort_size=2, policy=policy), answer)
    assert record.late == ("c",) and set(state.clients) == {"a", "b"}


def test_the_virtual_clock_repeats_and_depends_on_nobody_else():
    times = [virtual_seconds(0, Work(f"c{i}", 0, 4, (0.1,) * 2), 1) for i in range(2000)]
    assert times[7] == virtual_seconds(0, Work("c7", 9, 4, (0.2,) * 2), 1)
    assert (
        times[7]
        != virtual_seconds(0, Work("c7", 0, 4, (0.1,) * 2), 2)
        != virtual_seconds(1, Work("c7", 0, 4, (0.1,) * 2), 2)
    )
    assert np.median(times) == pytest.approx(2.0, rel=0.05), "a second per step"
    assert np.std(np.log(times)) == pytest.approx(np.hypot(0.5, 0.2), rel=0.05)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_no_weight_is_above_the_cap_and_the_order_by_size_stays(sizes, most):
    weights = [size / sum(sizes) for size in sizes]
    got = capped(weights, most)
    assert sum(got) == pytest.approx(1.0)
    assert max(got) <= max(most, 1 / len(sizes)) * (1 + 1e-9)
    order = np.argsort(weights, kind="stable")
    assert np.all(np.diff(np.array(got)[order]) >= -1e-12)
    if max(weights) <= most:
        assert got == tuple(weights)


def test_the_excess_of_a_capped_weight_goes_to_the_others_in_proportion():
    # 0.7 is cut to 0.4; 0.6 is left for 0.2 : 0.1, which would make 0.4 and 0.2.
    np.testing.assert_allclose(capped((0.7, 0.2, 0.1), 0.4), (0.4, 0.4, 0.2))
    # First 0.8 is cut; then 0.15 has grown to 0.45 and is cut too.
    np.testing.assert_allclose(capped((0.8, 0.15, 0.05), 0.4), (0.4, 0.4, 0.2))
    np.testing.assert_allclose(capped((0.8, 0.15, 0.05), 0.2), (1 / 3,) * 3)


def test_a_client_that_claims_all_the_examples_of_the_world_weighs_no_more_than_the_cap():
    def answer(task):
        return [update("a", task, 1.0, num_examples=10**9), update("b", task, 0.0), update("c", task, 0.0)]

    _, record = run_round(begin(), plan(policy=Policy(max_weight=0.5)), Answers(answer))
    assert record.weights["a"] == 0.5


# Selections with weights of their own, and memory


def drawing(*draws: Draw, **changes) -> Selection:
    """A selection that gives these draws, one after another."""
    left = list(draws)
    return replace(Selection(lambda pool, size, rng: left.pop(0), weighs=True), **changes)


def start_to_end(state: ServerState, plan: Plan, engine) -> float:
    """How far a round moved A, whose updates are 1 for each client."""
    after, _ = run_round(state, plan, engine)
    moved = after.model.adapter.factors["q"].A - state.model.adapter.factors["q"].A
    assert np.ptp(moved) == 0
    return float(moved.flat[0])


TWICE = Draw(("a", "b", "c"), {"a": 0.5, "b": 0.25, "c": 0.25}, 4)


def test_a_client_drawn_twice_of_four_times_is_trained_once_and_weighs_a_half():
    tasks: list[TrainTask] = []
    four = plan(cohort_size=4, clients=("a", "b", "c", "d"), sizes={"a": 9, "b": 1, "c": 1, "d": 1}, min_updates=4)
    _, record = run_round(begin(), replace(four, select=drawing(TWICE)), asked(tasks))
    assert list(tasks[0].work) == ["a", "b", "c"]
    assert record.weights == {"a": 0.5, "b": 0.25, "c": 0.25}, "the rows of a client have no second say"


def test_a_client_drawn_twice_weighs_no_more_than_the_cap():
    four = plan(cohort_size=4, select=drawing(TWICE), policy=Policy(max_weight=0.4))
    _, record = run_round(begin(), four, asked([]))
    assert record.weights == pytest.approx({"a": 0.4, "b": 0.3, "c": 0.3})


def test_what_a_lost_client_would_have_weighed_goes_to_those_that_answered():
    four = plan(cohort_size=4, select=drawing(TWICE))
    _, record = run_round(begin(), four, failing("b"))
    assert record.weights == pytest.approx({"a": 2 / 3, "c": 1 / 3})
    with pytest.raises(ClientError, match="2 usable updates, 3 needed"):
        run_round(begin(), plan(cohort_size=4, select=drawing(TWICE), min_updates=3), failing("a"))


def test_with_wait_the_draws_of_a_round_add_up():
    second = Draw(("d",), {"d": 1.0}, 2)
    waits = plan(
        clients=("a", "b", "c", "d"),
        cohort_size=4,
        min_updates=4,
        select=drawing(TWICE, second),
        policy=Policy(on_too_few="wait"),
        work=lambda client, number, first: Work(client, first, 1, (0.1, 0.1)),
    )
    _, record = run_round(begin(), waits, failing("a"))
    assert record.weights == {"b": 0.25, "c": 0.25, "d": 0.5}


def test_over_selection_by_size_counts_draws_in_the_order_of_arrival():
    policy = Policy(over_select=1.0, clock=lambda work, number: {"a": 1.0, "c": 2.0, "b": 3.0}[work.client])
    _, record = run_round(begin(), plan(cohort_size=2, select=drawing(TWICE), policy=policy), asked([]))
    assert record.late == ("b", "c") and record.weights == {"a": 1.0}, "a was drawn twice, and two were wanted"
    _, record = run_round(begin(), plan(cohort_size=3, select=drawing(TWICE), policy=policy), asked([]))
    assert record.late == ("b",) and record.weights == pytest.approx({"a": 2 / 3, "c": 1 / 3})


FIXED = Draw(("a", "b"), {"a": 0.5, "b": 1.0}, 2, fixed=True)


def test_with_a_fixed_denominator_weights_stay_as_they_are_and_a_lost_client_leaves_its_part_at_the_start():
    fixed = plan(select=drawing(FIXED, fixed=True))
    assert start_to_end(begin(0, 3.0), fixed, asked([])) == 1.5
    fixed = plan(select=drawing(FIXED, fixed=True))
    state, record = run_round(begin(0, 3.0), fixed, failing("b"))
    assert record.weights == {"a": 0.5}
    np.testing.assert_allclose(state.model.adapter.factors["q"].A, 3.5)
    assert np.isfinite(record.deviation) and record.diagnostics["cosine_mean"] is None


@pytest.mark.parametrize("method", ["fedit", "fedex_lora", "fedmomentum", "flexlora", "ffa_lora"])
def test_every_way_to_merge_takes_weights_that_do_not_sum_to_one(method):
    fixed = plan(select=drawing(FIXED, fixed=True), method=build_method(method))
    state = ServerState(0, fixed.method.start(adapter(1.0), 0))
    sends = {"ffa_lora": ("q.B",)}.get(method, ("q.A", "q.B"))

    def answer(task):
        found = [update(client, task, 0.0) for client in task.work]
        return [replace(u, delta={name: u.delta[name] for name in sends}) for u in found]

    after, record = run_round(state, fixed, Answers(answer))
    assert sum(record.weights.values()) == 1.5

    def effective(model):
        pair, rest = model.adapter.factors["q"], model.remainder.get("q")
        return model.adapter.scale * pair.B @ pair.A + (rest.L @ rest.R if rest else 0.0)

    # E' = E + Σ c (E_k − E), and nobody moved.
    np.testing.assert_allclose(effective(after.model), effective(state.model), atol=1e-6)


def test_the_diagnostics_do_not_depend_on_the_denominator():
    draws = [Draw(("a", "b"), {"a": 0.5 * scale, "b": scale}, 2, fixed=True) for scale in (1.0, 0.1)]
    records = [
        run_round(begin(0, 1.0), plan(select=drawing(draw, fixed=True)), Answers(lambda t: all_three(t)[:2]))[1]
        for draw in draws
    ]
    assert records[0].deviation == pytest.approx(records[1].deviation, rel=1e-9) and records[0].deviation > 0.01


def test_a_round_in_which_nobody_is_drawn_is_skipped_and_the_next_one_goes_on():
    empty = plan(select=drawing(Draw((), {}, 0, fixed=True), FIXED, fixed=True))
    before = begin(2, 1.0, cursors={"a": 7}, strikes={"b": 1})
    state, record = run_round(before, empty, asked([]))
    assert record.skipped and record.cohort == () and record.weights == {} and record.bytes_down == 0
    assert state.model is before.model and state.round == 3
    assert (state.cursors, state.strikes, state.history) == ({"a": 7}, {"b": 1}, {})
    state, record = run_round(state, empty, asked([]))
    assert not record.skipped and record.cohort == ("a", "b")


def test_a_poisson_draw_larger_than_its_mean_is_counted_whole():
    all_of_them = plan(cohort_size=1, select=build_selection("poisson", {"q": 1.0}), sizes={"a": 1, "b": 1, "c": 2})
    _, record = run_round(begin(), all_of_them, Answers(all_three))
    assert record.weights == {"a": 0.25, "b": 0.25, "c": 0.5} and record.late == ()


def test_a_selection_sees_those_that_may_be_asked_and_what_they_last_said():
    pools: list[Pool] = []

    def look(pool, size, rng):
        pools.append(pool)
        return Draw(pool.clients)

    seconds = {"a": 1.0, "b": 9.0, "c": 2.0, "d": 3.0}
    policy = Policy(deadline=5.0, clock=lambda work, number: number * seconds[work.client])
    looking = plan(
        clients=("a", "b", "c", "d"),
        cohort_size=4,
        select=Selection(look),
        policy=policy,
        work=lambda client, number, first: Work(client, first, 1, (0.1, 0.1)),
        sizes={"a": 1, "b": 2, "c": 3, "d": 4},
    )
    state, _ = run_round(begin(quarantined=("d",)), looking, failing("c"))
    assert pools[0] == Pool(1, ("a", "b", "c"), {"a": 1, "b": 2, "c": 3}, {"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})
    assert state.history == {
        "a": ClientHistory(1, 1.0, 1.0),
        "b": ClientHistory(1, None, 9.0),
        "c": ClientHistory(1, None, None),
    }
    state, _ = run_round(state, replace(looking, weights="uniform", select=Selection(look)), failing("a"))
    assert pools[1] == Pool(
        2, ("a", "b", "c"), {"a": 1, "b": 2, "c": 3}, dict.fromkeys("abc", 1 / 3),
        rounds=dict.fromkeys("abc", 1), losses={"a": 1.0}, seconds={"a": 1.0, "b": 9.0},
    )  # fmt: skip
    assert state.history == {
        "a": ClientHistory(2, 1.0, 1.0),
        "b": ClientHistory(2, None, 18.0),
        "c": ClientHistory(2, 1.0, 4.0),
    }
    run_round(state, replace(looking, weights="tokens"), asked([]))
    assert pools[2].shares == {} and pools[2].losses == {"a": 1.0, "c": 1.0}


def test_another_client_changes_neither_the_seed_nor_the_share_nor_the_time_of_those_there_were():
    def tasks_of(count: int) -> list[TrainTask]:
        tasks: list[TrainTask] = []
        state, policy = begin(), Policy(clock=lambda work, number: virtual_seconds(0, work, number))
        for _ in range(3):
            state, _ = run_round(state, many(count, select=build_selection("everyone"), policy=policy), asked(tasks))
        return tasks

    for few, more in zip(tasks_of(3), tasks_of(4), strict=True):
        assert few.seed == more.seed and few.round == more.round
        assert {c: more.work[c] for c in few.work} == few.work


# Engines in real time


class RealTime(NumberEngine):
    """Clients reply in this order, each an update or Late, until it is enough; `seen` notes what the round asks for."""

    def __init__(self, *order: str, late: tuple[str, ...] = ()) -> None:
        self.order, self.late = order, late
        self.seen: list = []
        self.restored: list = []

    def restore(self, private):
        self.restored.append(private)

    def train(self, task, deadline, enough, observe):
        self.seen.append(deadline)
        for client in self.order:
            stopped = enough()
            self.seen.append(stopped)
            yield Late(client, task.round) if stopped or client in self.late else update(client, task, 1.0)


def test_without_a_clock_the_engine_keeps_the_deadline_and_says_who_is_late():
    reports: list = []
    engine = RealTime("a", "b", "c", late=("b",))
    before = begin(cursors={"b": 7}, strikes={"b": 1})
    state, record = run_round(before, plan(policy=Policy(deadline=30.0)), engine, reports.append)
    assert engine.seen[0] == 30.0 and record.late == ("b",) and record.missing == record.rejected == ()
    assert set(record.weights) == {"a", "c"} and state.cursors == {"a": 1, "b": 7, "c": 5}
    assert state.strikes == {} and record.unused_examples == {}
    assert {"b": "late"} in reports and {"b": "done"} not in reports


def test_without_a_clock_the_engine_may_stop_when_enough_have_replied():
    engine = RealTime("c", "a", "b")
    _, record = run_round(begin(), plan(cohort_size=2, policy=Policy(over_select=0.5)), engine)
    assert engine.seen == [math.inf, False, False, True], "two were wanted"
    assert set(record.weights) == {"a", "c"} and record.late == ("b",) and record.bytes_up == 2 * 20
    whole = RealTime("c", "a", "b")
    run_round(begin(), plan(), whole)
    assert whole.seen == [math.inf, False, False, False], "without over-selection all are waited for"


def test_with_a_virtual_clock_no_engine_is_stopped():
    engine = RealTime("c", "a", "b")
    clock = lambda work, number: {"a": 1.0, "b": 2.0, "c": 3.0}[work.client]  # noqa: E731
    policy = Policy(over_select=2.0, deadline=9.0, clock=clock)
    _, record = run_round(begin(), plan(cohort_size=1, policy=policy), engine)
    assert engine.seen == [math.inf, False, False, False] and set(record.weights) == {"a"}


def test_an_update_in_hand_counts_though_the_engine_gave_its_client_up():
    def answer(task):
        return [Late("a", task.round), *all_three(task)]

    _, record = run_round(begin(), plan(), Answers(answer))
    assert record.late == () and set(record.weights) == set(CLIENTS)


def test_each_round_starts_from_the_private_state_that_was_committed():
    private = {"a": {"memory": np.ones(2, np.float32)}}
    engine = RealTime("a", "b", "c")
    run_round(begin(clients=private), plan(), engine)
    assert engine.restored == [private]


def test_what_an_engine_raises_ends_the_round():
    def broken(task):
        yield update("a", task, 1.0)
        raise OSError("the connection is gone")

    with pytest.raises(OSError, match="connection"):
        run_round(begin(), plan(policy=Policy(on_too_few="skip")), Answers(broken))


# Transforms of updates


def test_a_transform_that_changes_nothing_changes_no_bit_of_the_round():
    for state, policy in ((begin(0, 1.0), Policy()), (begin(0, 1.0, quarantined=CLIENTS), Policy(on_too_few="skip"))):
        one, other = (
            run_round(state, plan(transforms=chosen, policy=policy), Answers(all_three))
            for chosen in (Transforms(), built(spec("identity")))
        )
        assert pickle.dumps(one[0]) == pickle.dumps(other[0])
        assert replace(one[1], seconds={}) == replace(other[1], seconds={})


def test_a_pseudo_update_moves_the_model_beside_the_updates_and_is_in_no_record():
    method = replace(build_method("fedit"), population=dict.fromkeys(CLIENTS, 1 / 3))
    plain, first = run_round(begin(0, 1.0), plan(method=method), Answers(all_three))
    pushed = plan(method=method, transforms=built(spec("push", value=0.5)))
    state, second = run_round(begin(0, 1.0), pushed, Answers(all_three))
    for moved, before in zip(state.model.adapter.factors["q"], plain.model.adapter.factors["q"], strict=True):
        np.testing.assert_allclose(moved, before + 0.5, rtol=1e-6)
    assert replace(state, model=plain.model) == plain
    moves = second.diagnostics["subspace_move"], first.diagnostics["subspace_move"]
    diagnostics = {**second.diagnostics, "subspace_move": moves[1]}  # of the model, and that is another one
    assert replace(second, seconds={}, diagnostics=diagnostics) == replace(first, seconds={})


def test_a_pseudo_update_moves_the_model_of_a_round_without_updates_which_is_then_not_skipped():
    drawn = build_selection("poisson", {"q": 1e-9})
    for changes, replies in (
        ({"select": drawn, "sizes": {"a": 1, "b": 2, "c": 5}}, all_three),
        ({"policy": Policy(on_too_few="skip"), "min_updates": 2}, lambda task: [update("a", task, 9.0)]),
    ):
        skipped, one = run_round(begin(0, 1.0), plan(**changes), Answers(replies))
        state, other = run_round(begin(0, 1.0), plan(transforms=built(spec("push")), **changes), Answers(replies))
        assert (
            one.skipped and not other.skipped and replace(one, skipped=False, seconds={}) == replace(other, seconds={})
        )
        assert (state.model.adapter.factors["q"].A == 2.0).all() and (state.model.adapter.factors["q"].B == 2.0).all()
        assert replace(state, model=skipped.model) == skipped
    assert other.weights == {} and other.diagnostics == {} and notes(other) == []


def test_a_server_half_may_merge_one_sum_in_place_of_the_updates():
    plain, first = run_round(begin(0, 1.0), plan(), Answers(all_three))
    state, second = run_round(begin(0, 1.0), plan(transforms=built(spec("sum_of_all"))), Answers(all_three))
    for one, other in zip(state.model.adapter.factors["q"], plain.model.adapter.factors["q"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert second.weights == first.weights and second.update_norm == first.update_norm


def test_a_task_carries_the_transforms_of_its_clients():
    tasks: list[TrainTask] = []
    run_round(begin(), plan(transforms=built(spec("push"), spec("clip", norm=2.0))), asked(tasks))
    assert tasks[0].transforms == (spec("clip", norm=2.0),) == tasks[0].part(["a"]).transforms


# Clipping

UNIT = 11**0.5  # the norm of an update of value 1


def test_updates_that_no_client_clipped_are_clipped_by_the_server_and_counted():
    state, record = run_round(begin(0, 1.0), plan(clip=2 * UNIT), Answers(all_three))
    # 8 and 4 become 2: (1·2 + 2·2 + 5·1.6) / 8 = 1.75
    np.testing.assert_allclose(state.model.adapter.factors["q"].A, 2.75, rtol=1e-6)
    np.testing.assert_allclose(state.model.adapter.factors["q"].B, 4.5, rtol=1e-6)
    assert record.update_norm == pytest.approx({"a": 2 * UNIT, "b": 2 * UNIT, "c": 1.6 * UNIT}, rel=1e-6)
    assert all(norm <= 2 * UNIT for norm in record.update_norm.values())
    assert (record.clipped, record.clip_norm) == (2, 2 * UNIT) and state.median_norm == 0


def test_a_clip_that_is_too_long_for_every_update_changes_no_bit():
    plain, first = run_round(begin(0, 1.0), plan(), Answers(all_three))
    state, second = run_round(begin(0, 1.0), plan(clip=1e6), Answers(all_three))
    assert pickle.dumps(state) == pickle.dumps(plain)
    assert (first.clipped, first.clip_norm) == (None, None)
    assert replace(second, seconds={}) == replace(first, seconds={}, clipped=0, clip_norm=1e6)


def test_a_task_asks_its_clients_for_the_clip_before_their_other_transforms():
    tasks: list[TrainTask] = []
    for clip in (0.0, 2.0, "median"):
        run_round(begin(0, 1.0, median_norm=3.0), plan(clip=clip, transforms=built(spec("draw"))), asked(tasks))
    number, median = (TransformSpec("clip", options) for options in ({"norm": 2.0}, {"norm": 3.0, "report": True}))
    assert [task.transforms for task in tasks] == [(spec("draw"),), (number, spec("draw")), (median, spec("draw"))]


def test_the_median_is_that_of_the_last_round_before_clipping_so_it_rises_and_falls():
    values, tasks = {"a": 8.0, "b": 4.0, "c": 1.0}, []

    def clipping(task: TrainTask) -> list:
        tasks.append(task)
        sent = [update(client, task, value) for client, value in values.items()]
        halves = build_transforms(task.transforms)
        return [halves.on_client(own, None, 0) for own in sent[:-1]] + sent[-1:]  # c clips nothing by itself

    state, records = begin(), []
    for values in ({"a": 8.0, "b": 4.0, "c": 1.0}, {"a": 9.0, "b": 6.0, "c": 7.0}, {"a": 9.0, "b": 2.0, "c": 1.0}):
        state, record = run_round(state, plan(clip="median"), Answers(clipping))
        records.append((record.clip_norm / UNIT, record.clipped, state.median_norm / UNIT))
        norms = [norm / UNIT for norm in record.update_norm.values()]
        most = record.clip_norm / UNIT or 100
        assert norms == pytest.approx([min(value, most) for value in values.values()], rel=1e-6)
    assert not tasks[0].transforms, "the first round is not clipped"
    assert records == [pytest.approx(one, rel=1e-6) for one in ((0, 0, 4), (4, 3, 7), (7, 1, 2))]
    after, _ = run_round(state, plan(clip="median", policy=Policy(on_too_few="skip")), Answers(lambda task: []))
    assert after.median_norm == state.median_norm, "a round without updates keeps it"


def test_an_update_beyond_the_gates_limit_is_rejected_and_not_clipped():
    limited = plan(clip=1.0, gate=lambda: Gate(Limits(norm=5 * UNIT)))
    _, record = run_round(begin(), limited, Answers(all_three))
    assert [(entry["client"], entry["code"]) for entry in record.rejected] == [("a", "norm")] and record.clipped == 2
