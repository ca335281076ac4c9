"""The model's own chat template, with the response's place proven by rendering every conversation up to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shepherd.data.formats import Refusal
from shepherd.data.rendering import Protected, Rendered, Span, bare, control_tokens, model_name
from shepherd.errors import ModelError
from shepherd.types import Message


class ChatTemplate:
    """The tokenizer's own chat template. Where it leaves the last turn open, the tokenizer's end token closes it."""

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        dated = "date_string" in str(tokenizer.chat_template)
        # Llama 3 writes the day's date into every prompt, and a run must give the same tokens tomorrow.
        self._options = {"date_string": "01 Jan 2025"} if dated else {}
        self.shows_system = self._probe_system()
        self._own_end = self._probe_end()
        self.end = self._own_end or tokenizer.eos_token
        self.stops = tuple(dict.fromkeys((self.end, tokenizer.eos_token)))

    def render(self, messages: Sequence[Message], context: str = "") -> Rendered:
        shown, context, protected = self._prepare(messages, context)
        text, spans = self._closed(self._apply(shown, False), shown)
        asked = next((m.content for m in reversed(shown) if m.role == "user"), "")
        return protected.restore(text, tuple(spans), _find_context(text, asked, context, spans))

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        return self.opening(messages, context).text

    def opening(self, messages: Sequence[Message], context: str = "") -> Rendered:
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        shown, _, protected = self._prepare(messages, context)
        whole = bare(self._apply(shown, True))
        text = whole if self._own_end else self._closed(whole, shown)[0]
        return protected.restore(text, ())

    def _closed(self, whole: str, shown: Sequence[Message]) -> tuple[str, list[Span]]:
        """`whole` with an end token after every response, and the spans of the responses with theirs."""
        turns = [self._turn(whole, shown, i) for i, m in enumerate(shown) if m.role == "assistant"]
        if self._own_end:
            return whole, turns
        text, spans, done = "", [], 0
        for start, stop in turns:
            at = len(text) + start - done
            text += whole[done:stop] + self.end
            spans.append((at, len(text)))
            done = stop
        return text + whole[done:], spans

    def _turn(self, whole: str, shown: Sequence[Message], i: int) -> Span:
        """Turn i in `whole`: from where generation would start to the end of its end token, or else of its text."""
        before = bare(self._apply(shown[:i], True))
        if not whole.startswith(before):
            raise self._not_a_prefix()
        if self._own_end:
            stop = whole.find(self._own_end, len(before))
            if stop < 0:
                raise self._not_a_prefix()
            return len(before), stop + len(self._own_end)
        with_answer = self._apply(shown[: i + 1], False)
        if not whole.startswith(with_answer):
            raise self._not_a_prefix()
        return len(before), len(with_answer.rstrip())

    def _prepare(self, messages: Sequence[Message], context: str) -> tuple[list[Message], str, Protected]:
        protected = Protected(self._control, [*(m.content for m in messages), context])
        context = protected.hide(context)
        shown = [Message(m.role, protected.hide(m.content)) for m in messages]
        shown = _join_context(shown, context)
        return (shown if self.shows_system else _system_into_user(shown)), context, protected

    def _apply(self, messages: Sequence[Message], generation: bool) -> str:
        import jinja2

        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation, **self._options
            )
        except jinja2.TemplateError as error:
            raise Refusal(f"the chat template refuses it: {error}") from None
        except Exception as error:  # a template is a program that came with the model
            raise ModelError(
                f"the chat template of {model_name(self._tokenizer)} fails: {type(error).__name__}: {error}",
                hint='set data.template = "alpaca", or a text of your own that contains {instruction}',
            ) from None

    def _probe_system(self) -> bool:
        user = Message("user", "shepherd-question")
        try:
            return "shepherd-system" in self._apply([Message("system", "shepherd-system"), user], True)
        except Refusal:
            return False

    def _probe_end(self) -> str:
        """The control token with which the template closes a response, or "" when it has none."""
        turns = [Message("user", "shepherd-question"), Message("assistant", "shepherd-answer")]
        try:
            text = self._apply(turns, False)
        except Refusal as error:
            raise ModelError(f"the chat template of {model_name(self._tokenizer)} fails: {error}") from None
        _, found, after = text.partition("shepherd-answer")
        if not found:
            raise ModelError(f"the chat template of {model_name(self._tokenizer)} does not show the assistant's turn")
        ends = [(after.find(token), -len(token), token) for token in self._control if token in after]
        return min(ends)[2] if ends else ""

    def _not_a_prefix(self) -> ModelError:
        return ModelError(
            f"the chat template of {model_name(self._tokenizer)} shows a conversation differently once it goes on, "
            "so which tokens are the response cannot be told exactly",
            hint='set data.template = "alpaca", or a text of your own that contains {instruction}',
        )


def _join_context(messages: Sequence[Message], context: str) -> list[Message]:
    """The context after the last instruction, one empty line between them."""
    joined = list(messages)
    if context:
        last = max((i for i, m in enumerate(joined) if m.role == "user"), default=None)
        if last is None:
            raise Refusal("a context without an instruction")
        joined[last] = Message("user", f"{joined[last].content}\n\n{context}")
    return joined


def _find_context(text: str, asked: str, context: str, spans: Sequence[Span]) -> Span | None:
    """Where the context stands: at the end of the last instruction, which is sought as a whole."""
    if not context:
        return None
    at = text.rfind(asked, 0, spans[-1][0] if spans else len(text))
    return None if at < 0 else (at + len(asked) - len(context), at + len(asked))


def _system_into_user(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system turn: its text begins the next user turn."""
    out: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user":
            out.append(Message("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            out.append(message)
    return out
