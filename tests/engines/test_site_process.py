"""A site's trainer in a child process stays warm, and costs one answer where it ends, hangs or raises."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from federation_schedules import card_of, task_of
from process_trainers import ENDS, ENDS_ONCE, FULL, HANGS, RAISES, make
from shepherd.engines.site_process import ProcessTrainer
from shepherd.errors import DataError
from shepherd.federation.groups import Group
from shepherd.federation.verdicts import Refused
from shepherd.types import ClientFailure, GlobalModel, Stat


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("one\nthree\n")
    return file


@pytest.fixture
def trainer(rows):
    made = ProcessTrainer(partial(make, rows), "a")
    yield made
    made.close()


def task(rate: float = 0.1):
    found = task_of(1, 5, {"a": 0})
    return replace(found, work={"a": replace(found.work["a"], learning_rates=(rate,))})


def test_a_trainer_that_is_killed_once_in_a_task_costs_no_answer(trainer):
    trainer.load_rows(card_of())
    before = {"p": np.full(1, 3.0, np.float32)}
    reply = trainer.train(task(ENDS_ONCE), before, lambda report: None)
    assert not isinstance(reply, ClientFailure) and reply.private["p"].tolist() == [4.0]


def test_a_trainer_that_is_closed_at_work_ends_and_has_no_successor(trainer):
    trainer.load_rows(card_of())
    replies, steps = [], []
    working = threading.Thread(target=lambda: replies.append(trainer.train(task(HANGS), {}, steps.append)))
    working.start()
    while not steps:
        time.sleep(0.01)
    trainer.close()
    working.join(20)
    assert replies == [ClientFailure("a", 1, "lost", "the trainer of the site ended")]
    assert trainer._process is None
    assert not multiprocessing.active_children()


def test_the_trainer_of_a_site_works_in_another_process_and_outlives_its_faults(trainer, rows, caplog):
    caplog.set_level(logging.DEBUG)
    facts = trainer.load_rows(card_of())
    assert (facts.rows, facts.digest) == (2, "3-5")
    steps = []
    first = trainer.train(task(), {}, steps.append)
    assert steps and steps[0]["a"].step == 1
    second = trainer.train(task(), first.private, lambda report: None)
    assert second.private["p"].tolist() == [2.0] and second.num_examples == 3
    model = task().views["a"].adapter
    assert {n: a.tobytes() for n, a in first.delta.items()} == {n: a.tobytes() for n, a in second.delta.items()}
    assert trainer.measure(None, "held-out") == {"held-out": Group(Stat(1.0, 4.0), 12)}
    assert trainer.measure(GlobalModel(model), "training") == {"training": Group(Stat(2.0, 4.0), 12)}
    assert trainer.finish(task(), {"p": np.ones(1, np.float32)}) == {"own": Group(Stat(1.0, 1.0), 12)}

    with pytest.raises(Exception, match="see the log of the trainer") as raised:
        trainer.train(task(RAISES), {}, lambda report: None)
    assert type(raised.value).__name__ == "ValueError"
    with pytest.raises(MemoryError):
        trainer.train(task(FULL), {}, lambda report: None)
    process = trainer._process.pid
    lost = trainer.train(task(ENDS), {}, lambda report: None)
    assert lost == ClientFailure("a", 1, "lost", "the trainer of the site ended")
    assert trainer.train(task(), {}, lambda report: None).private["p"].tolist() == [1.0], "another one took its place"
    assert trainer._process.pid != process
    trainer.patience = 0.3
    hung = trainer.train(task(HANGS), {}, lambda report: None)
    assert isinstance(hung, ClientFailure) and hung.code == "hang"
    trainer.patience = 60.0
    rows.write_text("one\nother\nthree\n")
    with pytest.raises(Refused, match="rows-changed"):
        trainer.train(task(), {}, lambda report: None)
    rows.unlink()
    with pytest.raises(DataError) as missing:
        trainer.load_rows(card_of())
    assert "SECRET" not in str(missing.value) + caplog.text
    trainer.close()
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("SpawnProcess")]
