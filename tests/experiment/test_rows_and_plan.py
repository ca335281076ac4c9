"""A recipe's settings reach the clients, the server and the adapter: none is read and then forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from prepared import plan_of, trainer_of
from shepherd import config, recipe
from shepherd.config import FederationTable, TrainingTable
from shepherd.data.sources import Dataset, dataset_notes
from shepherd.data.tokenize import Tokenized
from shepherd.errors import UsageError
from shepherd.experiment.method import compose
from shepherd.experiment.rows import losses_of_tokens, prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.experiment.trainer import check_window, local_training
from shepherd.model.base import load_base

# A value of each key that is not its default, and the keys without which it may not be set.
TRAINING = {
    "learning_rate": (1e-3, {}),
    "min_learning_rate": (1e-4, {"schedule": "linear"}),
    "batch_size": (3, {}),
    "local_steps": (2, {}),
    "local_epochs": (2.0, {}),
    "optimizer": ("sgd", {}),
    "weight_decay": (0.1, {}),
    "momentum": (0.9, {"optimizer": "sgd"}),
    "betas": ((0.8, 0.99), {}),
    "max_grad_norm": (0.5, {}),
    "schedule": ("cosine", {}),
    "schedule_over": ("round", {"schedule": "linear"}),
    "warmup_steps": (3, {}),
    "warmup_rounds": (2, {"schedule_over": "rounds"}),
    "gradient_checkpointing": (True, {}),
    "tokens_per_pass": (77, {}),
    "clients_at_once": (5, {}),
}
FEDERATION = {
    "clients_per_round": (3, {}),
    "fraction": (0.5, {}),
    "method": ("ffa_lora", {}),
    "aggregator": ("trimmed_mean", {}),
    "weights": ("tokens", {}),
    "max_weight": (0.5, {}),
    "max_update_norm": (7.0, {}),
    "clip_update_norm": ("median", {}),
    "min_updates": (2, {}),
    "on_too_few": ("skip", {}),
    "retries": (5, {}),
    "over_select": (0.5, {"clients_per_round": 4}),
    "deadline": (2.0, {}),
    "quarantine_after": (9, {}),
}
ELSEWHERE = {"rounds": "rates", "updates_in_memory_mib": "the spool, which needs the run's folder"}


def test_the_counts_of_left_out_rows_are_in_plain_words():
    few, many = ({"empty answer": tuple(f"x:{i + 1}" for i in range(n))} for n in (1, 1200))
    lines = [
        [*dataset_notes(Dataset((), "x", "dolly", "", refused=rows, changed=rows)),
         *losses_of_tokens(Tokenized((), rows, n, n, np.zeros(0), changed=rows))]
        for n, rows in ((1, few), (1200, many))
    ]  # fmt: skip
    assert lines[0] == [
        "1 row refused: empty answer (first: x:1)",
        "1 row lost a part: empty answer (first: x:1)",
        "1 row refused: empty answer (first: x:1)",
        "1 row changed: empty answer (first: x:1)",
        "1 row cut to data.max_length, 1 token in all",
    ]
    numbers = {"1 row ": "1,200 rows ", "1 token ": "1,200 tokens ", "x:1)": "x:1, x:2, x:3)"}
    for one, more in numbers.items():
        lines[0] = [line.replace(one, more) for line in lines[0]]
    assert lines[1] == lines[0]


def resolved(**tables: Any) -> config.Config:
    return recipe.resolve(tables)


def of_a_client(settings: config.Config) -> list[Any]:
    """What a client with ten rows does: how, on how much, at which rates in each round."""
    schedule = prepare_schedule(settings)
    count, steps = schedule.share(10)
    return [
        local_training(settings, compose(settings).personal, torch.device("cpu"), 1000), count, steps,
        [schedule.rates(4, n) for n in (1, 2, 3)],
    ]  # fmt: skip


@pytest.mark.parametrize("key", TrainingTable.model_fields)
def test_every_key_of_training_changes_what_a_client_does(key):
    value, others = TRAINING[key]
    before, after = of_a_client(resolved(training=others)), of_a_client(resolved(training={**others, key: value}))
    assert before == of_a_client(resolved(training=others)) != after
    if hasattr(before[0], key):
        assert getattr(after[0], key) == value
        assert replace(after[0], **{key: getattr(before[0], key)}) == before[0]


def test_lora_settings_reach_the_adapter_and_its_dropout(small_config):
    settings = small_config(
        "lora.r=4", "lora.alpha=6", "lora.rslora=true", "lora.dropout=0.25", "lora.targets=q_proj", "run.seed=3"
    )
    base = load_base(settings.model.base, device="cpu", dtype="float32")
    trainer = trainer_of(settings, base)
    assert (trainer.adapter.r, trainer.adapter.alpha, trainer.adapter.scale) == (4, 6.0, 3.0)  # 6 / √4
    assert {name.rsplit(".", 1)[1] for name in trainer.adapter.factors} == {"q_proj"}
    assert trainer.make_lora().dropout == trainer.settings.dropout == 0.25
    other = trainer_of(small_config("lora.r=4", "lora.targets=q_proj", "run.seed=4"), base)
    assert any((pair.A != other.adapter.factors[name].A).any() for name, pair in trainer.adapter.factors.items())


def test_a_schedule_goes_on_from_round_to_round():
    # 3 rounds of 2 steps: 1/2, 2/2 of the peak, then from the peak 8 to 4 in 4 steps.
    training = {
        "learning_rate": 8.0, "min_learning_rate": 4.0, "schedule": "linear", "warmup_steps": 2, "local_steps": 2
    }  # fmt: skip
    settings = resolved(training=training, federation={"rounds": 3})
    assert [prepare_schedule(settings).rates(2, n) for n in (1, 2, 3)] == [(4.0, 8.0), (8.0, 7.0), (6.0, 5.0)]


@pytest.mark.parametrize(
    "rows, training, expected",
    [
        (10, {"batch_size": 4}, (10, 3)),  # 4 + 3 + 3
        (10, {"batch_size": 5}, (10, 2)),
        (3, {"batch_size": 4}, (3, 1)),  # a batch is never larger than the client
        (10, {"batch_size": 4, "local_epochs": 2.0}, (20, 5)),
        (10, {"batch_size": 4, "local_epochs": 0.28}, (3, 1)),  # to the nearest number of rows
        (10, {"batch_size": 4, "local_epochs": 0.01}, (1, 1)),  # and at least one
        (10, {"batch_size": 4, "local_steps": 3}, (12, 3)),
        (3, {"batch_size": 4, "local_steps": 5, "local_epochs": 9.0}, (15, 5)),  # steps win over epochs
    ],
)
def test_a_clients_rows_and_steps_in_a_round(rows, training, expected):
    assert prepare_schedule(resolved(training=training)).share(rows) == expected


@pytest.fixture(scope="module")
def rows(small_config):
    settings = small_config()
    return prepare_rows(settings, load_base(settings.model.base, device="cpu", dtype="float32").tokenizer)[0]


@pytest.mark.parametrize("key", [key for key in FederationTable.model_fields if key not in ELSEWHERE])
def test_every_key_of_federation_changes_the_plan(key, rows):
    value, others = FEDERATION[key]

    def planned(table: dict[str, Any]) -> list[Any]:
        plan = plan_of(resolved(federation=table, training={"local_steps": 1}), rows)
        return [
            plan.weights, plan.min_updates, plan.cohort_size, plan.asked, replace(plan.policy, clock=None),
            plan.method.name, plan.method.pieces.merge.name, plan.gate().limits, plan.seed, plan.clip,
        ]  # fmt: skip

    before, after = planned(others), planned({**others, key: value})
    assert before == planned(others) != after
    if key in ("weights", "min_updates"):
        assert value in after


def test_the_plan_takes_the_runs_seed_and_every_clients_own_share(rows, small_config):
    settings = small_config("run.seed=5", "training.local_steps=0", "training.local_epochs=1")
    plan = plan_of(settings, rows)
    assert plan.seed == 5 and plan.sizes == {client: len(held) for client, held in rows.clients.items()}
    work = plan.work("open_qa", 2, 7)
    assert (work.client, work.first_row, work.rows, work.steps) == ("open_qa", 7, 4, 2)


LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}, 32),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}, 512),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}, 512),
    ],
)
def test_rows_are_no_longer_than_what_turns_the_positions_of_the_rows_beside_them(rope, most, small_config):
    # In one pass with a row of more than 32 tokens, a short row of a tiny Phi-3 lost 1.3 nats a token.
    kind = Phi3Config if most == 32 else LlamaConfig
    shape = kind(max_position_embeddings=512, hidden_size=32, num_attention_heads=4, **rope)
    check_window(small_config(f"data.max_length={most}"), shape)
    with pytest.raises(UsageError) as caught:
        check_window(small_config(f"data.max_length={most + 1}"), shape)
    assert caught.value.hint == f"set data.max_length to at most {most}"
    assert ("depend on the rows beside it" in caught.value.message) == (most == 32)
