"""Question sets: files of questions, FastChat's two benches by name, datasets of the hub.

    questions = load_questions("mt-bench")          # from the cache, or an error that names the file
    questions.questions[0].turns                    # ("Compose an engaging travel blog …", "Rewrite your …")

A file holds rows (`question_rows`), as JSON lines, JSON, CSV or Parquet, or plain texts: a JSON list of texts, or .txt
with a question on each line. Plain texts get an id from their content; a row without an id is refused, since answers
and judgements are matched by it. Columns that are not used are counted, and keys beside the rows are noted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shepherd.data.files import TEXTS, find, read, stem_of, suffix_of
from shepherd.data.hub import hub
from shepherd.data.trees import Numbered
from shepherd.data.values import Refusal, text, visible
from shepherd.errors import DataError, UsageError, did_you_mean, plural
from shepherd.evaluation.answer_files import digest_of, hash_of
from shepherd.evaluation.question_rows import IDS, Question, absent, question_of
from shepherd.model.digest import cache_root

NAMED = 5
"""Most rows that an error names."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions with distinct ids. name: of the folder of their answers. source: a path, a name or `hub:…`. unused:
    columns of its rows that decide nothing, with the number of rows that have them. notes: what else is not read."""

    name: str
    source: str
    questions: tuple[Question, ...]
    licence: str = "not stated"
    unused: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 (hex) over ids and texts, in any order."""
        return digest(self.questions)


@dataclass(frozen=True)
class Bench:
    """A published question set, recognised by its digest wherever it lies. hub: a dataset that holds it."""

    title: str
    place: str
    licence: str
    digest: str
    hub: str = ""


BENCHES: Mapping[str, Bench] = {
    "vicuna": Bench("Vicuna's 80 questions", "fastchat/llm_judge/data/vicuna_bench/question.jsonl",
                    "Apache-2.0 (FastChat)", "296c7afc26022e68ad6c583f87fc52ba5212f8faa9d7e5323f39f65381b62f4b"),
    "mt-bench": Bench("MT-bench's 80 questions of two turns", "fastchat/llm_judge/data/mt_bench/question.jsonl",
                      "Apache-2.0 (FastChat)", "ded97625e121606774827dda07b242adc8c3de34c2cbef9fd1842ccd1776865d",
                      "lighteval/mt-bench"),
}  # fmt: skip
"""Question sets that have a name. They are not part of the package."""


def digest(questions: Sequence[Question]) -> str:
    """sha256 (hex) over ids and texts, in any order."""
    return digest_of((str(question.id), question.hash) for question in questions)


def load_questions(source: str) -> QuestionSet:
    """The questions of a file, of a bench in the cache, or of `hub:ORG/NAME[@SPLIT]`, which permits the network.

    Raises DataError for a missing file, with the place where it is looked for, and for rows that hold no question;
    UsageError for an unknown name.
    """
    if source.startswith("hub:"):
        rows = hub(source.removeprefix("hub:"), note_splits=False)
        numbered = [(number, row) for number, (_, row) in enumerate(rows.rows, 1)]
        named = _named(source, source.rpartition("/")[2], *_questions(source, numbered), licence=rows.licence)
        return replace(named, notes=rows.notes)
    if source in BENCHES and not Path(source).exists():
        return _from_cache(source)
    if not Path(source).expanduser().exists() and re.fullmatch(r"[\w-]+", source):
        raise UsageError(
            f"unknown question set: {source!r}.{did_you_mean(source, (*BENCHES, 'held-out'))}",
            hint=f"a file of questions, held-out, hub:ORG/NAME, or {' or '.join(BENCHES)}",
        )
    return read_questions(find(source))


def read_questions(path: Path) -> QuestionSet:
    """The questions of a file. Raises DataError, which names the rows at fault."""
    texts = _texts(path)
    rows, notes = _rows(path) if texts is None else ([], ())
    questions, unused = _questions(str(path), rows) if texts is None else (_plain(path, texts), {})
    if not questions:
        raise DataError(f"{path} has no questions", hint="a row has question_id and turns, or text")
    stem = stem_of(path)
    stem = path.resolve().parent.name if stem in ("question", "questions") else stem
    return replace(_named(str(path), stem, questions, unused), notes=notes)


def _from_cache(name: str) -> QuestionSet:
    bench = BENCHES[name]
    place = cache_root() / "questions" / f"{name}.jsonl"
    if not place.is_file():
        fetch = f", or --questions hub:{bench.hub} to download them" if bench.hub else ""
        raise DataError(
            f"{bench.title} are not on this machine, and nothing is downloaded unasked: no file {place}",
            hint=f"put FastChat's {bench.place} there, or give its path{fetch}",
        )
    found = read_questions(place)
    if found.name != name:
        raise DataError(f"{place} does not hold {bench.title}", hint=f"replace it by FastChat's {bench.place}")
    return found


def _named(
    source: str, stem: str, questions: tuple[Question, ...], unused: Mapping[str, int], licence: str = ""
) -> QuestionSet:
    """With the name and licence of the bench that these are, or a name that no other questions have."""
    found = digest(questions)
    bench = next((name for name, bench in BENCHES.items() if bench.digest == found), None)
    if bench is not None:
        return QuestionSet(bench, source, questions, BENCHES[bench].licence, unused)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:40] or "questions"
    return QuestionSet(f"{plain}-{found[:8]}", source, questions, licence or "not stated", unused)


def _rows(path: Path) -> tuple[list[Numbered], tuple[str, ...]]:
    """The rows of a file, and notes on what else it holds. Raises DataError for several named lists of rows."""
    tree = read(path)
    notes = tree.unread
    while tree.branches:
        if len(tree.branches) > 1:
            names = [branch.place.removeprefix(f"{path}: ") or name for name, branch in tree.branches.items()]
            raise DataError(
                f"{path} holds {len(names)} lists of rows: {_few(names)}",
                hint="questions are one list: keep one, or write each to a file",
            )
        (tree,) = tree.branches.values()
        notes += tree.unread
    return tree.rows, notes


def _texts(path: Path) -> list[tuple[int, str]] | None:
    """The texts of a file that has no rows but plain texts, with their numbers; None for other files."""
    if suffix_of(path) == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text in UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
        return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if suffix_of(path) not in TEXTS or not path.is_file():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return list(enumerate(rows, 1)) if isinstance(rows, list) and all(isinstance(row, str) for row in rows) else None


def _plain(path: Path, texts: Sequence[tuple[int, str]]) -> tuple[Question, ...]:
    if empty := [f"{path}:{number}" for number, content in texts if not visible(content)]:
        raise DataError(f"questions without text: {_few(empty)}", hint="remove them")
    for number, content in texts:
        try:
            text(content, "the question")
        except Refusal as reason:
            raise DataError(f"{path}:{number}: {reason}", hint="mend the text, or remove it") from None
    return tuple({(hashed := hash_of([content])): Question(hashed, (content,)) for _, content in texts}.values())


def _questions(
    source: str, rows: Sequence[tuple[int, Mapping[str, Any]]]
) -> tuple[tuple[Question, ...], Mapping[str, int]]:
    """The questions, and how many rows have which unused column."""
    nameless = [str(number) for number, row in rows if all(absent(row.get(key)) for key in IDS)]
    if nameless:
        raise DataError(
            f"{source}: {plural(len(nameless), 'question')} without an id: row {_few(nameless)}",
            hint=f"add question_id, a number or a name: answers and judgements are matched by it ({', '.join(IDS)})",
        )
    found: dict[str, tuple[int, Question]] = {}  # answers are matched by the words of an id: 1 and "1" are one
    unused: Counter[str] = Counter()
    for number, row in rows:
        question, beside = question_of(f"{source}:{number}", row)
        unused.update(beside)
        first, before = found.setdefault(str(question.id), (number, question))
        differ = (
            "texts" if before.hash != question.hash
            else "references" if before.reference != question.reference
            else "categories" if before.category != question.category
            else ""
        )  # fmt: skip
        if differ:
            raise DataError(
                f"{source}: rows {first} and {number} have the id {question.id!r} and different {differ}",
                hint="give each question its own id",
            )
    return tuple(question for _, question in found.values()), dict(unused)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
