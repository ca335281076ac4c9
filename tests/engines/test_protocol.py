"""The promises of `round.Engine`, for every engine of simulated clients: the bits of plain training, whatever happens.

A new engine joins with a line in ENGINES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from prepared import plan_of, trainer_of
from shepherd.clients.facts import rows_digest
from shepherd.clients.training import TrainingHost, train
from shepherd.engines.local import LocalEngine
from shepherd.engines.workers import Workers
from shepherd.errors import UsageError
from shepherd.experiment.plan import with_transforms
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.trainer import worker_engine
from shepherd.model.base import load_base
from shepherd.round import Engine, Plan, Replies, run_round, sample_cohort, task_of
from shepherd.testing.engines import PROMISES
from shepherd.testing.replies import replies as replies_of
from shepherd.testing.tiny_federation import SPOILT, TinyFederation
from shepherd.types import (
    ClientFailure,
    ClientUpdate,
    Objective,
    ServerState,
    TrainTask,
    TransformSpec,
)
from shepherd.updates.clipping import REPORTED, ClipNorm, clip_specs
from shepherd.updates.rules import update_norm
from tiny_transforms import spec


@dataclass
class Setting:
    """The tiny model, its clients, a plan and a task for all of them but SPOILT. held_out: rows of the server."""

    config: Any
    plan: Plan
    site: TrainingHost
    state: ServerState
    task: TrainTask
    held_out: list
    tokenizer: str

    @property
    def federation(self) -> TinyFederation:
        """What the promises of engines ask for."""
        return TinyFederation(self.site, self.state.model, self.task, self.held_out, self.tokenizer)


ENGINES: dict[str, Callable[[Setting], Any]] = {
    "local": lambda setting: LocalEngine(setting.site),
    "one worker": lambda setting: Workers(
        1, partial(worker_engine, setting.config, 1), setting.site.data, LocalEngine(setting.site)
    ),
}


@pytest.fixture(scope="module")
def setting(small_config) -> Setting:
    config = small_config(
        "training.clients_at_once=3", "training.local_steps=2", "objective.scaffold=true", "run.threads=1",
        "training.tokens_per_pass=512",
    )  # fmt: skip
    base = load_base(**config.model.model_dump())
    rows, _ = prepare_rows(config, base.tokenizer)
    trainer, plan = trainer_of(config, base), plan_of(config, rows)
    state = ServerState(0, plan.method.start(trainer.adapter, config.run.seed, None))
    cohort = sample_cohort(state, plan, Replies(), len(plan.clients))
    first = rows.clients[min(rows.clients)]
    spoilt = [replace(row, input_ids=np.full_like(row.input_ids, 10**6)) for row in first]
    site = trainer.host({**rows.clients, SPOILT: spoilt})
    return Setting(config, plan, site, state, task_of(state, plan, cohort), list(rows.held_out), base.tokenizer_digest)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, setting) -> Iterator[Engine]:
    with ExitStack() as stack:
        made = ENGINES[request.param](setting)
        yield stack.enter_context(made) if hasattr(made, "__enter__") else made


def replies(engine: Engine, setting: Setting, task: TrainTask) -> dict[str, ClientUpdate | ClientFailure]:
    """What passes the gate, one reply for each client of the task."""
    return replies_of(engine, setting.federation, task)


def assert_same_bits(ours: Mapping[str, Any], theirs: Mapping[str, ClientUpdate]) -> None:
    assert ours.keys() == theirs.keys()
    for client, update in theirs.items():
        assert isinstance(ours[client], ClientUpdate), ours[client]
        assert list(ours[client].private) == list(update.private), "the gate orders the delta, nobody the private state"
        for mine, its in ((ours[client].delta, update.delta), (ours[client].private, update.private)):
            assert mine.keys() == its.keys()
            assert all(mine[name].tobytes() == its[name].tobytes() for name in its)
        assert replace(ours[client], delta={}, private={}) == replace(update, delta={}, private={})


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_an_engine_keeps_the_promises_of_the_protocol(engine, setting, promise):
    promise(engine, setting.federation)


def two_clients(setting: Setting) -> TrainTask:
    """The task of the first two clients, without control variates."""
    return replace(setting.task.part(sorted(setting.task.work)[:2]), objective=Objective(), control={})


def test_clients_transform_their_updates_in_order_and_what_they_keep_of_it_is_private(engine, setting):
    engine.restore({})
    plain = two_clients(setting)
    before = {u.client: u for u in train(plain, {}, setting.site)}
    norm = min(update_norm(update) for update in before.values()) / 2
    bounded = (spec("clip", norm=norm), spec("double"))
    for client, update in replies(engine, setting, replace(plain, transforms=bounded)).items():
        assert update_norm(update) == pytest.approx(2 * norm, rel=1e-6)
        factor = norm / update_norm(before[client])
        assert all((update.delta[n] == 2 * np.float32(factor * a)).all() for n, a in before[client].delta.items())
    task = replace(plain, transforms=(spec("draw", size=0.1),))
    drawn = replies(engine, setting, task)
    assert_same_bits(drawn, {update.client: update for update in train(task, {}, setting.site)})
    first, second = ([u.delta[n] - before[c].delta[n] for n in u.delta] for c, u in sorted(drawn.items()))
    assert not any(np.allclose(one, other) for one, other in zip(first, second, strict=True)), "numbers of their own"
    engine.restore({client: update.private for client, update in drawn.items()})
    assert {float(update.private["draw"][0]) for update in replies(engine, setting, task).values()} == {2.0}


def test_a_transform_that_fails_costs_its_client_and_one_of_another_shape_is_rejected(engine, setting):
    engine.restore({})
    plain = two_clients(setting)
    ill, other = plain.work
    given = replies(engine, setting, replace(plain, transforms=(spec("fails", client=ill),)))
    assert given[ill] == ClientFailure(ill, plain.round, "error:ValueError", "raised while training")
    assert given[other].code == "shape"


def test_a_transform_that_is_not_known_where_clients_are_trained_ends_the_run(setting):
    task = replace(two_clients(setting), transforms=(TransformSpec("noise"),))
    with pytest.raises(UsageError, match="unknown transform: 'noise'"):
        list(LocalEngine(setting.site).train(task))


def two_rounds(
    engine: Engine, setting: Setting, *specs: TransformSpec, clip: ClipNorm = 0.0
) -> tuple[list[bytes], list[Any]]:
    """(the bytes of the global adapter, the records) after two rounds of three clients with these transforms."""
    usual = replace(setting.plan, objective=Objective(), clients=setting.plan.clients[:3], cohort_size=2)
    plan = with_transforms(replace(usual, clip=clip), specs, setting.config.lora.r)
    state, records = setting.state, []
    for _ in range(2):
        state, record = run_round(state, plan, engine)
        records.append(replace(record, seconds={}))
    assert [len(record.weights) for record in records] == [2, 2], records
    factors = state.model.adapter.factors
    return [array.tobytes() for name in sorted(factors) for array in factors[name]], records


BOTH_HALVES = (spec("clip", norm=0.05), spec("draw", size=0.01), spec("push", value=0.001))


@pytest.fixture(scope="module")
def expected(setting) -> list[tuple[list[bytes], list[Any]]]:
    """Two rounds in this process: without transforms, and with both halves."""
    here = LocalEngine(setting.site)
    return [two_rounds(here, setting, *specs) for specs in ((), BOTH_HALVES)]


def test_rounds_with_both_halves_of_transforms_have_the_same_bits_in_every_engine(engine, setting, expected):
    plain, transformed = expected
    assert two_rounds(engine, setting, *BOTH_HALVES) == transformed
    assert two_rounds(engine, setting, spec("identity")) == plain
    assert plain[0] != transformed[0]


@pytest.mark.parametrize("clip", [0.02, "median"])
def test_clients_clip_their_updates_themselves_and_rounds_have_the_same_bits_in_every_engine(
    engine, setting, expected, clip
):
    given = two_rounds(engine, setting, clip=clip)
    assert given == two_rounds(LocalEngine(setting.site), setting, clip=clip)
    records = given[1]
    assert given[0] != expected[0][0] and records[1].clipped >= 1
    assert all(norm <= records[1].clip_norm for norm in records[1].update_norm.values())
    task = replace(two_clients(setting), transforms=clip_specs(0.001, clip == "median"))
    for update in replies(engine, setting, task).values():
        assert 0.001 * (1 - 1e-6) <= update_norm(update) <= 0.001
        assert (update.metrics.get(REPORTED, 0.0) > 0.001) == (clip == "median")


def test_a_clip_that_is_too_long_has_the_bits_of_none_in_every_engine(engine, setting, expected):
    factors, records = two_rounds(engine, setting, clip=1e3)
    assert factors == expected[0][0]
    assert [replace(record, clipped=None, clip_norm=None) for record in records] == expected[0][1]


def test_a_plan_refuses_transforms_that_it_cannot_give_what_they_need(setting):
    refused = replace(setting.plan, weights="examples", clusters=2, rank=lambda client: 1)
    with pytest.raises(UsageError) as caught:
        with_transforms(refused, [spec("uniform"), spec("linear")], setting.config.lora.r)
    told = [line.split(" do not fit")[0] for line in caught.value.message.splitlines()]
    assert told == [
        f'transform "tiny_transforms:{name}" and {setting}'
        for name, settings in (
            ("uniform", ('federation.weights = "examples"', 'personalization.name = "ifca"')),
            ("linear", ("lora.ranks", "objective.scaffold = true", 'personalization.name = "ifca"')),
        )
        for setting in settings
    ]


def test_the_digest_of_rows_depends_on_each_token_each_target_and_the_order(setting):
    rows = list(setting.site.data[min(setting.task.work)])
    first = rows[0]
    longer = replace(first, input_ids=first.input_ids + 1)
    other_targets = replace(first, loss_mask=~first.loss_mask)
    cut = replace(first, input_ids=first.input_ids[:-1], loss_mask=first.loss_mask[:-1])
    variants = [rows, rows[::-1], rows[1:], *([changed, *rows[1:]] for changed in (longer, other_targets, cut))]
    assert len({rows_digest(variant) for variant in variants}) == len(variants)
    assert rows_digest(rows) == rows_digest([replace(row, id="x", category="y") for row in rows])
