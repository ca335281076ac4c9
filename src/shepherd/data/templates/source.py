"""Static analysis of chat templates: the texts that they search for, and their use of the clock and of chance.

In transformers a template obtains the date only by `strftime_now` (utils/chat_template_utils.py of version 5.23), and
by `date_string` if the caller passes it. Both are pinned to one day, so that a run has the same tokens on any day.
"""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise

DAY = datetime(2025, 1, 1)
"""The date in all prompts. Runs record it, and runs with different dates are not comparable."""

_SEARCHES = {"split", "rsplit", "startswith", "endswith", "replace", "find", "rfind", "index", "count", "partition",
             "rpartition", "removeprefix", "removesuffix"}  # fmt: skip
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"}


def pin_clock(source: str) -> str:
    """The template with `strftime_now` pinned to `DAY`; a template without a clock is unchanged.

    Formats are constants of the template. One that it composes is refused on rendering.
    """
    if ("name", "strftime_now") not in _lexed(source):
        return source
    formats = {text: DAY.strftime(text) for text in _constants(source) if "%" in text}
    known = json.dumps(formats, ensure_ascii=False)
    refused = "{{ raise_exception('it composes the format of a date') }}"
    return (
        "{%- macro strftime_now(format) -%}{%- set days = " + known + " -%}{%- if format in days -%}"
        "{{ days[format] }}{%- else -%}" + refused + "{%- endif -%}{%- endmacro %}\n" + source
    )


def reads_clock(source: str) -> bool:
    """Whether prompts contain the date."""
    names = _lexed(source)
    return ("name", "strftime_now") in names or ("name", "date_string") in names


def is_random(source: str) -> bool:
    """Whether the template draws at random, so that no run could be repeated."""
    tokens = _lexed(source)
    pairs = list(pairwise(tokens))
    return (("operator", "|"), ("name", "random")) in pairs or (("name", "lipsum"), ("operator", "(")) in pairs


def searched_texts(source: str) -> tuple[str, ...]:
    """The texts that the template searches for in messages ("</think>", "<tool_response>"), longest first.

    These are constants in comparisons and arguments of methods such as `split`, without white space and roles.
    """
    tokens = _lexed(source)
    found = set()
    for at, (kind, value) in enumerate(tokens):
        if kind != "string":
            continue
        before, after = tokens[max(0, at - 2) : at], tokens[at + 1 : at + 2]
        called = len(before) == 2 and before[1] == ("operator", "(") and before[0][1] in _SEARCHES
        compared = ("operator", "==") in (*before[1:], *after) or ("operator", "!=") in (*before[1:], *after)
        sought = after and after[0] in (("name", "in"), ("name", "not"))
        text = _text(value)
        if text.strip() and (called or sought or (compared and text not in _ROLES)):
            found.add(text)
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _constants(source: str) -> set[str]:
    return {_text(value) for kind, value in _lexed(source) if kind == "string"}


def _text(literal: str) -> str:
    """The value of a string literal, which may span lines and is escaped as in Python (jinja2's lexer)."""
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape", "replace")


def _lexed(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each token but white space; [] for an invalid template, which rendering reports."""
    import jinja2  # here, since partitioning needs no templates

    try:
        tokens = jinja2.Environment().lex(source)
        return [(kind, text) for _, kind, text in tokens if kind not in ("whitespace", "data")]
    except jinja2.TemplateSyntaxError:
        return []
