"""The model's chat template, with the position of every text and the extent of every answer verified."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shepherd.data.outline import Outline, Renderer, fill, make_outline, sketch
from shepherd.data.templates.probes import OTHER_TEMPLATE, answer_frame, renders_system, takes_objects
from shepherd.data.templates.rendering import (
    Protected,
    Rendered,
    Span,
    bare,
    control_tokens,
    is_text,
    model_name,
    plain,
    without_answer,
)
from shepherd.data.templates.source import DAY, is_random, pin_clock, reads_clock, searched_texts
from shepherd.data.templates.turns import find_context, join_context, place_of, system_into_user, turn_of
from shepherd.data.tool_calls import mapped, texts, with_objects, with_texts
from shepherd.data.values import Refusal
from shepherd.errors import ModelError
from shepherd.types import Message

SHAPES = 1024
"""Size of the cache of outlines. Rows of one shape share their roles and the texts that the template searches for."""


class ChatTemplate:
    """The tokenizer's chat template. The end token closes answers that the template leaves open.

    The target of an answer begins where generation would start. Text that the template writes there before the answer,
    such as an empty thought, is part of it, since the model has to generate it.
    """

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        given = tokenizer.chat_template
        sources = list(given.values()) if isinstance(given, dict) else [given]
        if any(map(is_random, sources)):
            raise ModelError(
                f"the chat template of {model_name(tokenizer)} draws at random, so no run could be repeated",
                hint=OTHER_TEMPLATE,
            )
        sought = sorted({text for source in sources for text in searched_texts(source)}, key=lambda t: (-len(t), t))
        self._kept = re.compile(f"({'|'.join(map(re.escape, sought))})") if sought else None
        self._options = {"date_string": DAY.strftime("%d %b %Y")} if "date_string" in "".join(sources) else {}
        self.day = DAY.date().isoformat() if any(map(reads_clock, sources)) else ""
        self._pinned = functools.cache(pin_clock)
        self._outline: Callable[[tuple[Message, ...], str, bool], Outline] = functools.lru_cache(SHAPES)(
            lambda messages, tools, generation: make_outline(messages, tools, generation, self._renderer)
        )
        self._renderer = Renderer(self._apply, self._prompt, self._end_of, self._closes)
        self.renders_system = renders_system(self._apply)
        self._with_calls = with_objects if takes_objects(self._apply) else with_texts
        self._frame = answer_frame(self._apply, self._control, model_name(tokenizer))
        self.notes = (*self._frame.notes, *self._notes())
        self.end = self._frame.end or tokenizer.eos_token
        self.stops: tuple[str, ...] = tuple(dict.fromkeys((self.end, tokenizer.eos_token)))

    def _notes(self) -> Iterator[str]:
        if self.day:
            yield f"the chat template writes the date: it is {DAY:%d %b %Y} in every prompt"
        bos = self._tokenizer.bos_token
        if bos and self._frame.text.replace(" ", "").startswith(bos * 2):
            yield f"the chat template writes the start token {bos!r} twice"

    def render(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        if is_text(messages):
            return plain(messages, self._tokenizer)
        shown, context, tools, protected, changed = self._prepare(messages, context, tools)
        text = self._apply(shown, tools, False)
        outline, spans = self._verified(shown, tools, text, False)
        learned = [turn for turn, m in enumerate(shown) if m.role == "assistant" and m.learned]
        if not learned:
            raise Refusal("no answer that is a target")
        for turn in learned:
            problem = outline.answers[turn].problem if turn in outline.answers else "omits an answer"
            if problem and turn == learned[-1]:
                raise Refusal(f"the chat template {problem}")
            if problem:
                changed += (f"an earlier answer is not a target: the chat template {problem}",)
        changed += tuple(
            f"a masked answer is rendered differently: the chat template {answer.problem}"
            for turn, answer in outline.answers.items()
            if answer.altered and turn not in learned
        )
        places = {turn: place_of(outline, turn, spans) for turn in outline.answers}
        # The outline locates generated answers; for the last one the row itself is checked as well.
        if text[: places[learned[-1]][0]] != self._prompt(shown[: learned[-1]], tools):
            raise Refusal("the chat template rewrites earlier turns")
        wanted = [turn for turn in learned if turn in places and not outline.answers[turn].problem]
        question = max((turn for turn, m in enumerate(shown) if m.role == "user"), default=-1)
        context_span = find_context(question, context, spans, text)
        closed, moved = self._closed(outline, text, places)
        return protected.restore(
            Rendered(
                closed,
                tuple(moved(*places[turn]) for turn in wanted),
                context_span and moved(*context_span),
                changed=tuple(dict.fromkeys((*changed, *outline.changed))),
                begins=tuple(moved(*place)[0] for place in places.values()),
            )
        )

    def prompt(self, messages: Sequence[Message], context: str = "", tools: str = "") -> str:
        return self.opening(messages, context, tools).text

    def opening(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        shown, _, tools, protected, _ = self._prepare(without_answer(messages), context, tools)
        text = self._apply(shown, tools, True)
        outline, spans = self._verified(shown, tools, text, True)
        places = {turn: place_of(outline, turn, spans) for turn in outline.answers}
        closed, moved = self._closed(outline, bare(text + self._frame.opener), places)
        return protected.restore(Rendered(closed, (), begins=tuple(moved(*place)[0] for place in places.values())))

    def _verified(
        self, shown: Sequence[Message], tools: str, text: str, generation: bool
    ) -> tuple[Outline, list[tuple[int, Span]]]:
        """The outline of the conversation, and (turn, span in `text`) of each of its marks."""
        marked, pieces = sketch(shown, self._kept)
        outline = self._outline(marked, tools, generation)
        places = fill(outline, text, pieces, shown)
        return outline, [(pieces[number].turn, place) for number, place in zip(outline.marks, places, strict=True)]

    def _closed(self, outline: Outline, text: str, places: dict[int, Span]) -> tuple[str, Callable[[int, int], Span]]:
        """`text` with end tokens after answers that the template leaves open, and the function that moves spans."""
        ends = sorted(stop for turn, (_, stop) in places.items() if not outline.answers[turn].closed)
        for stop in reversed(ends):
            text = text[:stop] + self.end + text[stop:]

        def moved(start: int, stop: int) -> Span:
            by = len(self.end)
            return start + by * sum(end <= start for end in ends), stop + by * sum(end <= stop for end in ends)

        return text, moved

    def _prepare(
        self, messages: Sequence[Message], context: str, tools: str
    ) -> tuple[list[Message], str, str, Protected, tuple[str, ...]]:
        """(the template's messages, context, tools, hidden control tokens, changes of the row)."""
        fields = {turn: self._with_calls(json.loads(m.extra)) for turn, m in enumerate(messages) if m.extra}
        listed = json.loads(tools) if tools else []
        spelled = [*(m.content for m in messages), *(m.reasoning for m in messages if m.reasoning), context]
        protected = Protected(self._control, [*spelled, *texts([*fields.values(), listed])])
        hide, context = protected.hide, protected.hide(context)
        shown = [
            Message(
                m.role,
                hide(m.content),
                m.learned,
                hide(m.reasoning),
                json.dumps(mapped(fields[turn], hide, keys=True), ensure_ascii=False) if turn in fields else "",
            )
            for turn, m in enumerate(messages)
        ]
        tools = json.dumps(mapped(listed, hide, keys=True), ensure_ascii=False) if listed else ""
        shown = join_context(shown, context)
        changed: tuple[str, ...] = ()
        if not self.renders_system and any(m.role == "system" for m in shown):
            shown = system_into_user(shown)
            changed = ("the chat template has no fixed place for a system turn: its text begins the next user turn",)
        return shown, context, tools, protected, changed

    def _prompt(self, messages: Sequence[Message], tools: str) -> str:
        """The prompt of an answer to `messages`."""
        return bare(self._apply(messages, tools, True) + self._frame.opener)

    def _apply(self, messages: Sequence[Message], tools: str, generation: bool) -> str:
        import jinja2

        if not messages:
            raise Refusal("the conversation begins with an answer")
        turns = [turn_of(m) for m in messages]
        listed = json.loads(tools) if tools else None
        try:
            source = self._pinned(self._tokenizer.get_chat_template(tools=listed))
            return self._tokenizer.apply_chat_template(
                turns,
                tools=listed,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=generation,
                **self._options,
            )
        except jinja2.TemplateError as error:
            raise Refusal(f"the chat template refuses it: {error}") from None
        except Exception as error:  # a template is a program that comes with the model
            raise Refusal(f"the chat template fails: {type(error).__name__}: {error}") from None

    def _end_of(self, tail: str) -> tuple[int, bool]:
        """(number of characters of `tail` that belong to the last answer, whether a control token closes it).

        A tool call may end differently, with control tokens before its end.
        """
        if self._frame.end and self._frame.end in tail:
            return tail.index(self._frame.end) + len(self._frame.end), True
        answer = tail.rstrip()
        return len(answer), bool(self._frame.end) and answer.endswith(self._control)

    def _closes(self, text: str) -> bool:
        """Whether a control token in the following text closes an earlier answer."""
        return bool(self._frame.end) and any(token in text for token in self._control)
