"""The built-in instructions: what the data card promises, checked on every row. Our loader is not used."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import shepherd

FOLDER = Path(shepherd.__file__).parent / "data" / "builtin"
LINES = (FOLDER / "instructions.jsonl").read_text(encoding="utf-8").split("\n")
ROWS = [json.loads(line) for line in LINES if line]
WITH_CONTEXT = {"closed_qa", "information_extraction", "summarization"}
CATEGORIES = WITH_CONTEXT | {"open_qa", "general_qa", "classification", "brainstorming", "creative_writing"}
PER_CATEGORY = 48


def of(category: str) -> list[dict[str, str]]:
    return [row for row in ROWS if row["category"] == category]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s|$)", text))


def offenders(rows: list[dict[str, str]], fine) -> list[str]:
    """The instructions of the rows that are not fine: what a failing test prints."""
    return [row["instruction"] for row in rows if not fine(row)]


def test_every_category_has_the_same_number_of_rows():
    assert Counter(row["category"] for row in ROWS) == dict.fromkeys(CATEGORIES, PER_CATEGORY)


def test_every_line_is_a_row_so_that_line_numbers_are_ids():
    assert LINES[-1] == "" and all(LINES[:-1])
    assert len(ROWS) == PER_CATEGORY * len(CATEGORIES)


def test_every_row_has_exactly_dollys_four_fields_as_trimmed_text():
    fields = ["instruction", "context", "response", "category"]
    assert not offenders(ROWS, lambda row: list(row) == fields)
    assert not offenders(ROWS, lambda row: all(isinstance(v, str) and v == v.strip() for v in row.values()))
    assert not offenders(ROWS, lambda row: row["instruction"] and row["response"])


def test_only_the_categories_about_a_passage_have_a_context():
    assert not offenders(ROWS, lambda row: bool(row["context"]) == (row["category"] in WITH_CONTEXT))


def test_the_text_is_plain_ascii():
    assert not offenders(ROWS, lambda row: re.fullmatch(r"[ -~\n]+", "".join(row.values())))


@pytest.mark.parametrize("field", ["instruction", "context", "response"])
def test_no_two_rows_share_a_text(field):
    counts = Counter(" ".join(words(row[field])) for row in ROWS if row[field])
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(("field", "limit"), [("instruction", 0.6), ("context", 0.4), ("response", 0.4)])
def test_no_two_rows_are_nearly_the_same(field, limit):
    """Jaccard overlap of the words; `What is the capital of …?` twice would be 5/7."""
    bags = [(set(words(row[field])), row[field]) for row in ROWS if row[field]]
    near = [(a, b) for (x, a), (y, b) in combinations(bags, 2) if len(x & y) > limit * len(x | y)]
    assert near == []


def test_rows_are_short():
    assert not offenders(ROWS, lambda row: len(row["instruction"].split()) <= 25)
    assert not offenders(ROWS, lambda row: 8 <= len(row["response"].split()) <= 45)
    assert not offenders([r for r in ROWS if r["context"]], lambda row: 25 <= len(row["context"].split()) <= 60)


def test_responses_start_without_a_preamble():
    preamble = re.compile(r"(sure|certainly|of course|here (is|are)|great question|as an? )\b", re.IGNORECASE)
    assert not offenders(ROWS, lambda row: not preamble.match(row["response"]))


@pytest.mark.parametrize(("category", "allowed"), [("open_qa", (1, 2)), ("general_qa", (2,))])
def test_open_answers_have_one_or_two_sentences_and_advice_has_two(category, allowed):
    assert not offenders(
        of(category), lambda row: sentences(row["response"]) in allowed and "\n" not in row["response"]
    )


def test_classification_labels_items_of_the_instruction_one_per_line():
    def fine(row):
        pairs = [re.fullmatch(r"(.+): ([A-Z][\w -]*)", line) for line in row["response"].split("\n")]
        if len(pairs) != 4 or not all(pairs):
            return False
        # Items stand in the order of the instruction; two labels at least, or there is nothing to tell apart.
        asked = row["instruction"].lower()
        places = [asked.rfind(pair[1].lower()) for pair in pairs]
        return places[0] >= 0 and places == sorted(set(places)) and len({pair[2] for pair in pairs}) > 1

    assert not offenders(of("classification"), fine)


def test_brainstorming_is_four_bullets():
    def fine(row):
        bullets = row["response"].split("\n")
        return len(bullets) == 4 and all(re.fullmatch(r"- [A-Z].+\.", bullet) for bullet in bullets)

    assert not offenders(of("brainstorming"), fine)


def test_extracted_values_are_word_for_word_in_the_context():
    def fine(row):
        pairs = [re.fullmatch(r"([A-Z][\w ]*): (.+)", line) for line in row["response"].split("\n")]
        return len(pairs) >= 3 and all(pair and pair[2] in row["context"] for pair in pairs)

    assert not offenders(of("information_extraction"), fine)


def test_closed_answers_are_one_sentence_made_of_the_words_of_context_and_question():
    def fine(row):
        known = set(words(row["context"] + " " + row["instruction"]))
        long = [word for word in words(row["response"]) if len(word) > 3]
        numbers = set(re.findall(r"\d+", row["response"])) <= set(re.findall(r"\d+", row["context"]))
        return sentences(row["response"]) == 1 and numbers and sum(w in known for w in long) >= 0.7 * len(long)

    assert not offenders(of("closed_qa"), fine)


def test_a_summary_is_one_sentence_and_shorter_than_half_the_context():
    def fine(row):
        length = len(row["response"].split())
        numbers = set(re.findall(r"\d+", row["response"])) <= set(re.findall(r"\d+", row["context"]))
        half = length <= len(row["context"].split()) / 2
        return sentences(row["response"]) == 1 and "\n" not in row["response"] and length <= 25 and half and numbers

    assert not offenders(of("summarization"), fine)


def test_creative_writing_is_a_short_poem_or_a_story_of_two_sentences():
    def fine(row):
        lines = row["response"].count("\n") + 1
        return lines in (2, 4) or (lines == 1 and sentences(row["response"]) == 2)

    assert not offenders(of("creative_writing"), fine)


def test_the_data_card_states_the_numbers_and_the_licence_of_the_file():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(ROWS)} short instructions" in card and "Apache-2.0" in card
    for category in CATEGORIES:
        assert f"| `{category}` | {PER_CATEGORY} |" in card
