"""Generated answers to held-out prompts, and their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from shepherd.data.prompts import Template
from shepherd.data.tokenize import encode_prompt
from shepherd.errors import plural
from shepherd.evaluation.scoring import Scores, mean_score
from shepherd.evaluation.statistics import difference_of_sums
from shepherd.model.generate import Answer
from shepherd.types import Example, Message, Tokens

FIRST = 5
"""Places and ids that summary.json names of each reason and finding; `shepherd data inspect --json` has more."""


def sample_rows(held_out: Sequence[Tokens], count: int, usable: Callable[[int], bool]) -> list[int]:
    """Indices of `count` held-out rows, taken in turn from each category; for one that is not usable comes the next
    of its category. Fewer where no more are usable."""
    by_category: dict[str, list[int]] = {}
    for index, row in enumerate(held_out):
        by_category.setdefault(row.category, []).append(index)
    turns = zip_longest(*(filter(usable, indices) for indices in by_category.values()))
    return sorted(islice((index for turn in turns for index in turn if index is not None), count))


@dataclass(frozen=True)
class Generation:
    """Limits of generation: the number of rows, tokens of an answer, and tokens of a training row (data.max_length)."""

    rows: int
    max_new_tokens: int
    max_length: int

    def prompts(
        self,
        held_out: Sequence[Tokens],
        examples: Mapping[str, Example],
        template: Template,
        tokenizer: Any,
        window: int | None,
    ) -> tuple[list[Example], list[list[int]], str]:
        """(rows that are answered by generation, the ids of their prompts, why they are fewer than requested: a
        sentence, or "").

        Rows that were cut are left out: nothing as long was trained on. So are plain texts, which have no prompt, and
        rows whose last answer is not a target. window: the positions of the model, where it has a limit.
        """
        reasons = {row.id: self.why_not(row, examples[row.id]) for row in held_out}
        prompts: dict[int, list[int]] = {}

        def usable(index: int) -> bool:
            if reasons[held_out[index].id]:
                return False
            example = examples[held_out[index].id]
            prompts[index] = encode_prompt(template, tokenizer, example.messages, example.context, example.tools)
            return len(prompts[index]) + self.max_new_tokens <= (window or math.inf)

        picked = sample_rows(held_out, self.rows, usable)
        missing = ""
        if len(picked) < self.rows:
            long = f"with evaluation.max_new_tokens = {self.max_new_tokens} beyond the {window} positions of the model"
            missing = (
                f"evaluation.generate = {self.rows} asks for more answers than the {len(picked)} that are possible: "
                f"{plural(len(held_out), 'row')} held out"
            )
            counts = {**Counter(filter(None, reasons.values())), long: len(prompts) - len(picked)}
            missing += "".join(f", {count} of them {why}" for why, count in counts.items() if count)
        return [examples[held_out[i].id] for i in picked], [prompts[i] for i in picked], missing

    def why_not(self, row: Tokens, example: Example) -> str:
        """Why a held-out row is not answered by generation, or ""."""
        last = example.messages[-1]
        if last.role != "assistant":
            return "plain text without a prompt"
        if not last.learned:
            return "with a last answer that is not trained on"
        return f"cut to data.max_length = {self.max_length}" if row.cut else ""


def generation_record(example: Example, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """One line of generations.jsonl. finish_reason "length": cut off at evaluation.max_new_tokens."""
    messages = [_turn(m) for m in example.messages[:-1]]
    asked = next((turn for turn in reversed(messages) if turn["role"] == "user"), None)
    if example.context and asked:
        asked["content"] += f"\n\n{example.context}"
    return {
        "id": example.id,
        "category": example.category,
        "prompt": messages,
        **({"tools": example.tools} if example.tools else {}),
        "reference": example.messages[-1].content,
        "answers": {arm: answer.text for arm, answer in answers.items()},
        "finish_reason": {arm: answer.finish_reason for arm, answer in answers.items()},
    }


def _turn(message: Message) -> dict[str, str]:
    """A turn of generations.jsonl, with the fields that only some turns have where they have them."""
    more = {"reasoning": message.reasoning, "extra": message.extra}
    return {"role": message.role, "content": message.content, **{key: text for key, text in more.items() if text}}


def generation_scores(records: Sequence[Mapping[str, Any]], scores: Scores) -> dict[str, dict[str, float]]:
    """The mean of every metric for each arm that answered; `cut_off`: answers that ended for their length."""
    arms = {arm for record in records for arm in record["answers"]}
    return {
        arm: {
            **{metric: mean_score(of_arms[arm]).mean for metric, of_arms in scores.items()},
            "rows": len(records),
            "cut_off": sum(record["finish_reason"][arm] == "length" for record in records),
        }
        for arm in sorted(arms)
    }


def generation_differences(scores: Scores) -> list[dict[str, Any]]:
    """Federated − each other arm in the mean of every metric over the same rows, whichever direction is better."""
    return [
        {"metric": metric, "a": "federated", "b": arm, **difference_of_sums(ours, theirs, np.ones(len(ours)))}
        for metric, of_arms in scores.items()
        if (ours := of_arms.get("federated")) is not None
        for arm, theirs in of_arms.items()
        if arm != "federated"
    ]
