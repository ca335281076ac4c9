"""One client's exception or hunger costs that client only; its text stays where it was raised."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from prepared import plan_of, trainer_of
from shepherd.clients.training import train
from shepherd.engines.isolation import isolated
from shepherd.engines.local import LocalEngine
from shepherd.errors import ModelError
from shepherd.experiment.rows import prepare_rows
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.types import ClientFailure, ClientModel, ClientUpdate, TrainTask, Work

NAMES = tuple("abcdef")
TASK = TrainTask(2, dict.fromkeys(NAMES), 0, {c: Work(c, 0, 1, (0.1,)) for c in NAMES})
SECRET = "my password is hunter2"


def numbers(raises=lambda client, divisor: None, calls=None):
    """A trainer that gives an update for each client, unless `raises(client, divisor)` says what it raises instead."""

    def train(task, divisor, observe):
        if calls is not None:
            calls.append((tuple(task.work), divisor))
        for client in task.work:
            error = raises(client, divisor)
            if error is not None:
                raise error
            yield ClientUpdate(client, task.round, {}, 1, 1, 1)

    return train


def test_while_all_goes_well_clients_train_in_chunks():
    calls: list = []
    answers = list(isolated(TASK, 4, numbers(calls=calls)))
    assert [a.client for a in answers] == list(NAMES)
    assert calls == [(("a", "b", "c", "d"), 1), (("e", "f"), 1)]


@pytest.mark.parametrize("at_once", [1, 2, 4, 6])
def test_an_exception_costs_its_client_only(at_once):
    answers = list(isolated(TASK, at_once, numbers(lambda c, d: KeyError(SECRET) if c in "bf" else None)))
    assert [a.client for a in answers] == list(NAMES)
    failed = {a.client: (a.code, a.round) for a in answers if isinstance(a, ClientFailure)}
    assert failed == {"b": ("error:KeyError", 2), "f": ("error:KeyError", 2)}
    assert SECRET not in str(answers)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_tried_once_more_with_smaller_passes(error):
    calls: list = []
    mended = list(isolated(TASK, 3, numbers(lambda c, d: error if c == "b" and d == 1 else None, calls)))
    assert all(isinstance(a, ClientUpdate) for a in mended)
    assert (("b",), 4) in calls and (("a",), 4) not in calls
    hopeless = list(isolated(TASK, 3, numbers(lambda c, d: error if c == "b" else None)))
    (failure,) = [a for a in hopeless if isinstance(a, ClientFailure)]
    assert (failure.client, failure.code) == ("b", "out-of-memory")


def test_a_fault_of_the_run_that_every_client_meets_is_raised_and_one_clients_is_not():
    wrong = ModelError("the base routes tokens", hint="leave routed layers out")
    with pytest.raises(ModelError, match="routes tokens"):
        list(isolated(TASK, 2, numbers(lambda c, d: wrong)))
    answers = list(isolated(TASK, 2, numbers(lambda c, d: wrong if c != "a" else None)))
    assert sum(a.code == "error:ModelError" for a in answers if isinstance(a, ClientFailure)) == 5
    assert len(list(isolated(TASK, 2, numbers(lambda c, d: ValueError(SECRET))))) == 6, "the gate counts these"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_clients_failure(stop):
    with pytest.raises(stop):
        list(isolated(TASK, 2, numbers(lambda c, d: stop())))


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_the_observer_raises_is_no_clients_failure(at_once):
    def reporting(task, divisor, observe):
        observe({})
        yield from numbers()(task, divisor, observe)

    def observe(report):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(isolated(TASK, at_once, reporting, observe))


def test_the_text_of_an_exception_is_logged_at_debug_level_only(caplog, capfd):
    raising = numbers(lambda c, d: ValueError(SECRET) if c == "b" else None)
    list(isolated(TASK, 2, raising))
    out, err = capfd.readouterr()
    assert SECRET not in caplog.text + out + err
    with caplog.at_level(logging.DEBUG, "shepherd"):
        list(isolated(TASK, 2, raising))
    assert SECRET in caplog.text


def test_a_class_name_is_all_that_is_left_of_an_exception():
    hostile = type("Bad\n name; rm -rf/" + "x" * 200, (Exception,), {})
    (failure,) = isolated(TASK.part("a"), 1, numbers(lambda c, d: hostile(SECRET)))
    assert failure.code == "error:" + ("Badnamermrf" + "x" * 200)[:64]


# With a model


class Poisoned(tuple):
    """Rows that cannot be read."""

    def __getitem__(self, index):
        raise ValueError(SECRET)


@pytest.fixture(scope="module")
def setting(small_config):
    """An engine on the tiny model, and a round's task for all of its clients."""
    config = small_config("training.clients_at_once=3", "training.local_steps=2")
    base = load_base(config.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(config, base.tokenizer)
    learner, plan = trainer_of(config, base), plan_of(config, rows)
    work = {client: plan.work(client, 1, 0) for client in plan.clients}
    task = TrainTask(1, dict.fromkeys(work, ClientModel(learner.adapter)), 0, work)
    return LocalEngine(learner.host(rows.clients)), task


def trained(engine: LocalEngine, task: TrainTask, **changes) -> dict[str, ClientUpdate | ClientFailure]:
    again = LocalEngine(replace(engine.site, settings=replace(engine.site.settings, **changes)))
    return {answer.client: answer for answer in again.train(task)}


def assert_close(ours: ClientUpdate, theirs: ClientUpdate) -> None:
    assert isinstance(ours, ClientUpdate), ours
    for name, delta in theirs.delta.items():
        scale = np.abs(delta).max() + 1e-12
        np.testing.assert_allclose(ours.delta[name] / scale, delta / scale, atol=0.05)


def test_isolation_changes_no_bit_while_all_goes_well(setting):
    engine, task = setting
    plain = list(train(task, {}, engine.site))
    for ours, theirs in zip(engine.train(task), plain, strict=True):
        assert ours.delta.keys() == theirs.delta.keys()
        assert all(ours.delta[name].tobytes() == theirs.delta[name].tobytes() for name in ours.delta)
        assert replace(ours, delta={}) == replace(theirs, delta={})


def test_others_train_on_as_if_the_failing_client_had_not_been_there(setting):
    engine, task = setting
    expected = trained(engine, task)
    poisoned = sorted(task.work)[1]
    data = {**engine.site.data, poisoned: Poisoned(engine.site.data[poisoned])}
    answers = trained(LocalEngine(replace(engine.site, data=data)), task)
    assert answers[poisoned].code == "error:ValueError"
    for client in set(task.work) - {poisoned}:
        assert_close(answers[client], expected[client])


def test_a_client_that_needs_smaller_passes_gets_them(setting, monkeypatch):
    engine, task = setting
    expected = trained(engine, task, tokens_per_pass=64)
    longest = max(len(row.input_ids) for rows in engine.site.data.values() for row in rows)
    sums = PackedModel.loss_sums

    def loss_sums(self, batch):
        if batch.input_ids.numel() > longest + 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sums(self, batch)

    monkeypatch.setattr(PackedModel, "loss_sums", loss_sums)
    answers = trained(engine, task, tokens_per_pass=256)
    for client in task.work:
        assert_close(answers[client], expected[client])
    everywhere = trained(engine, task, tokens_per_pass=100_000)
    assert {a.code for a in everywhere.values() if isinstance(a, ClientFailure)} == {"out-of-memory"}


def test_scaffold_s_mean_is_over_all_clients_of_the_run_and_not_over_the_cohort(small_config):
    config = small_config("federation.clients_per_round=2")
    rows, _ = prepare_rows(config, load_base(config.model.base, device="cpu", dtype="float32").tokenizer)
    plan = plan_of(config, rows)
    assert plan.cohort_size == 2 < len(plan.clients)
    total = sum(plan.sizes.values())
    assert plan.method.population == {client: size / total for client, size in plan.sizes.items()}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ((), 2.0),
        (("objective.proximal=5.0",), 2.0),  # of adamw: no a_k, the sum of the rates
        (("training.optimizer=sgd", "objective.proximal=5.0"), 1 + 0.5),  # 1 − ημ = 1 − 0.1 · 5
        (("training.optimizer=sgd", "objective.proximal=5.0", "objective.rate_ratio=2"), 1 + 0.5),  # A's, where A moves
        (("training.optimizer=sgd", "objective.proximal=1.0", "objective.rate_ratio=2", "federation.method=ffa_lora"),
         1 + 0.8),  # 1 − 0.2 · 1
        (("training.optimizer=sgd", "objective.proximal=5.0", "objective.proximal_form=product"), 2.0),
        (("training.optimizer=sgd", "training.momentum=0.5"), 1.5 + 1),
        # The first gradient is 1, then 0.5 · 1 − 0.1 · 5 · 1: together it moves by 1 + 0.5 − 0.5.
        (("training.optimizer=sgd", "training.momentum=0.5", "objective.proximal=5.0"), 1 + 1),
    ],
)  # fmt: skip
def test_the_server_counts_the_steps_that_fednova_divides_by(small_config, settings, expected):
    config = small_config("training.learning_rate=0.1", "server.optimizer=fednova", *settings)
    rows, _ = prepare_rows(config, load_base(config.model.base, device="cpu", dtype="float32").tokenizer)
    work = Work("client", 0, 4, (0.1,) * 4)
    assert plan_of(config, rows).effective_steps(work, 2, 1) == pytest.approx(expected)
