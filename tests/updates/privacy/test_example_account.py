"""The privacy accounts of clients at the level of examples: ε of the lines, the budget, and noise after the line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from shepherd.errors import DataError
from shepherd.types import ClientModel, ExamplePrivacy, TrainTask, Work
from shepherd.updates.privacy import example_account
from shepherd.updates.privacy.accountant import Epsilons, Rounds
from shepherd.updates.privacy.example_account import (
    ExampleAccounts,
    ExampleRelease,
    largest_epsilon,
    sampling_rate,
)
from shepherd.updates.privacy.ledger import Ledger, read_releases
from some_adapters import some_adapter


def task_of(number: int, *, steps: int, batch: int, noise: float = 1.0, repeatable: bool = False) -> TrainTask:
    """A round of client c, of `steps` steps of `batch` planned rows."""
    work = Work("c", 0, steps * batch, (0.1,) * steps)
    privacy = ExamplePrivacy(0.5, noise, repeatable)
    return TrainTask(number, {"c": ClientModel(some_adapter())}, 3, {"c": work}, privacy=privacy)


def enter(accounts: ExampleAccounts, task: TrainTask, held: int):
    return accounts.enter(task, task.work["c"], held)


@pytest.mark.parametrize(
    "held, batch, steps, rounds, noise, delta, epsilon",
    [  # the tables of the design: q, z and T are all that ε depends on
        (1000, 50, 20, 10, 1.0, 1e-4, 3.99931),
        (10_000, 100, 100, 5, 1.0, 1e-5, 1.32605),
        (100, 5, 1, 20, 0.8, 1e-3, 1.79347),
    ],
)
def test_epsilon_of_a_client_is_that_of_all_steps_in_its_ledger(held, batch, steps, rounds, noise, delta, epsilon):
    accounts = ExampleAccounts(delta)
    for number in range(1, rounds + 1):
        enter(accounts, task_of(number, steps=steps, batch=batch, noise=noise), held)
    ledger = accounts.ledger("c")
    assert ledger.epsilon(delta).pld == pytest.approx(epsilon, abs=1e-3)
    assert [line.rounds for line in ledger.releases] == [Rounds(batch / held, noise, steps)] * rounds
    assert largest_epsilon({"c": tuple(line.rounds for line in ledger.releases)}, delta)[1] == ledger.epsilon(delta)


def test_a_round_that_is_tried_again_counts_twice_and_draws_anew():
    accounts = ExampleAccounts(1e-4)
    task = task_of(1, steps=3, batch=5)
    first, again = enter(accounts, task, 100).uniform(4), enter(accounts, task, 100).uniform(4)
    assert not set(first) & set(again)
    assert [(line.attempt, line.round, line.steps) for line in accounts.ledger("c").releases] == [(1, 1, 3), (2, 1, 3)]
    assert accounts.ledger("c").private


def test_repeatable_noise_repeats_for_a_client_and_round_and_is_marked():
    accounts, task = ExampleAccounts(1e-4), task_of(1, steps=3, batch=5, repeatable=True)
    first, again = enter(accounts, task, 100).normal(4), enter(accounts, task, 100).normal(4)
    other = enter(accounts, replace(task, round=2), 100).normal(4)
    assert np.array_equal(first, again) and not set(first) & set(other)
    named = replace(task, work={"d": replace(task.work["c"], client="d")})
    assert not set(first) & set(accounts.enter(named, named.work["d"], 100).normal(4))
    assert not accounts.ledger("c").private


def test_the_line_is_durable_before_a_number_is_drawn(monkeypatch):
    order: list[str] = []

    class Watched(example_account.Noise):
        def __init__(self, key=None):
            order.append("source")
            super().__init__(key)

    monkeypatch.setattr(example_account, "Noise", Watched)
    accounts = ExampleAccounts(1e-4, 0.0, lambda client: Ledger((), lambda line: order.append(line["client"])))
    enter(accounts, task_of(1, steps=1, batch=5), 100)
    assert order == ["c", "source"]

    def full(line):
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        enter(ExampleAccounts(1e-4, 0.0, lambda client: Ledger((), full)), task_of(1, steps=1, batch=5), 100)
    assert order == ["c", "source"]


def counted_bounds(monkeypatch) -> list[int]:
    """Makes ε equal to the number of steps over ten; the steps of every bound that is computed."""
    asked: list[int] = []

    def bound(rounds, delta):
        asked.append(sum(part.count for part in rounds))
        return Epsilons(asked[-1] / 10, math.inf)

    monkeypatch.setattr(example_account, "epsilons", bound)
    return asked


def test_the_budget_covers_whole_rounds_up_to_epsilon_and_none_beyond(monkeypatch):
    asked = counted_bounds(monkeypatch)
    accounts = ExampleAccounts(1e-4, epsilon=10.0)
    given = [enter(accounts, task_of(number, steps=3, batch=5), 100) is not None for number in range(1, 41)]
    assert given == [True] * 33 + [False] * 7, "99 steps of the 100 that fit"
    assert len(accounts.ledger("c").releases) == 33
    assert len(asked) < 16, "a bound takes a second"


def test_a_budget_counts_lines_of_another_rate_as_well(monkeypatch):
    counted_bounds(monkeypatch)
    accounts = ExampleAccounts(1e-3, epsilon=3.0)
    assert enter(accounts, task_of(1, steps=20, batch=5, noise=0.8), 100) is not None
    assert enter(accounts, task_of(2, steps=20, batch=5, noise=1.0), 100) is None
    assert enter(accounts, task_of(2, steps=1, batch=1, noise=1.0), 100) is not None


def test_the_largest_epsilon_is_found_among_the_clients_that_could_have_it(monkeypatch):
    asked = counted_bounds(monkeypatch)
    accounts = {"b": (Rounds(0.2, 1.0, 10),), "a": (Rounds(0.1, 1.0, 30),), "c": (Rounds(0.1, 1.0, 20),), "d": ()}
    accounts |= {"e": (Rounds(0.1, 1.0, 30),), "f": (Rounds(0.2, 1.0, 9),)}
    client, found = largest_epsilon(accounts, 1e-4)
    assert (client, found.least) == ("a", 3.0)
    assert sorted(asked) == [10, 30]


def test_the_rate_is_one_for_a_client_with_no_more_rows_than_a_step_takes():
    assert sampling_rate(Work("c", 0, 16, (0.1, 0.1)), 4) == 1
    assert sampling_rate(Work("c", 0, 16, (0.1, 0.1)), 40) == 0.2


def test_lines_are_read_as_they_were_written_and_others_are_refused(tmp_path):
    file, line = tmp_path / "c.jsonl", ExampleRelease("c", 1, 1, 100, 0.05, 3, 1.0, 0.5)
    file.write_text(json.dumps(asdict(line)) + "\n" + '{"client": "c", "att')
    assert read_releases(file, ExampleRelease) == [line]
    for wrong in ({"unit": "client"}, {"steps": -1}, {"sampling_rate": 1.5}, {"mechanism": "other"}):
        file.write_text(json.dumps({**asdict(line), **wrong}) + "\n")
        with pytest.raises(DataError, match="privacy account was cut"):
            read_releases(file, ExampleRelease)
