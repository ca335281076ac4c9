"""What the offline tasks name in their YAML, for the process of the harness: documents and the scores of a document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.evaluation.metrics import Answer
from shepherd.evaluation.ratios import ratio
from shepherd.evaluation.text import exact_match, rouge_l, token_f1

GENERATED = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l}


def load_documents(file: str, **_: Any) -> dict[str, Any]:
    """{"test": the documents of a JSON Lines file}, in memory: the datasets library caches no copy of the rows."""
    from datasets import Dataset

    lines = Path(file).read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}


def token_loss(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, list[float]]:
    """{"loss": [nats, tokens]} of a document, from the log-likelihood of its answers."""
    return {"loss": [-results[0][0], doc["tokens"]]}


def sum_over_sum(items: Sequence[Sequence[float]]) -> float:
    """Σ nats / Σ tokens: the held-out loss, in nats per target token."""
    import numpy as np

    return ratio(*np.array(items, np.float64).T).value


def answer_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The metrics of a generated answer, as in a run: each in [0, 1], higher is nearer to the reference."""
    answer = Answer(
        text=results[0],
        reference=doc["reference"],
        conversation=doc["conversation"],
        category=doc["category"],
        id=doc["id"],
    )
    return {name: metric().score(answer) for name, metric in GENERATED.items()}
