"""Turns of chat formats as `Message`s: roles, texts, masks (`weight`, `train`, `loss`), reasoning, tool calls, results.

Other fields of a turn are reported as unread.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.data.row_reader import Notes
from shepherd.data.values import Refusal, mark, missing, text
from shepherd.types import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "bing": "assistant", "bard": "assistant", "chatbot": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool_calls": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
    "ipython": "tool",
}  # fmt: skip
CALLING = ("function_call", "tool_call", "tool_calls")
"""Roles of turns whose text is a tool call or a list of tool calls."""
ARGUMENTS = ("arguments", "parameters", "args", "input")
"""Names of a tool call's arguments: OpenAI, xLAM, LangChain, Anthropic."""
_BESIDE = ("name", "id", "type", "index", "strict", "description", "function")
MARKS = ("weight", "train", "training", "loss")
REASONING = ("reasoning", "reasoning_content", "thinking")
TURN_FIELDS = ("role", "content", "reasoning", "train")
"""Fields of turns that `--columns` can map."""
_CONTENT = {"content", "value", "tool_calls"}
_LIST = re.compile(r"\s*\[\s*\{")


def read_turns(
    value: Any, what: str, notes: Notes, names: Mapping[str, str] | None = None, learned: bool = True
) -> list[Message]:
    """The messages of a list of turns, of its JSON text, or of an object of equal lists (Parquet by `datasets`).

    names: `TURN_FIELDS` -> the user's fields. With `learned` False every answer is masked. Raises Refusal.
    """
    if isinstance(value, str):
        value = cell(value)
    if isinstance(value, Mapping):
        value = transposed(value)
    if not isinstance(value, (list, tuple)):
        raise Refusal(f"{what} is not a list of turns")
    return [_turn(turn, notes, names or {}, learned) for turn in value if not _filled_with_null(turn)]


def is_turns(value: Any) -> bool:
    """Whether `value` is a list of turns: a list of objects, an object of lists, or a single turn."""
    if isinstance(value, Mapping):
        return transposed(value) is not None
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The turns of an object of equal lists, or of a single turn; None for any other object."""
    if isinstance(columns.get("role", columns.get("from")), str):
        return [dict(columns)]
    given = {name: column for name, column in columns.items() if column is not None}
    if not given or not all(isinstance(column, (list, tuple)) for column in given.values()):
        return None
    if len({len(column) for column in given.values()}) > 1:
        return None
    return [dict(zip(given, turn, strict=True)) for turn in zip(*given.values(), strict=True)]


def _filled_with_null(turn: Any) -> bool:
    return turn is None or (isinstance(turn, Mapping) and all(value is None for value in turn.values()))


def _turn(turn: Any, notes: Notes, names: Mapping[str, str], learned: bool) -> Message:
    if not isinstance(turn, Mapping):
        raise Refusal("a turn is not an object")
    left = {key: value for key, value in turn.items() if not missing(value)}

    def take(*keys: str) -> Any:
        """The value of the first of `keys` that has one; the others stay unread."""
        return next((left.pop(key) for key in keys if key in left), None)

    given = str(take(names.get("role", "role"), "role", "from") or "").strip()
    role = ROLES.get(given.casefold())
    if role is None:
        raise Refusal(
            f"a turn with the role {given[:40]!r}, which is not system, user, assistant or tool"
            if given else "a turn without a role"
        )  # fmt: skip
    content, thought = _content(take(names.get("content", "content"), "content", "value", "text", "parts"))
    reasoning = text(take(names.get("reasoning", REASONING[0]), *REASONING), "the reasoning") if _is(role) else ""
    extra = _calls(take("tool_calls", "function_call")) if _is(role) else _result(role, left)
    if given.casefold() in CALLING:
        extra, content = _calls(_parsed(content)), ""
    masked = _masked(left, role, names, notes)
    notes.fields += [key for key in left if key not in notes.fields]
    answer = _is(role)
    return Message(
        role=role,
        content=content.rstrip() if answer else content.strip(),
        learned=(learned and not masked) if answer else True,
        reasoning=(reasoning or thought).strip() if answer else "",
        extra=_json(extra, "the tool calls of a turn") if extra else "",
    )


def _is(role: str) -> bool:
    return role == "assistant"


def _content(value: Any) -> tuple[str, str]:
    """(text, reasoning) of a turn's content, which is a text or a list of parts."""
    if not isinstance(value, (list, tuple)):
        return text(value, "a turn"), ""
    found: dict[str, list[str]] = {"text": [], "thinking": []}
    for part in value:
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, Mapping) and not missing(part):
            raise Refusal("a turn with a part that is not text")
        given = {k: v for k, v in part.items() if not missing(v)} if not missing(part) else {}
        key = "thinking" if given.get("type") == "thinking" else "text"
        other = given.keys() - {key, "type", "signature", "index", "annotations", "cache_control"}
        if other or not isinstance(given.get(key, ""), str) or given.get("type", "text") not in _TEXTS:
            raise Refusal("a turn with a part that is not text")
        found[key].append(given.get(key, ""))
    return text("".join(found["text"]), "a turn"), text("".join(found["thinking"]), "the reasoning")


_TEXTS = ("text", "input_text", "output_text", "thinking")


def _masked(left: dict[str, Any], role: str, names: Mapping[str, str], notes: Notes) -> bool:
    """Whether the turn is masked. Removes the marks from `left`."""
    masked = False
    for key in dict.fromkeys((names.get("train", ""), *MARKS)):
        if key not in left:
            continue
        try:
            learned = mark(left[key])
        except ValueError:
            if not _is(role):
                continue  # stays unread: such a turn is never a target
            raise Refusal(f"an answer whose {key!r} is neither 0 nor 1: an answer is a target or not") from None
        del left[key]
        masked |= learned is False
        if learned and not _is(role) and key != "loss":
            notes.change(f"{key!r} of a turn that is not an answer: only answers are targets")
    return masked


def _calls(calls: Any) -> dict[str, Any]:
    """The tool calls of an assistant's turn (one or a list) in OpenAI's form, with arguments as objects."""
    if calls is None:
        return {}
    calls = _parsed(calls)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)):
        raise Refusal("a turn whose tool calls are not a list")
    return {"tool_calls": [_call(_parsed(one)) for one in calls if not missing(one)]}


def _call(call: Any) -> dict[str, Any]:
    function = _parsed(call.get("function", call)) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refusal("a tool call without a name")
    arguments: Any = next((function[key] for key in ARGUMENTS if not missing(function.get(key))), {})
    other = [key for key, value in function.items() if key not in (*ARGUMENTS, *_BESIDE) and not missing(value)]
    if missing(arguments) and other:
        raise Refusal(f"a tool call with {str(other[0])[:40]!r} instead of 'arguments'")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise Refusal("a tool call whose arguments are not JSON") from None
    else:  # A Parquet struct holds the keys of all calls, null where this call has none.
        arguments = _without_nulls(arguments)
    arguments = {} if arguments is None else arguments
    found = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": str(call["id"]), **found} if isinstance(call.get("id"), (str, int)) else found


def _result(role: str, left: dict[str, Any]) -> dict[str, Any]:
    """The fields of a tool's result, besides its text, that a template may render."""
    given = {key: left.pop(key) for key in ("name", "tool_call_id") if key in left} if role == "tool" else {}
    return {key: str(value) if isinstance(value, int) else value for key, value in given.items()}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Refusal("a tool call that is not JSON") from None


def read_history(value: Any, notes: Notes) -> list[Message]:
    """Earlier turns of an instruction: pairs [question, answer] as in LLaMA-Factory, or turns."""
    if isinstance(value, str):
        value = cell(value)
    if is_turns(value):
        return read_turns(value, "'history'", notes)
    if not isinstance(value, Sequence) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value):
        raise Refusal("'history' is not a list of pairs or turns")
    messages = []
    for question, answer in value:
        messages.append(Message("user", text(question, "'history'").strip()))
        messages.append(Message("assistant", text(answer, "'history'").rstrip()))
    return messages


def read_tools(value: Any) -> str:
    """The tools of a row as a JSON list of OpenAI's function definitions. Raises Refusal."""
    if isinstance(value, str):
        value = cell(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in value):
        raise Refusal("'tools' is not a list of tools")
    tools = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in map(_without_nulls, value)
    ]
    return _json(tools, "'tools'") if tools else ""


def read_system(value: Any) -> str:
    """A system prompt: a text, a list of parts (Bedrock, Anthropic), or an object with either (Gemini)."""
    if isinstance(value, Mapping):
        inner = [item for key, item in value.items() if key != "role" and not missing(item)]
        if len(inner) != 1 or missing(value.get("parts", value.get("content", value.get("text")))):
            raise Refusal("a system prompt that is not text")
        value = inner[0]
    return (_content(value)[0] if isinstance(value, (list, tuple)) else text(value, "the system prompt")).strip()


def _json(value: Any, what: str) -> str:
    """`value` as JSON. Raises Refusal for values of Parquet that JSON cannot hold: dates, bytes, infinities."""
    try:
        written = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        written.encode()
    except (TypeError, ValueError):
        raise Refusal(
            f"{what} hold a value that JSON cannot represent: a date, bytes, NaN or half a character"
        ) from None
    return written


def _without_nulls(value: Any) -> Any:
    """`value` without the nulls of a Parquet struct, which pandas writes as NaN."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None and v == v}
    return [_without_nulls(v) for v in value] if isinstance(value, (list, tuple)) else value


def cell(value: str) -> Any:
    """The value of a table cell: JSON, or a Python literal as pandas writes it; None for neither."""
    for load in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes such as \\d
                return load(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def turns_in(value: Any) -> Any:
    """The turns that a table cell holds as text, if each has a role; any other value unchanged."""
    if not (isinstance(value, str) and _LIST.match(value)):
        return value
    found = cell(value)
    named = is_turns(found) and all(isinstance(turn, Mapping) and _has_role(turn) for turn in found)
    return found if named else value


def _has_role(turn: Mapping[str, Any]) -> bool:
    role = turn.get("role", turn.get("from"))
    return isinstance(role, str) and role.strip().casefold() in ROLES and bool(_CONTENT & turn.keys())
