"""The meter: reports of clients -> rows for each of them, and the share of the whole."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from prepared import plan_of
from shepherd.clients.personal.methods import Cost
from shepherd.clients.progress import Progress
from shepherd.experiment.estimate import plan
from shepherd.experiment.method import compose
from shepherd.experiment.progress import Clock, Meter, training_tokens
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.base import load_tokenizer
from shepherd.model.forward import PackedModel
from shepherd.model.slots import PADDING
from shepherd.types import ClientFailure

ROUNDS = ("evaluation.arms=base,federated", "evaluation.generate=0", "training.local_steps=2", "federation.rounds=1")


def rows_of(events, arm="federated"):
    """Each row that was told of an arm's clients: (event, round, client, row), in order."""
    told = [e for e in events if e["event"] in ("clients", "step") and e["arm"] == arm]
    return [(e["event"], e["round"], client, row) for e in told for client, row in e["clients"].items()]


def history(events, arm="federated"):
    """The states of each client in order, without repetition."""
    found: dict[str, list[str]] = {}
    for _, _, client, row in rows_of(events, arm):
        states = found.setdefault(client, [])
        if not states or states[-1] != row["state"]:
            states.append(row["state"])
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_events_follow_every_client_of_the_cohort_from_waiting_to_done_whatever_the_chunks(run_small, workers):
    run = run_small(*ROUNDS, "training.clients_at_once=3", f"run.workers={workers}")
    assert set(map(tuple, history(run.events).values())) == {("waiting", "training", "done")}
    first, *_ = (e for e in run.events if e["event"] == "clients")
    assert len(first["clients"]) == 8, "all rows are there before any client trains"
    last = {client: row for _, _, client, row in rows_of(run.events)}
    losses = {c: row["loss"] for c, row in last.items()}
    assert len(set(losses.values())) == 8 and all(row["step"] == row["steps"] == 2 for row in last.values())


def test_a_clients_tokens_are_all_that_went_through_the_model_and_learned_ones_stay_apart(run_small):
    run = run_small(*ROUNDS, "training.batch_size=100", "training.local_steps=1")  # each client: its 4 rows once
    rows, _ = prepare_rows(run.config, load_tokenizer(run.config.model.base))
    last = {client: row for _, _, client, row in rows_of(run.events)}
    for client, held in rows.clients.items():
        assert last[client]["seen_tokens"] == sum(len(row.input_ids) for row in held)
        assert last[client]["tokens"] == sum(row.targets for row in held) < last[client]["seen_tokens"]
        assert last[client]["tokens_per_second"] > 0


def test_the_speed_of_a_client_is_over_the_time_in_which_it_trained(meter):
    watch, events = meter
    watch(1, {"a": Progress("training", 1, 2, 2.0, targets=10, tokens=40, seconds=0.5)})
    watch(1, {"a": Progress("done", 2, 2, 2.0, targets=20, tokens=90, seconds=2.0), "b": "waiting"})
    assert [e["clients"]["a"]["tokens_per_second"] for e in events] == [80.0, 45.0]
    assert events[-1]["clients"]["b"]["tokens_per_second"] is None


def test_who_is_late_was_never_waiting_and_others_are(run_small):
    run = run_small(*ROUNDS, "federation.deadline=2.0")
    (line,) = [e for e in run.events if e["event"] == "round"]
    states = history(run.events)
    assert line["late"] and len(line["late"]) < 8
    assert {c for c, s in states.items() if s == ["late"]} == set(line["late"])


def test_who_came_after_enough_others_is_late_in_the_end(run_small):
    run = run_small(*ROUNDS, "federation.clients_per_round=4", "federation.over_select=0.5")
    (line,) = [e for e in run.events if e["event"] == "round"]
    assert len(line["late"]) == 2
    assert {c for c, s in history(run.events).items() if s[-2:] == ["done", "late"]} == set(line["late"])


def test_an_update_that_the_gate_refuses_is_rejected_and_a_client_that_fails_has_failed(run_small, monkeypatch):
    from shepherd.engines.local import LocalEngine

    train = LocalEngine.train

    def spoiled(self, task, *rest):
        for answer in train(self, task, *rest):
            if answer.client == "brainstorming":
                answer.delta[next(iter(answer.delta))][0, 0] = float("nan")
            if answer.client == "open_qa":
                answer = ClientFailure(answer.client, task.round, "error:ValueError", "raised while training")
            yield answer

    monkeypatch.setattr(LocalEngine, "train", spoiled)
    ends = Counter({c: s[-1] for c, s in history(run_small(*ROUNDS).events).items()}.items())
    assert ends["brainstorming", "rejected"] == ends["open_qa", "failed"] == 1 and len(ends) == 8
    assert sum(state == "done" for _, state in ends) == 6


def test_clients_that_train_alone_wait_for_their_chunk_too(run_small):
    run = run_small("training.clients_at_once=5", "evaluation.arms=base,federated,local", "evaluation.generate=0")
    first = next(e for e in run.events if e["event"] == "clients" and e["arm"] == "local")
    assert len(first["clients"]) == 8 and {row["state"] for row in first["clients"].values()} == {"waiting"}


@pytest.fixture
def meter(small_config):
    """The observer of the federated arm of a tiny run, and the list of its events."""
    config = small_config(*ROUNDS)
    rows, _ = prepare_rows(config, load_tokenizer(config.model.base))
    events: list = []
    schedule, baselines = prepare_schedule(config), compose(config).baselines
    planned = training_tokens(schedule, baselines, rows, plan_of(config, rows), (), Cost())
    return Meter(events.append, planned, schedule.rounds).steps("federated"), events


def test_a_chunk_that_is_trained_again_counts_once(meter):
    watch, events = meter
    watch(1, {"a": Progress("training", 1, 2, 2.0, tokens=40, seconds=1.0)})
    once = events[-1]["fraction"]
    watch(1, {"a": Progress("training", 1, 2, 2.0, tokens=40, seconds=1.0), "b": Progress(tokens=40)})
    assert events[-1]["fraction"] == pytest.approx(2 * once)
    watch(2, {"a": "waiting"})
    assert events[-1]["event"] == "clients" and events[-1]["clients"]["a"]["seen_tokens"] == 0
    watch(2, {"a": Progress("done", 2, 2, 2.0, tokens=80, seconds=1.0)})
    assert events[-1]["fraction"] == pytest.approx(4 * once)


def test_more_tokens_than_planned_leave_no_time_rather_than_less_than_none(meter):
    watch, events = meter
    watch(1, {"a": Progress("training", 1, 2, 2.0, tokens=10**9, seconds=1.0)})
    assert (events[-1]["fraction"], events[-1]["eta_seconds"]) == (1.0, 0.0)


@pytest.fixture
def passes(monkeypatch):
    """Counts of tokens that really went through the base: [trained on, only measured]."""
    counts = [0, 0]

    def counted(name):
        of = getattr(PackedModel, name)

        def count(self, batch):
            counts[name == "token_losses" or not torch.is_grad_enabled()] += sum(
                s.end - s.start for s in batch.segments if s.slot != PADDING
            )
            return of(self, batch)

        return count

    for name in ("loss_sums", "token_losses"):
        monkeypatch.setattr(PackedModel, name, counted(name))
    return counts


@pytest.mark.parametrize(
    "personal, more, steps",
    [
        ("none", [], {1}),
        ("none", ["federation.method=lora_a2", "lora.ranks=[1,2]"], {1}),
        ("ditto", [], {2}),
        ("finetune", ["personalization.steps=3", "personalization.learning_rate=0.001"], {1}),
        ("feddpa", ["personalization.variant=T"], {2}),
        ("ifca", ["personalization.clusters=2"], {1, 2}),
    ],
)
def test_what_was_planned_is_what_goes_through_the_model_and_what_the_progress_ends_at(
    run_small, passes, personal, more, steps
):
    run = run_small(
        f"personalization.name={personal}", *more, "training.batch_size=100", "training.local_steps=1",
        "training.clients_at_once=5", "evaluation.every=1", "evaluation.generate=0",
    )  # fmt: skip
    trained, measured = passes
    planned = plan(run.config).tokens
    evaluated = planned.pop("evaluation") + planned.pop("choice of clusters", 0)
    assert (sum(planned.values()), evaluated) == (trained, measured)
    shares = [e["fraction"] for e in run.events if e["event"] == "step"]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0) and shares[-2] < 0.999
    states = [state for state in history(run.events)["open_qa"] if state != "training"]
    assert states == ["waiting", "done"] * 2, "done once a round, whatever it trains"
    assert {row["steps"] for _, _, _, row in rows_of(run.events)} == {0, *steps}
    if personal == "finetune":
        assert history(run.events, "personal")["open_qa"] == ["waiting", "training", "done"]


def test_what_is_timed_within_something_else_counts_only_there(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("shepherd.experiment.progress.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 1.0
    with clock.on("federated"):
        now[0] = 3.0
        with pytest.raises(ValueError, match="stop"), clock.on("evaluate"):
            now[0] = 7.0
            raise ValueError("stop")
        now[0] = 8.0
    now[0] = 8.5
    assert clock.read() == {"other": 1.5, "federated": 3.0, "evaluate": 4.0, "total": 8.5}
