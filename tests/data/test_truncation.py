"""What is cut when a row is too long, in which order, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_tokenizers as tiny
from shepherd.data.prompts import build_template
from shepherd.data.tokenize import tokenize
from shepherd.errors import DataError
from shepherd.types import Example, Message

TOKENIZER = tiny.chatml()
CHAT = build_template("chat", TOKENIZER)
END = TOKENIZER.eos_token_id


def example(instruction, response, context="", row_id="a:1"):
    return Example(row_id, (Message("user", instruction), Message("assistant", response)), context=context)


def decoded(ids):
    return TOKENIZER.decode(list(ids))


def test_the_end_of_the_context_is_cut_first_and_the_rest_is_kept():
    row = example("Name three rivers", "the Danube", context="first second third " * 20)
    full = tokenize([row], TOKENIZER, CHAT, 1000).tokens[0]
    done = tokenize([row], TOKENIZER, CHAT, len(full.input_ids) - 7)
    tokens = done.tokens[0]
    assert len(tokens.input_ids) == len(full.input_ids) - 7 and tokens.cut == 7
    text = decoded(tokens.input_ids)
    assert text.startswith("<|im_start|>user\nName three rivers\n\nfirst second third")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\nthe Danube<|im_end|>")
    assert (done.cut_rows, done.cut_tokens) == (1, 7)
    assert (done.cut_contexts, done.cut_prompts, done.cut_responses) == (1, 0, 0)
    assert done.lengths.tolist() == [len(full.input_ids)] and done.lengths.dtype == np.int32


def test_then_the_start_of_the_prompt_is_cut_and_the_response_is_kept():
    row = example("write a short poem " * 30 + "about sheep", "the sheep are asleep", context="first second")
    response = len(TOKENIZER("the sheep are asleep").input_ids) + 1
    done = tokenize([row], TOKENIZER, CHAT, response + 12)
    tokens = done.tokens[0]
    assert len(tokens.input_ids) == response + 12
    assert tokens.loss_mask.tolist() == [False] * 12 + [True] * response
    assert "first second" not in decoded(tokens.input_ids)
    assert decoded(tokens.input_ids).endswith("<|im_end|>\n<|im_start|>assistant\nthe sheep are asleep<|im_end|>")
    assert (done.cut_contexts, done.cut_prompts, done.cut_responses) == (1, 1, 0)


def test_only_a_response_that_is_too_long_by_itself_loses_its_end_and_is_counted_separately():
    row = example("write a poem", "the sheep are asleep " * 30)
    done = tokenize([row, example("hi", "yes", row_id="a:2")], TOKENIZER, CHAT, 40)
    tokens = done.tokens[0]
    assert len(tokens.input_ids) == 40
    assert tokens.loss_mask.tolist() == [False] * 10 + [True] * 30  # a quarter for the question
    assert tokens.input_ids[-1] != END
    assert (done.cut_rows, done.cut_responses) == (1, 1)


def test_older_turns_go_before_newer_ones_and_an_answer_without_its_beginning_is_not_learned():
    turns = []
    for name in ("first", "second", "third"):
        turns += [Message("user", f"{name} question"), Message("assistant", f"{name} answer " * 6)]
    row = Example("a:1", tuple(turns))
    full = tokenize([row], TOKENIZER, CHAT, 1000).tokens[0]
    lost = set()
    for max_length in range(len(full.input_ids), 10, -1):
        tokens = tokenize([row], TOKENIZER, CHAT, max_length).tokens[0]
        learned = decoded(tokens.input_ids[tokens.loss_mask])
        ends = learned.count("<|im_end|>")
        lost.add(3 - ends)
        if ends:  # whole answers only, the last ones
            whole = [f"{name} answer " * 6 for name in ("first", "second", "third")][3 - ends :]
            assert learned == "".join(w + "<|im_end|>" for w in whole)
            assert ends == 1 or not tokens.loss_mask[:2].any(), "an answer to nothing but a start token"
    assert lost == {0, 1, 2, 3}


def test_a_start_token_survives_the_cut():
    tokenizer = tiny.llama()
    row = example("Name three rivers of Europe " * 20, "the Danube")
    tokens = tokenize([row], tokenizer, build_template("chat", tokenizer), 30).tokens[0]
    assert len(tokens.input_ids) == 30 and tokens.input_ids[0] == tokenizer.bos_token_id


def test_an_earlier_answer_that_only_a_start_token_is_left_before_is_not_learned():
    tokenizer = tiny.llama()
    shape = build_template("chat", tokenizer)
    turns = [Message("user", "first"), Message("assistant", "second"), Message("user", "x"), Message("assistant", "y")]
    full = tokenize([Example("a:1", tuple(turns))], tokenizer, shape, 1000).tokens[0]
    begin = int(np.flatnonzero(full.loss_mask)[0])
    for kept, learned in ((1, False), (2, True)):  # tokens before the first answer
        tokens = tokenize([Example("a:1", tuple(turns))], tokenizer, shape, len(full.input_ids) - begin + kept).tokens[
            0
        ]
        assert tokens.input_ids[0] == tokenizer.bos_token_id and tokens.input_ids[kept] == full.input_ids[begin]
        assert tokens.loss_mask[kept] == learned and tokens.loss_mask[-1]


@settings(max_examples=60, deadline=None)
@given(
    asked=st.integers(1, 40),
    context=st.integers(0, 40),
    answered=st.integers(1, 40),
    turns=st.integers(1, 3),
    max_length=st.integers(2, 120),
)
def test_no_row_is_longer_than_max_length_and_no_response_that_fits_is_cut(asked, context, answered, turns, max_length):
    messages = (Message("user", "first " * asked), Message("assistant", "second " * answered)) * turns
    row = Example("a:1", messages, context="third " * context)
    full = tokenize([row], TOKENIZER, CHAT, 10_000).tokens[0]
    done = tokenize([row], TOKENIZER, CHAT, max_length)
    tokens = done.tokens[0]
    assert len(tokens.input_ids) == len(tokens.loss_mask) == min(max_length, len(full.input_ids))
    assert tokens.cut == len(full.input_ids) - len(tokens.input_ids) == done.cut_tokens
    assert tokens.targets > 0
    response = full.targets // turns
    fits = response < max_length
    assert (tokens.input_ids[-1] == END) == fits
    assert done.cut_responses == (not fits)
    if fits:
        assert tokens.loss_mask[-response:].all()
    if context and len(full.input_ids) > max_length and done.cut_prompts:
        assert "third" not in decoded(tokens.input_ids)


def test_rows_without_a_target_are_refused_with_the_reason_and_all_of_them_is_an_error_with_the_median():
    rows = [example("Name a river", "the Danube", row_id=f"a:{i}") for i in range(5)]
    with pytest.raises(DataError) as error:
        tokenize(rows, TOKENIZER, CHAT, 1)
    length = len(tokenize(rows, TOKENIZER, CHAT, 1000).tokens[0].input_ids)
    assert "5 rows: no target left at max_length = 1 (a:0, a:1, a:2, …)" in error.value.message
    assert f"max_length is 1, the median row has {length} tokens" in error.value.message
    assert "max_length" in error.value.hint and error.value.exit_code == 3


def test_a_row_that_the_chat_template_refuses_is_counted_and_the_others_go_on():
    tokenizer = tiny.gemma()
    twice = Example("a:2", (Message("user", "one"), Message("user", "two"), Message("assistant", "three")))
    done = tokenize([example("hi", "yes"), twice], tokenizer, build_template("chat", tokenizer), 100)
    assert [t.id for t in done.tokens] == ["a:1"]
    assert done.refused == {"the chat template refuses it: roles must alternate": ("a:2",)}


def test_tokens_carry_the_category_and_the_source_and_are_in_the_order_of_the_examples():
    rows = [Example(f"a:{i}", example("hi", "yes").messages, category=f"c{i}", source=f"s{i}") for i in range(700)]
    done = tokenize(rows, TOKENIZER, CHAT, 100)
    assert [(t.id, t.category, t.source) for t in done.tokens] == [(e.id, e.category, e.source) for e in rows]
    assert done.by_id["a:600"].input_ids.dtype == np.int32 and done.by_id["a:600"].loss_mask.dtype == bool
