"""What other files add to recordings: categories of questions, names of models and lengths of answers.

read_categories(Path("question.jsonl"))        # {1: "generic", …}
Answered.read([Path("answer_bard.jsonl")])     # model and length by answer_id, as FastChat's files have them
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.data.json_rows import read_json
from shepherd.errors import DataError
from shepherd.evaluation.judge.replay import Recording, content


@dataclass(frozen=True)
class Answered:
    """models and characters of answers by their answer_id; arms: name -> answers."""

    models: Mapping[str, str]
    characters: Mapping[str, int]

    @classmethod
    def read(cls, files: Sequence[Path]) -> Answered:
        """From files with lines {answer_id, model_id, text}. DataError: a line without them."""
        models, characters = {}, {}
        for file in files:
            for where, row in _rows(file, "answers"):
                identity, model, text = (row.get(name) for name in ("answer_id", "model_id", "text"))
                if not all(isinstance(each, str) for each in (identity, model, text)):
                    raise DataError(
                        f"{where}: an answer without answer_id, model_id or text",
                        hint="recordings name their answers by answer_id, as FastChat's files do",
                    )
                models[str(identity)], characters[str(identity)] = str(model), len(str(text))
        return cls(models, characters)

    def added_to(self, recording: Recording) -> Recording:
        """The recording with the names of the models and the lengths of the answers that are known."""
        judgements, names = [], (Counter[str](), Counter[str]())
        for one in recording.judgements:
            ids = one.answers or ("", "")
            for side in (0, 1):
                if ids[side] in self.models:
                    names[side][self.models[ids[side]]] += 1
            lengths = [self.characters[each] for each in ids if each in self.characters]
            known = (lengths[0], lengths[1]) if len(lengths) == 2 else one.lengths
            judgements.append(dataclasses.replace(one, lengths=known))
        a, b = (
            next(iter(each)) if len(each) == 1 and each.total() == len(judgements) else name
            for each, name in zip(names, (recording.a, recording.b), strict=True)
        )
        return dataclasses.replace(recording, a=a, b=b, judgements=tuple(judgements))


def read_categories(file: Path) -> dict[str, str]:
    """Question -> category, of a file of questions with question_id and category. DataError: it has none of them."""
    found = {
        str(row["question_id"]): str(row["category"])
        for _, row in _rows(file, "questions")
        if row.get("question_id") is not None and row.get("category")
    }
    if not found:
        raise DataError(f"{file}: no question has question_id and category", hint="give the file of the question set")
    return found


def with_categories(recording: Recording, categories: Mapping[str, str]) -> Recording:
    """The recording with the categories of its questions, where they are known."""
    judgements = (
        dataclasses.replace(one, category=categories.get(str(one.question), one.category))
        for one in recording.judgements
    )
    return dataclasses.replace(recording, judgements=tuple(judgements))


def _rows(file: Path, what: str) -> list[tuple[str, Mapping[str, Any]]]:
    rows = read_json(file, content(file, f"give a file of {what}")).rows
    return [(f"{file}:{number}", row) for number, row in rows]
