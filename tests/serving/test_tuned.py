"""A tuned model in Python: answers, logits, and the same model for PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import shepherd
from shepherd.errors import UsageError
from tiny_run import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("tuned"))


def test_a_tuned_model_answers_a_question_and_a_conversation(run):
    tuned = shepherd.load_tuned(run)
    greedy = tuned.generate("Name a colour.", max_new_tokens=6)
    assert greedy == tuned.generate([{"role": "user", "content": "Name a colour."}], max_new_tokens=6)
    assert greedy != tuned.generate("Name a colour.", max_new_tokens=6, bare=True)
    for wrong in ([], [{"role": "assistant", "content": "Red."}], [{"text": "Red."}]):
        with pytest.raises(UsageError):
            tuned.generate(wrong)
    with pytest.raises(UsageError, match="tokens, and"):
        tuned.generate("word " * 5000)


def test_a_tuned_model_is_a_peft_model_with_the_same_logits(run):
    tuned = shepherd.load_tuned(run)
    ids = [3, 5, 7, 11]
    theirs = tuned.peft()(torch.tensor([ids])).logits[0]
    assert float((theirs - tuned.logits(ids)).abs().max()) < 1e-4
    assert float((tuned.logits(ids) - tuned.base.model(torch.tensor([ids])).logits[0]).abs().max()) > 1e-3


def test_the_peft_model_of_a_round_holds_the_remainder_too(tmp_path):
    run = tiny_run(tmp_path, "llama", "federation.method=flora", "evaluation.generate=0")
    tuned, ids = shepherd.load_tuned(run, round=1), [3, 5, 7, 11]
    assert float((tuned.logits(ids) - tuned.base.model(torch.tensor([ids])).logits[0]).abs().max()) > 1e-3
    assert float((tuned.peft()(torch.tensor([ids])).logits[0] - tuned.logits(ids)).abs().max()) < 1e-4
