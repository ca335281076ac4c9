"""Targets: the responses and their end tokens, by offsets, for tokenizers of several families."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

import chat_templates as known
import tiny_tokenizers as tiny
from shepherd.data.prompts import build_template
from shepherd.data.tokenize import encode, encode_prompt, pieces, tokenize
from shepherd.errors import DataError, ModelError, UsageError
from shepherd.types import Example, Message

TOKENIZERS = {
    "byte-level, trimmed offsets": lambda: tiny.chatml(trim=True),
    "byte-level, whole offsets": lambda: tiny.chatml(trim=False),
    "byte-level, tokens of code": lambda: tiny.chatml(code=True),
    "byte-level, system by default": lambda: tiny.chatml(tiny.CHATML_WITH_SYSTEM),
    "byte-level, turns left open": lambda: tiny.chatml(tiny.OPEN_ENDED),
    "llama": tiny.llama,
    "gemma": tiny.gemma,
    "unigram": tiny.unigram,
}
OWN = "Q: {instruction}\nFacts: {input}\nA: {response}"
TEMPLATES = ["chat", "alpaca", OWN]

ONE = Example("a:1", (Message("user", "How do I boil an egg?"), Message("assistant", "Put it into hot water.")))
MANY = Example(
    "a:2",
    (
        Message("system", "Be short."),
        Message("user", "Name a river."),
        Message("assistant", "The Danube, naïvely — 你好 🐑."),
        Message("user", "Name a river."),
        Message("assistant", "The\n\n  Rhine\tand   the Loire"),
    ),
    context="Rivers of Europe: a, an, assistant.",
)
CODE = Example("a:3", (Message("user", "How do I boil an egg?"), Message("assistant", "    Put it\n\n\tinto water.")))


def learned(tokenizer, example, template, max_length=10_000):
    tokens = tokenize([example], tokenizer, template, max_length).tokens[0]
    turns, before = [], False
    for token_id, target in zip(tokens.input_ids, tokens.loss_mask, strict=True):
        if target and not before:
            turns.append([])
        if target:
            turns[-1].append(int(token_id))
        before = target
    return tokens, turns


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("example", [ONE, MANY, CODE], ids=["one turn", "two turns", "indented"])
def test_the_targets_decode_to_exactly_each_response_and_its_end_token(family, template, example):
    tokenizer = TOKENIZERS[family]()
    shape = build_template(template, tokenizer)
    tokens, turns = learned(tokenizer, example, shape)
    answers = [m.content for m in example.messages if m.role == "assistant"]
    assert len(turns) == len(answers)
    for ids, answer in zip(turns, answers, strict=True):
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == shape.end
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if family.startswith("byte"):  # exact to the byte, but for a template's space before the response
            assert text in (answer + shape.end, f" {answer}{shape.end}")
        else:  # sentencepiece drops or adds a space at the edges
            assert squeezed(text) == squeezed(answer + shape.end)
    assert tokens.loss_mask[-1], "nothing is kept after the last end token"
    assert not tokens.loss_mask[0]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("example", [MANY, CODE], ids=["two turns", "indented"])
def test_generation_starts_from_the_very_tokens_before_the_first_target(family, template, example):
    tokenizer = TOKENIZERS[family]()
    shape = build_template(template, tokenizer)
    rendered = shape.render(example.messages, example.context)
    for one in (example.messages, example.messages[:-1]):
        assert shape.prompt(one, example.context) == rendered.text[: rendered.spans[-1][0]]
    tokens, _ = learned(tokenizer, example, shape)
    start = max(i for i in range(1, len(tokens.loss_mask)) if tokens.loss_mask[i] and not tokens.loss_mask[i - 1])
    prompt = tokenizer(shape.prompt(example.messages, example.context), add_special_tokens=False).input_ids
    assert prompt == tokens.input_ids[:start].tolist()


GLUED = ("Q: {instruction}\nA:{response}", "{instruction}\n\n{response}", "{instruction} :{response}")


@pytest.mark.parametrize("template", [*TEMPLATES, *GLUED])
@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("first", [")", "    a", "a"])
def test_every_answer_is_encoded_behind_the_tokens_that_it_is_generated_from(family, template, first):
    # "byte-level, tokens of code" knows ":)", "\n\n" and a line break with its indentation as one token each.
    tokenizer = TOKENIZERS[family]()
    shape = build_template(template, tokenizer)
    turns = (Message("user", "Q"), Message("assistant", first), Message("user", "R"), Message("assistant", ") a"))
    for masked in (False, True):
        shown = (turns[0], Message("assistant", first, learned=not masked), *turns[2:])
        (row,) = tokenize([Example("a:1", shown)], tokenizer, shape, 500).tokens
        begins = [i for i in range(1, len(row.input_ids)) if row.loss_mask[i] and not row.loss_mask[i - 1]]
        for begin, asked in zip(reversed(begins), (shown[:3], shown[:1]), strict=False):
            assert encode_prompt(shape, tokenizer, asked) == row.input_ids[:begin].tolist()
        assert len(begins) == 2 - masked


@pytest.mark.parametrize("made", [tiny.chatml, tiny.llama])
def test_a_control_token_that_takes_white_space_takes_none_of_an_answer(made):
    tokenizer = made(known.PHI_3)
    greedy = [AddedToken(f"<|{role}|>", special=True, rstrip=True) for role in ("user", "assistant", "end")]
    tokenizer.add_tokens(greedy, special_tokens=True)
    shape = build_template("chat", tokenizer)
    for answer in ("x", "    x", "\tx"):
        example = Example("a:1", (Message("user", "Q"), Message("assistant", answer)))
        tokens, ((*ids, end),) = learned(tokenizer, example, shape)
        assert tokenizer.decode(ids) == answer
        assert tokenizer.decode(end) == "<|end|>"
        prompt = encode_prompt(shape, tokenizer, example.messages)
        assert [*prompt, *ids, end] == tokens.input_ids.tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_start_token_occurs_once_if_the_tokenizer_adds_one_and_never_otherwise(family, template):
    tokenizer = TOKENIZERS[family]()
    tokens, _ = learned(tokenizer, ONE, build_template(template, tokenizer))
    starts = tokens.input_ids.tolist().count(tokenizer.bos_token_id)
    if family in ("llama", "gemma", "unigram"):
        assert starts == 1 and tokens.input_ids[0] == tokenizer.bos_token_id
    elif template != "chat":
        assert starts == 0


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_control_token_that_a_user_spells_out_is_encoded_as_text(family, template):
    tokenizer = TOKENIZERS[family]()
    shape = build_template(template, tokenizer)
    end = shape.end
    plain = Example("a:1", (Message("user", "What ends a turn? X"), Message("assistant", "It is X, twice: X X")))
    evil = Example("a:2", tuple(Message(m.role, m.content.replace("X", end)) for m in plain.messages), context=end * 2)
    expected, _ = learned(tokenizer, plain, shape)
    tokens, turns = learned(tokenizer, evil, shape)
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert tokens.input_ids.tolist().count(end_id) == expected.input_ids.tolist().count(end_id)
    assert len(turns) == 1 and turns[0].count(end_id) == 1
    shown = squeezed(tokenizer.decode(turns[0], clean_up_tokenization_spaces=False))
    assert shown == squeezed(f"It is {end}, twice: {end} {end}{end}")
    assert tokenize([plain, evil], tokenizer, shape, 1000).escaped == 1


@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_context_span_is_the_context_even_where_its_text_occurs_elsewhere(family):
    tokenizer = TOKENIZERS[family]()
    for template in TEMPLATES:
        for context in ("egg", "a", "<|im_end|></s> egg", MANY.context):
            rendered = build_template(template, tokenizer).render(ONE.messages, context)
            start, stop = rendered.context_span
            assert rendered.text[start:stop] == context
            assert stop <= rendered.spans[0][0]
            assert rendered.text.find("boil") < start


def test_the_system_message_reaches_the_model_where_its_template_knows_none():
    for family in TOKENIZERS:
        for template in TEMPLATES:
            text = build_template(template, TOKENIZERS[family]()).render(MANY.messages, MANY.context).text
            assert text.count("Be short.") == 1, (family, template)


def test_a_thought_with_which_a_template_opens_the_answer_is_a_target():
    # The model has to generate it, since generation starts before it. An earlier answer is rendered without the thought
    # that it would have been generated with, so it is not a target.
    tokenizer = tiny.chatml(tiny.THINKING)
    _, turns = learned(tokenizer, MANY, build_template("chat", tokenizer))
    (text,) = (tokenizer.decode(ids) for ids in turns)
    assert text == "<think>\n\n</think>\n\nThe\n\n  Rhine\tand   the Loire<|im_end|>"


def test_no_row_that_a_template_can_show_is_an_error_with_the_reason_and_another_template_for_a_hint():
    tokenizer = tiny.chatml(tiny.REWRITES)
    with pytest.raises(DataError, match="1 row: the chat template rewrites earlier turns \\(a:1\\)") as error:
        tokenize([ONE], tokenizer, build_template("chat", tokenizer), 100)
    assert "alpaca" in error.value.hint


def test_spaces_without_an_offset_are_targets_of_the_response_around_them():
    # A tokenizer that trims its offsets gives the first of two spaces the empty span behind it.
    tokenizer = tiny.chatml(trim=True)
    answer = "x  y   z"
    spans = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert any(start == end for start, end in spans)
    example = Example("a:1", (Message("user", answer), Message("assistant", answer)), context=answer)
    _, turns = learned(tokenizer, example, build_template("chat", tokenizer))
    assert [tokenizer.decode(ids) for ids in turns] == [answer + "<|im_end|>"]


def test_no_chat_template_is_a_model_error_for_chat_and_alpaca_for_auto():
    tokenizer = tiny.chatml(template=None)
    with pytest.raises(ModelError, match="has no chat template") as error:
        build_template("chat", tokenizer)
    assert 'template = "alpaca"' in error.value.hint and error.value.exit_code == 4
    assert build_template("auto", tokenizer).name == "alpaca"
    assert build_template("auto", tiny.chatml()).name == "chat"


def test_an_unknown_template_offers_the_nearest_one():
    with pytest.raises(UsageError, match="Did you mean 'alpaca'"):
        build_template("alpacca", tiny.chatml())


def test_a_tokenizer_without_an_end_token_or_without_offsets_is_a_model_error():
    tokenizer = tiny.chatml()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        build_template("alpaca", tokenizer)

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="offsets"):
        encode([build_template("alpaca", tiny.chatml()).render(ONE.messages)], Slow())


def test_a_users_template_keeps_its_braces_and_text_after_the_response_is_a_target():
    tokenizer = tiny.chatml()
    shape = build_template('{"ask": "{instruction}", "say": "{response}"}', tokenizer)
    text = shape.render(ONE.messages, "two eggs").text
    assert text == '{"ask": "How do I boil an egg?\n\ntwo eggs", "say": "Put it into hot water."}<|im_end|>'
    _, turns = learned(tokenizer, ONE, shape)
    assert tokenizer.decode(turns[0]).endswith('water."}<|im_end|>')
    with pytest.raises(UsageError, match="at most once, after it"):
        build_template("{response} answers {instruction}", tokenizer)
    with pytest.raises(UsageError, match=r"unknown placeholder \{context\}; known are \{instruction\}, \{input\}"):
        build_template("{instruction} {context}", tokenizer)


def test_alpaca_shows_the_input_section_only_with_an_input():
    shape = build_template("alpaca", tiny.chatml())
    with_input = shape.render(ONE.messages, "two eggs").text
    without = shape.render(ONE.messages).text
    ending = "### Response:\nPut it into hot water.<|im_end|>"
    assert with_input.endswith(f"### Instruction:\nHow do I boil an egg?\n\n### Input:\ntwo eggs\n\n{ending}")
    assert without.endswith(f"### Instruction:\nHow do I boil an egg?\n\n{ending}")


def test_gemma_stops_at_the_end_of_a_turn_and_an_open_template_at_the_end_token():
    assert build_template("chat", tiny.gemma()).stops == ("<end_of_turn>", "</s>")
    assert build_template("chat", tiny.chatml(tiny.OPEN_ENDED)).stops == ("<|im_end|>",)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_pieces_for_colouring_join_to_the_decoded_row(family):
    tokenizer = TOKENIZERS[family]()
    tokens, _ = learned(tokenizer, MANY, build_template("auto", tokenizer))
    shown = pieces(tokens.input_ids, tokens.loss_mask, tokenizer)
    whole = tokenizer.decode(tokens.input_ids.tolist(), clean_up_tokenization_spaces=False)
    assert "".join(text for text, _ in shown) == whole
    assert [target for _, target in shown] == tokens.loss_mask.tolist()
    assert "🐑" in [text for text, target in shown if target] or "🐑" in whole


@pytest.mark.slow
def test_the_targets_of_the_real_small_model_are_its_answers_and_im_end():
    from transformers import AutoTokenizer

    from shepherd.model.fetch import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    shape = build_template("auto", tokenizer)
    for example in (ONE, MANY):
        _, turns = learned(tokenizer, example, shape)
        answers = [m.content + shape.end for m in example.messages if m.role == "assistant"]
        assert [tokenizer.decode(ids) for ids in turns] == answers


def test_alpaca_opens_with_the_sentences_of_its_data_set():
    shape = build_template("alpaca", tiny.chatml())
    without = shape.render(ONE.messages).text
    assert without.startswith(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    )
    assert shape.render(ONE.messages, "the input").text.startswith(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    )


def test_a_chat_template_that_breaks_is_a_model_error_with_its_message():
    tokenizer = tiny.chatml()
    tokenizer.chat_template = "{{ 1 // 0 }}"
    with pytest.raises(ModelError, match="fails: ZeroDivisionError: ") as error:
        build_template("chat", tokenizer)
    assert "alpaca" in error.value.hint
