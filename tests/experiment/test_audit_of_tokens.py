"""Tokens that one update gives away: one row by SGD, and the rounds and factors that are attacked."""

from __future__ import annotations

import json
import random

import pytest

from shepherd.errors import EvaluationError
from shepherd.experiment.audit import AuditOptions, audit_run, open_audited
from shepherd.experiment.audit_tokens import replay
from shepherd.store.records import read_rounds
from tiny import tiny_model

LETTERS = "bfgjkmpqvwxyzABDEGHJKLMNOPQRUVXYZ0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with room for its tokens, and rows of rare letters."""
    root, draw = tmp_path_factory.mktemp("tokens"), random.Random(1)
    tiny_model("llama", root, hidden_size=256, head_dim=64)
    rows = [
        {name: "".join(draw.sample(LETTERS, 3)) for name in ("instruction", "response")} | {"category": "a"}
        for _ in range(24)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def by_sgd(run_small, folder):
    """A run of two rounds with one step on one row each, by plain SGD."""
    return run_small(
        f"model.base={folder / 'llama'}", f"data.source={folder / 'rows.jsonl'}", "data.held_out_per_category=8",
        "data.rows_per_category=0", "partition.name=iid", "partition.clients=2", "lora.r=16", "lora.alpha=16",
        'lora.targets=["q_proj","k_proj","v_proj"]', "training.batch_size=1", "training.optimizer=sgd",
        "training.learning_rate=0.1", "evaluation.arms=base,federated", "evaluation.generate=0",
    ).path  # fmt: skip


def tokens(run, **options):
    return audit_run(run, ["tokens"], AuditOptions(**options))["tokens"]


def test_one_row_by_sgd_gives_its_tokens_away(by_sgd):
    found = tokens(by_sgd)
    assert (found["round"], found["rows"], found["steps"], found["optimizer"]) == (2, 1, 1, "sgd")
    assert found["attacked"] == "ΔA" and found["replayed_exactly"] is True
    assert found["tokens"] >= 5 and found["recall"] >= 0.8 > found["guessed_by_frequency"] + 0.3


def test_after_one_step_of_the_first_round_b_is_attacked(by_sgd):
    found = tokens(by_sgd, round=1, client="client-001")
    assert (found["round"], found["client"], found["attacked"]) == (1, "client-001", "ΔB")
    assert found["replayed_exactly"] is True


def test_the_tokens_are_those_of_the_rows_of_that_round_and_the_guess_knows_none_of_them(by_sgd):
    run = open_audited(by_sgd)
    line, data = run.lines[0], run.inputs.data
    played = replay(run.inputs, run.inputs.start, line, "client-000")
    assert [row.tolist() for row in played.rows] in [[row.input_ids.tolist()] for row in data.clients["client-000"]]
    other = replay(run.inputs, run.inputs.start, {**line, "train_loss": {"client-000": 0.0}}, "client-000")
    assert (played.exact, other.exact) == (True, False)


def test_an_update_without_factors_of_the_first_layers_is_not_attacked(run_small):
    run = run_small('lora.targets=["down_proj"]', "evaluation.arms=base,federated", "evaluation.generate=0").path
    with pytest.raises(EvaluationError, match="no adapted layer reads the embeddings of tokens alone"):
        tokens(run)
    run = run_small("federation.method=fed_sb", "evaluation.arms=base,federated", "evaluation.generate=0").path
    with pytest.raises(EvaluationError, match="the update holds no change of A or B"):
        tokens(run)
    assert len(read_rounds(run)) == 2
