"""A chat template is proven: every text stands where it should, and what is learned is the answer, or the row goes."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chat_templates as known
import tiny_tokenizers as tiny
from shepherd.data.outline import NO_REASONING
from shepherd.data.prompts import build_template
from shepherd.data.tokenize import encode_prompt, tokenize
from shepherd.data.values import Refusal
from shepherd.errors import DataError, ModelError
from shepherd.types import Example, Message

CALL = json.dumps({"tool_calls": [{"type": "function", "function": {
    "name": "weather", "arguments": '{"city": "Par\\"is\\n", "days": 3}'}}]})  # fmt: skip
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "Of a place.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}])  # fmt: skip
LATER = "an earlier answer is not a target: the chat template "


def system(text):
    return Message("system", text)


def user(text):
    return Message("user", text)


def answer(text, **more):
    return Message("assistant", text, **more)


def tool(text):
    return Message("tool", text)


CONVERSATIONS = {
    "one": ([user("Q"), answer("A")], ""),
    "system": ([system("S"), user("Q"), answer("A"), user("R"), answer("B")], ""),
    "later system": ([user("Q"), answer("A"), system("S"), user("R"), answer("B")], ""),
    "thought": ([user("Q"), answer("<think>\nT\n</think>\n\nA")], ""),
    "reasoning": ([user("Q"), answer("A", reasoning="T"), user("R"), answer("B", reasoning="U")], ""),
    "tools": ([user("Q"), answer("", extra=CALL), tool('{"t": 3}\n"warm"'), answer("B")], TOOLS),
    "code": ([user("Q"), answer("    return x")], ""),
}


def marked(template, conversation):
    """The rendered text with ⟦⟧ around what is learned, or why the row is refused."""
    messages, tools = CONVERSATIONS[conversation]
    try:
        rendered = template.render(messages, "", tools)
    except Refusal as reason:
        return str(reason).removeprefix("the chat template ")
    text = rendered.text
    for start, stop in reversed(rendered.spans):
        text = f"{text[:start]}⟦{text[start:stop]}⟧{text[stop:]}"
    assert template.prompt(messages, "", tools) == rendered.text[: rendered.spans[-1][0]]
    return text


NO_CALL = "omits a tool call"
SHOWN = {  # what each family makes of the conversations: the learned parts in order, or the reason of a refusal
    "chatml": {
        "one": ["A<|im_end|>"], "system": ["A<|im_end|>", "B<|im_end|>"],
        "later system": ["A<|im_end|>", "B<|im_end|>"],
        "thought": ["<think>\nT\n</think>\n\nA<|im_end|>"], "reasoning": NO_REASONING, "tools": NO_CALL,
        "code": ["    return x<|im_end|>"],
    },
    "llama 3": {
        "one": ["A<|eot_id|>"], "system": ["A<|eot_id|>", "B<|eot_id|>"],
        "later system": ["A<|eot_id|>", "B<|eot_id|>"],
        "thought": ["<think>\nT\n</think>\n\nA<|eot_id|>"], "reasoning": NO_REASONING, "tools": NO_CALL,
        "code": ["return x<|eot_id|>"],
    },
    "mistral 0.1": {
        "one": [" A</s>"], "system": [" A</s>", " B</s>"],
        "later system": "refuses it: roles must alternate user/assistant/...",
        "thought": [" <think>\nT\n</think>\n\nA</s>"], "reasoning": NO_REASONING,
        "tools": "refuses it: roles must alternate user/assistant/...", "code": ["     return x</s>"],
    },
    "mistral 0.3": {
        "one": [" A</s>"], "system": [" A</s>", " B</s>"], "later system": [" A</s>", " B</s>"],
        "thought": [" <think>\nT\n</think>\n\nA</s>"], "reasoning": NO_REASONING, "tools": NO_CALL,
        "code": [" return x</s>"],
    },
    "gemma": {
        "one": ["A<|im_end|>"], "system": ["A<|im_end|>", "B<|im_end|>"],
        "later system": ["A<|im_end|>", "B<|im_end|>"],
        "thought": ["<think>\nT\n</think>\n\nA<|im_end|>"], "reasoning": NO_REASONING,
        "tools": "refuses it: roles must alternate", "code": ["return x<|im_end|>"],
    },
    "qwen 3": {
        "one": ["<think>\n\n</think>\n\nA<|im_end|>"], "system": ["<think>\n\n</think>\n\nB<|im_end|>"],
        "later system": ["<think>\n\n</think>\n\nB<|im_end|>"], "thought": ["<think>\nT\n</think>\n\nA<|im_end|>"],
        "reasoning": ["<think>\nU\n</think>\n\nB<|im_end|>"], "tools": ["<think>\n\n</think>\n\nB<|im_end|>"],
        "code": ["<think>\n\n</think>\n\n    return x<|im_end|>"],
    },
    "qwen 3 thinking": {
        "one": ["\n</think>\n\nA<|im_end|>"], "system": ["\n</think>\n\nB<|im_end|>"],
        "later system": ["\n</think>\n\nB<|im_end|>"], "thought": ["T\n</think>\n\nA<|im_end|>"],
        "reasoning": ["U\n</think>\n\nB<|im_end|>"], "tools": ["\n</think>\n\nB<|im_end|>"],
        "code": ["\n</think>\n\n    return x<|im_end|>"],
    },
    "deepseek r1": {
        "one": "begins a generated answer with '<think>\\n', and renders given answers differently",
        "thought": "removes <think>…</think> from the answer", "reasoning": NO_REASONING, "tools": NO_CALL,
    },
    "deepseek r1, first": {
        "one": ["A</s>"], "system": ["A</s>", "B</s>"], "thought": "removes <think>…</think> from the answer",
        "reasoning": NO_REASONING, "code": ["    return x</s>"],
    },
    "phi 3": {
        "one": ["A<|end|>"], "system": ["A<|end|>", "B<|end|>"], "later system": ["A<|end|>", "B<|end|>"],
        "thought": ["<think>\nT\n</think>\n\nA<|end|>"], "reasoning": NO_REASONING, "tools": NO_CALL,
        "code": ["    return x<|end|>"],
    },
    "gpt-oss": {
        "one": ["<|channel|>final<|message|>A<|return|>"], "system": ["<|channel|>final<|message|>B<|return|>"],
        "later system": "omits a later system turn",
        "reasoning": [
            "<|channel|>analysis<|message|>U<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>"
        ],
        "tools": [
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Par\\"is\\n", "days": 3}<|call|>',
            "<|channel|>final<|message|>B<|return|>",
        ],
        "code": ["<|channel|>final<|message|>    return x<|return|>"],
    },
    "open-ended": {
        "one": [" A</s>"], "system": [" A</s>", " B</s>"], "later system": [" A</s>", " B</s>"],
        "reasoning": NO_REASONING, "tools": NO_CALL, "code": ["     return x</s>"],
    },
    "chatml without a generation prompt": {
        "one": ["A<|im_end|>"], "system": ["A<|im_end|>", "B<|im_end|>"],
        "later system": ["A<|im_end|>", "B<|im_end|>"],
        "thought": ["<think>\nT\n</think>\n\nA<|im_end|>"], "reasoning": NO_REASONING, "tools": NO_CALL,
        "code": ["    return x<|im_end|>"],
    },
}  # fmt: skip


@pytest.mark.parametrize("family", SHOWN)
def test_with_each_family_of_templates_answers_are_targets_or_the_row_is_refused_with_the_reason(family):
    template = build_template("chat", known.family(family))
    for conversation, expected in SHOWN[family].items():
        found = marked(template, conversation)
        if isinstance(expected, list):
            found = [part.partition("⟧")[0] for part in found.split("⟦")[1:]]
        assert found == expected, conversation


def test_alterations_of_a_row_by_its_template_are_reported():
    def changed(family, conversation):
        messages, tools = CONVERSATIONS[conversation]
        return build_template("chat", known.family(family)).render(messages, "", tools).changed

    assert changed("chatml", "system") == changed("qwen 3", "one") == changed("phi 3", "code") == ()
    assert changed("llama 3", "code") == ("the chat template changes white space of the answer",)
    joined = ("the chat template has no fixed place for a system turn: its text begins the next user turn",)
    assert changed("gemma", "system") == changed("mistral 0.3", "system") == joined
    assert changed("qwen 3", "reasoning") == (f"{LATER}{NO_REASONING}",)
    assert changed("qwen 3", "system") == (f"{LATER}renders an answer differently once the conversation continues",)
    assert changed("gpt-oss", "system") == (f"{LATER}renders an answer differently once the conversation continues",)
    template = build_template("chat", known.family("qwen 3"))
    thoughts = [user("Q"), answer("<think>\nT\n</think>\n\nA"), user("R"), answer("<think>T</think>B")]
    assert template.render(thoughts).changed == (
        f"{LATER}removes <think>…</think> from the answer",
        "the chat template changes white space of the answer",  # it writes \n around the thought
    )


def test_one_unfit_row_is_one_refusal_and_only_when_no_row_fits_is_it_an_error():
    tokenizer = known.family("gpt-oss")
    template = build_template("chat", tokenizer)
    later = Example("a:2", tuple(CONVERSATIONS["later system"][0]))
    done = tokenize([Example("a:1", (user("Q"), answer("A"))), later], tokenizer, template, 500)
    assert [row.id for row in done.tokens] == ["a:1"]
    assert done.refused == {"the chat template omits a later system turn": ("a:2",)}
    with pytest.raises(DataError, match="1 row: the chat template omits a later system turn") as error:
        tokenize([later], tokenizer, template, 500)
    assert "data.template is chat, alpaca, or a text that contains" in error.value.hint


def test_a_conversation_that_a_template_begins_otherwise_as_it_grows_is_refused():
    template = build_template("chat", tiny.chatml(tiny.REWRITES))
    with pytest.raises(Refusal, match="rewrites earlier turns"):
        template.render([user("Q"), answer("A")])


def test_rows_that_were_changed_are_counted():
    tokenizer = known.family("llama 3")
    rows = [Example(f"a:{i}", (user("Q"), answer(text))) for i, text in enumerate(["x", "  x", "y", "\ty", "\nz"])]
    # A line break before an answer is trimmed, and stands all the same: at the end of the prompt.
    done = tokenize(rows, tokenizer, build_template("chat", tokenizer), 500)
    assert done.changed == {"the chat template changes white space of the answer": ("a:1", "a:3", "a:4")}


@pytest.mark.parametrize(
    "does",
    ["m['content'] | upper", "m['content'].split(':')[0]", "m['content'] | replace('b', '')", "m['content'][:3]"],
)
def test_a_text_that_a_template_changes_refuses_its_row_and_no_other(does):
    source = tiny.CHATML.replace("m['content']", f"({does} if m['role'] == 'user' else m['content'])")
    template = build_template("chat", tiny.chatml(source))
    with pytest.raises(Refusal, match="changes the text of a user turn"):
        template.render([user("ab:cd"), answer("no")])
    assert template.render([user("1"), answer("yes")]).spans


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("m['role'] != 'system' or loop.first", "omits a later system turn"),
        ("loop.index0 != 3", "omits a user turn"),
        ("loop.index0 != 4", "omits an answer"),
    ],
)
def test_an_omitted_turn_refuses_the_row_even_if_its_letters_occur_elsewhere(shown, reason):
    source = tiny.CHATML.replace("{{ '<|im_start|>' + m", "{% if " + shown + " %}{{ '<|im_start|>' + m")
    template = build_template("chat", tiny.chatml(source.replace("{% endfor %}", "{% endif %}{% endfor %}")))
    # Every one of these letters stands in "user", "assistant" or "system" too.
    with pytest.raises(Refusal, match=reason):
        template.render([user("u"), answer("a"), system("s"), user("e"), answer("t")])


@pytest.mark.parametrize(
    ("source", "messages", "reason"),
    [
        (  # later system turns are collected at the beginning, as in DeepSeek's templates: no answer changes by it
            "{% for m in messages %}{% if m.role == 'system' %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}"
            + tiny.CHATML.replace("messages", "messages | rejectattr('role', 'equalto', 'system')"),
            [user("Q"), answer("A"), system("S"), user("R"), answer("B")],
            "rewrites earlier turns: it changes their order",
        ),
        (
            tiny.CHATML + "{{ 'more' if messages[0].content | length > 3 }}",
            [user("long"), answer("A")],
            "changes the text of an answer",
        ),
        (
            tiny.CHATML + "{{ '!' if add_generation_prompt and messages[0].content | length > 3 }}",
            [user("long"), answer("A")],
            "rewrites earlier turns",
        ),
        (
            tiny.CHATML.replace("in messages", "in (messages[:-1] if add_generation_prompt else messages)"),
            [user("P"), user("Q"), answer("A")],
            "rewrites earlier turns",
        ),
    ],
    ids=["order", "end", "prompt of this row", "prompt"],
)
def test_a_prompt_or_an_order_that_is_not_that_of_the_row_refuses_it(source, messages, reason):
    with pytest.raises(Refusal, match=reason):
        build_template("chat", tiny.chatml(source)).render(messages)


def test_a_part_that_is_removed_from_a_masked_answer_is_counted_too():
    messages = [user("Q"), answer("<think>T</think>A", learned=False), user("R"), answer("B")]
    rendered = build_template("chat", known.family("deepseek r1, first")).render(messages)
    assert rendered.changed == (
        "a masked answer is rendered differently: the chat template removes <think>…</think> from the answer",
    )
    assert build_template("chat", known.family("chatml")).render(messages).changed == ()


def test_an_answer_that_a_template_shows_twice_refuses_the_row():
    twice = tiny.CHATML.replace("m['content']", "m['content'] + (m['content'] if m['role'] == 'assistant' else '')")
    with pytest.raises(Refusal, match="renders the text of an answer twice"):
        build_template("chat", tiny.chatml(twice)).render([user("Q"), answer("A")])


def test_an_answer_of_nothing_but_a_word_that_the_template_looks_for_is_learned():
    rendered = build_template("chat", known.family("qwen 3")).render([user("</think>"), answer("<tool_response>")])
    assert [rendered.text[a:b] for a, b in rendered.spans] == ["<think>\n\n</think>\n\n<tool_response><|im_end|>"]


def test_a_moved_later_turn_or_an_omitted_tool_refuses_the_row():
    moves = "{% for m in messages | sort(attribute='role') %}" + tiny.CHATML.split("{% for m in messages %}")[1]
    with pytest.raises(Refusal, match="rewrites earlier turns"):
        build_template("chat", tiny.chatml(moves)).render([user("Q"), answer("A"), user("R"), answer("B")])
    without_arguments = known.QWEN_3.replace("c.arguments | tojson", "''")
    messages, tools = CONVERSATIONS["tools"]
    with pytest.raises(Refusal, match="omits a tool call"):
        build_template("chat", known.tokenizer(without_arguments)).render(messages, "", tools)
    with pytest.raises(Refusal, match="omits the tools"):
        build_template("chat", tiny.chatml()).render([user("Q"), answer("A")], "", TOOLS)
    names_alone = known.QWEN_3.replace("t | tojson", "t.function.name")
    with pytest.raises(Refusal, match="omits a part of the tools"):
        build_template("chat", known.tokenizer(names_alone)).render([user("Q"), answer("A")], "", TOOLS)


def test_a_masked_answer_is_rendered_and_has_no_span():
    for template in ("chat", "alpaca"):
        shape = build_template(template, tiny.chatml())
        messages = [user("Q"), answer("masked", learned=False), user("R"), answer("B")]
        rendered = shape.render(messages)
        assert [rendered.text[a:b] for a, b in rendered.spans] == ["B<|im_end|>"]
        assert "masked<|im_end|>" in rendered.text
        with pytest.raises(Refusal, match="no answer that is a target"):
            shape.render(messages[:2])


def test_the_day_is_the_same_whenever_a_template_is_rendered(monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    for family, date in (("llama 3", "Today Date: 01 Jan 2025\n"), ("gpt-oss", "Current date: 2025-01-01<")):
        template = build_template("chat", known.family(family))
        for text in (template.prompt([user("Q")]), template.render([user("Q"), answer("A")]).text):
            assert date in text and "2031" not in text
        assert template.day == "2025-01-01"
        assert any("writes the date: it is 01 Jan 2025" in note for note in template.notes)
    assert build_template("chat", tiny.chatml()).day == ""
    # A template may also say it inside of a macro, and under conditions, and it may not be said at all.
    inside = "{% macro day() %}{{ strftime_now('%H:%M %A') }}{% endmacro %}{{ day() }}\n" + tiny.CHATML
    assert build_template("chat", tiny.chatml(inside)).prompt([user("Q")]).startswith("00:00 Wednesday\n<|im_start|>")
    composed = "{{ strftime_now('%' + 'Y') }}" + tiny.CHATML
    with pytest.raises(ModelError, match="composes the format of a date"):
        build_template("chat", tiny.chatml(composed))
    with pytest.raises(ModelError, match="draws at random"):
        build_template("chat", tiny.chatml("{{ ['a', 'b'] | random }}" + tiny.CHATML))


def test_a_pinned_template_keeps_its_first_characters():
    dated = "\n {{ '<' + strftime_now('%Y') + '>' }}\n" + tiny.CHATML
    assert build_template("chat", tiny.chatml(dated)).prompt([user("Q")]).startswith("\n <2025>")
    # White space before a statement at the beginning of a line is none of the prompt (lstrip_blocks).
    dated = "  {% if true %}{{ '<' + strftime_now('%Y') + '>' }}{% endif %}\n" + tiny.CHATML
    assert build_template("chat", tiny.chatml(dated)).prompt([user("Q")]).startswith("<2025><|im_start|>")


def test_oddities_of_a_template_are_reported():
    def notes(template):
        return build_template("chat", known.tokenizer(template)).notes

    assert notes(tiny.CHATML) == ()
    (said,) = notes(known.NO_PROMPT)
    assert "no generation prompt: '<|im_start|>assistant\\n' precedes every answer, in training and" in said
    (said,) = notes(known.QWEN_3)
    assert "begins an answer with '<think>\\n\\n</think>\\n\\n', which is part of the target" in said
    (said,) = notes(known.TWO_STARTS)
    assert "writes the start token '<s>' twice" in said


def test_the_start_and_end_tokens_of_a_users_template_occur_once():
    tokenizer = known.tokenizer(None, "</s>", starts=True)
    plain = build_template("Q: {instruction} A: {response}", tokenizer).render([user("Q"), answer("A")])
    spelled = build_template("<s>Q: {instruction} A: {response}</s>", tokenizer).render([user("Q"), answer("A")])
    assert plain.text == spelled.text == "<s>Q: Q A: A</s>"
    assert [spelled.text[a:b] for a, b in spelled.spans] == [" A</s>"]


def test_a_backslash_in_a_users_template_is_reported():
    said = build_template(r"Q: {instruction}\nA: {response}", tiny.chatml()).notes
    assert said == (
        "data.template holds a backslash and the letter n, not a line break: write it between double quotes",
    )
    assert build_template("Q: {instruction}\nA: {response}", tiny.chatml()).notes == ()


@pytest.mark.parametrize("template", ["alpaca", "Q: {instruction} A: {response}"])
def test_a_text_has_no_place_for_reasoning_and_tools(template):
    shape = build_template(template, tiny.chatml())
    with pytest.raises(Refusal, match="no place for reasoning"):
        shape.render([user("Q"), answer("A", reasoning="T")])
    for messages, tools in (([user("Q"), answer("A")], TOOLS), (CONVERSATIONS["tools"][0], "")):
        with pytest.raises(Refusal, match="no place for tools"):
            shape.render(messages, "", tools)


@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("starts", [True, False])
def test_all_of_a_plain_text_is_a_target_without_a_template(template, starts):
    tokenizer = known.tokenizer(tiny.CHATML, "</s>", starts=starts)
    shape = build_template(template, tokenizer)
    text = "  Once </s> upon\n\na time"
    (row,) = tokenize([Example("a:1", (Message("text", text),))], tokenizer, shape, 500).tokens
    ids = row.input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == starts and ids.count(tokenizer.eos_token_id) == 1
    assert row.loss_mask.tolist() == [not starts] + [True] * (len(ids) - 1)
    assert tokenizer.decode(ids[starts:]) == text + "</s>"
    with pytest.raises(Refusal, match="a plain text has no prompt"):
        encode_prompt(shape, tokenizer, (Message("text", text),))


def test_arguments_that_a_template_writes_anew_are_proven_by_their_names_and_values():
    # As a text of JSON, as an object, and in another order of the keys it is the same call.
    template = build_template("chat", known.family("qwen 3"))
    texts = set()
    for arguments in ('{"city": "Par\\"is\\n", "days": 3}', {"city": 'Par"is\n', "days": 3}):
        extra = json.dumps({"tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]})
        texts.add(template.render([user("Q"), answer("", extra=extra), tool("3"), answer("B")], "", TOOLS).text)
    assert len(texts) == 1 and '"arguments": {"city": "Par\\"is\\n", "days": 3}' in texts.pop()


def test_a_template_that_only_puts_a_calls_arguments_in_is_given_them_as_text():
    put_in = known.QWEN_3.replace("c.arguments if c.arguments is string else c.arguments | tojson", "'' + c.arguments")
    template = build_template("chat", known.tokenizer(put_in))
    for arguments in ('{"days":  3}', {"days": 3}):
        extra = json.dumps({"tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]})
        text = template.render([user("Q"), answer("", extra=extra), tool("3"), answer("B")]).text
        assert '"arguments": ' + (arguments if isinstance(arguments, str) else '{"days": 3}') in text


def test_a_call_is_learned_to_its_end_past_control_tokens_between_its_arguments():
    quoted = known.GPT_OSS.replace("c.arguments | tojson", "'<|message|>' + c.arguments.city + '<|message|>,3'")
    template = build_template("chat", known.tokenizer(quoted, "<|return|>"))
    rendered = template.render(*CONVERSATIONS["tools"][:1], "", TOOLS)
    assert next(rendered.text[a:b] for a, b in rendered.spans).endswith('<|message|>Par"is\n<|message|>,3<|call|>')


def test_a_control_token_in_reasoning_or_a_call_stays_text():
    tokenizer = known.family("gpt-oss")
    shape = build_template("chat", tokenizer)
    extra = json.dumps({"tool_calls": [{"function": {"name": "f", "arguments": {"x": "<|call|>"}}}]})
    tools = TOOLS.replace("days", "<|message|>")
    messages = (user("Q"), answer("", extra=extra), tool("<|end|>"), answer("B", reasoning="<|return|>"))
    (row,) = tokenize([Example("a:1", messages, tools=tools)], tokenizer, shape, 500).tokens
    (plain,) = tokenize([Example("a:1", messages, tools=TOOLS)], tokenizer, shape, 500).tokens
    message = tokenizer.convert_tokens_to_ids("<|message|>")
    assert row.input_ids.tolist().count(message) == plain.input_ids.tolist().count(message)
    text = tokenizer.decode(row.input_ids)
    for token, times in (("<|call|>", 1), ("<|return|>", 1)):
        assert row.input_ids.tolist().count(tokenizer.convert_tokens_to_ids(token)) == times
        assert text.count(token) == times + 1


# Any text

FRAGMENTS = [
    "a", "S", "user", "assistant\n", "model", "system: ", " ", "  ", "\n", "\t", "<think>", "</think>",
    "<tool_response>",
    "<|im_end|>", "<|im_start|>", "<|end|>", "<|return|>", "<|channel|>", "</s>", "<s>", "[INST]", "[/INST]", "{{ 1 }}",
    "{% raw %}", "{response}", "\\n", '"', "é", "你", "\U000f0000", "\U00100000", "content",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join)
ASKED, ANSWERED = TEXT.map(str.strip).filter(bool), TEXT.map(str.rstrip).filter(bool)
TURNS = st.lists(st.tuples(ASKED, ANSWERED, st.booleans()), min_size=1, max_size=3)
HEADS = ("", " ", "<think>\n", "<think>\n\n</think>\n\n", "\n</think>\n\n", "<|channel|>final<|message|>")


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("family", known.FAMILIES)
@settings(max_examples=40, deadline=None)
@given(turns=TURNS, head=st.none() | ASKED, context=st.just("") | ASKED)
def test_the_target_is_the_answer_and_its_end_token_or_the_row_is_refused(family, turns, head, context):
    template = _template(family)
    messages = [system(head)] if head else []
    for asked, answered, learned in turns:
        messages += [user(asked), answer(answered, learned=learned)]
    try:
        rendered = template.render(messages, context)
    except Refusal:
        sure = family in ("chatml", "phi 3", "open-ended", "llama 3", "mistral 0.1", "mistral 0.3", "gemma")
        assert not sure or not any(m.learned for m in messages if m.role == "assistant")
        return
    assert template.prompt(messages, context) == rendered.text[: rendered.spans[-1][0]] or not messages[-1].learned
    wanted = [m.content for m in messages if m.role == "assistant" and m.learned]
    if not any("earlier answer" in reason for reason in rendered.changed):
        assert len(rendered.spans) == len(wanted)
    for (start, stop), text in zip(reversed(rendered.spans), reversed(wanted), strict=False):
        if (start, stop) != rendered.spans[-1] and len(rendered.spans) != len(wanted):
            break
        body = rendered.text[start:stop].removesuffix(template.end)
        assert body != rendered.text[start:stop]
        if text.endswith("</think>"):
            body = body.rstrip()  # a template's own line breaks after a thought
        spaced = any("white space of the answer" in reason for reason in rendered.changed)
        # Its generation prompt ends with "<think>\n", also where the answer has no line break there.
        opened = text.removeprefix("<think>").removeprefix("\n") if family == "qwen 3 thinking" else text
        exact = {before + shown for before in HEADS for shown in (text, opened, text.lstrip("\n"))}
        assert body in exact or (spaced and squeezed(body) in map(squeezed, exact)), rendered.changed
    if rendered.context_span:
        assert rendered.text[slice(*rendered.context_span)] == context
    at, shown = 0, squeezed(rendered.text)
    for message in messages:
        text = squeezed(message.content if message.role != "assistant" else message.content.split("</think>")[-1])
        found = shown.find(text, at)
        assert found >= 0
        at = found + len(text)


def _template(family, made={}):  # noqa: B006, a cache
    if family not in made:
        made[family] = build_template("chat", known.family(family))
    return made[family]
