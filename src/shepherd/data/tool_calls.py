"""Tools and tool calls of a conversation, in the JSON form of chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CALLS = "tool_calls"


def with_objects(extra: Mapping[str, Any]) -> dict[str, Any]:
    """A turn's fields with the arguments of its calls as objects.

    In OpenAI's format they are a JSON text, which templates that write JSON would quote a second time.
    """
    return _mapped(extra, _with_object)


def with_texts(extra: Mapping[str, Any]) -> dict[str, Any]:
    """A turn's fields with the arguments of its calls as JSON texts, for templates that insert them unchanged (DeepSeek
    V3)."""
    return _mapped(extra, _with_text)


def mapped_texts(extra: Mapping[str, Any], f: Callable[[str], str]) -> dict[str, Any]:
    """A turn's fields with `f` applied to the name and every text argument of each call."""

    def call(function: Mapping[str, Any]) -> dict[str, Any]:
        parts = {key: mapped(function[key], f) for key in ("name", "arguments") if key in function}
        return {**function, **parts}

    return _mapped(extra, call)


def mapped(value: Any, f: Callable[[str], str], keys: bool = False) -> Any:
    """JSON with `f` applied to every text that is not empty and, if `keys`, to the keys of objects."""
    if isinstance(value, Mapping):
        return {f(key) if keys else key: mapped(item, f, keys) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, f, keys) for item in value]
    return f(value) if isinstance(value, str) and value else value


def texts(value: Any) -> Iterator[str]:
    """All texts in JSON, including keys."""
    if isinstance(value, Mapping):
        yield from (text for key, item in value.items() for text in (str(key), *texts(item)))
    elif isinstance(value, list):
        yield from (text for item in value for text in texts(item))
    elif isinstance(value, str):
        yield value


def are_rendered(extra: str, text: str) -> bool:
    """Whether a rendered text contains the names and arguments of all calls, in JSON or Python syntax."""
    for function in _functions(json.loads(extra)):
        for value in (function.get("name", ""), *_values(function.get("arguments", ""))):
            forms = (value,) if isinstance(value, str) else (json.dumps(value), str(value))
            if not any(form in text for form in forms):
                return False
    return True


def names_in(tools: str) -> Iterator[str]:
    """The names of the tools and of their parameters."""
    for tool in json.loads(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if isinstance(function, Mapping):
            parameters = function.get("parameters")
            known = parameters.get("properties") if isinstance(parameters, Mapping) else None
            yield from (str(name) for name in (function.get("name") or "", *(known or ())))


def _functions(extra: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    calls = extra.get(CALLS)
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            function = call.get("function")
            yield function if isinstance(function, Mapping) else call


def _values(value: Any) -> Iterator[Any]:
    """The leaves of JSON and the keys of its objects."""
    if isinstance(value, Mapping):
        yield from (leaf for key, item in value.items() for leaf in (str(key), *_values(item)))
    elif isinstance(value, list):
        yield from (leaf for item in value for leaf in _values(item))
    else:
        yield value


def _mapped(extra: Mapping[str, Any], f: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """A turn's fields with `f` applied to the function of each call."""

    def one(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        function = call.get("function")
        return {**call, "function": f(function)} if isinstance(function, Mapping) else f(call)

    calls = extra.get(CALLS)
    return {**extra, CALLS: [one(call) for call in calls]} if isinstance(calls, list) else dict(extra)


def _with_object(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return function
    return {**function, "arguments": arguments} if isinstance(arguments, Mapping) else function


def _with_text(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = function.get("arguments")
    text = json.dumps(arguments, ensure_ascii=False)
    return {**function, "arguments": text} if isinstance(arguments, Mapping) else function
