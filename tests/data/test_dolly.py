"""Dolly-15k, where it is at hand: in the folder SHEPHERD_DATA, or in ../shared/data."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

import tiny_tokenizers as tiny
from shepherd.data.audit import audit
from shepherd.data.partition import divide, hold_out, short_categories, table
from shepherd.data.prompts import build_template
from shepherd.data.sources import load_examples
from shepherd.data.tokenize import tokenize

FOLDER = Path(os.environ.get("SHEPHERD_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
DOLLY = FOLDER / "databricks-dolly-15k.jsonl"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DOLLY.exists(), reason="Dolly-15k is not at hand")]


def test_fifteen_thousand_rows_are_read_divided_tokenised_and_audited():
    data = load_examples(str(DOLLY))
    assert len(data) == 15011 and data.format == "dolly" and not data.refused
    train, out = hold_out(data.examples, 10, 0)
    assert Counter(e.category for e in out) == dict.fromkeys({e.category for e in data.examples}, 10)
    assert not short_categories(data.examples, out, 10)
    partition = divide(train, "shards", {}, 100, 0, out)
    clients, categories, counts = table(partition, train)
    assert (len(clients), len(categories), counts.sum()) == (100, 8, 14931)
    assert (counts > 0).sum(1).max() <= 4
    tokenizer = tiny.chatml()
    tokens = tokenize(data.examples, tokenizer, build_template("chat", tokenizer), 512)
    assert len(tokens.tokens) == 15011 and tokens.cut_rows > 0
    found = audit(partition, train, out, tokens, data)
    assert found["train and held-out overlap"].count == 0
    assert found["conflicting answers"].count > 0 and found["over-long rows"].count == tokens.cut_rows
