"""What the source of a chat template tells before it is rendered: the texts that it looks for, and the clock it reads.

A template in transformers reaches the day by `strftime_now` alone (utils/chat_template_utils.py of version 5.23), and
by `date_string` where the caller gives one. Both are pinned to one day, so that a run has the same tokens tomorrow.
"""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise

DAY = datetime(2025, 1, 1)
"""The day that every prompt is written on. Runs record it, and are not comparable over another one."""

_SEARCHES = {"split", "rsplit", "startswith", "endswith", "replace", "find", "rfind", "index", "count", "partition",
             "rpartition", "removeprefix", "removesuffix"}  # fmt: skip
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"}


def pin_clock(source: str) -> str:
    """The template with `strftime_now` giving `DAY`, whenever it is rendered; a template without a clock unchanged.

    The formats are those that stand in the template. One that it puts together itself is refused when it is asked for.
    """
    if ("name", "strftime_now") not in _lexed(source):
        return source
    formats = {text: DAY.strftime(text) for text in _constants(source) if "%" in text}
    known = json.dumps(formats, ensure_ascii=False)
    refused = "{{ raise_exception('it puts the format of a date together') }}"
    return (
        "{%- macro strftime_now(format) -%}{%- set days = " + known + " -%}{%- if format in days -%}"
        "{{ days[format] }}{%- else -%}" + refused + "{%- endif -%}{%- endmacro %}\n" + source
    )


def reads_clock(source: str) -> bool:
    """Whether prompts carry the day they are written on."""
    names = _lexed(source)
    return ("name", "strftime_now") in names or ("name", "date_string") in names


def is_random(source: str) -> bool:
    """Whether the template draws: no two renderings would be the same, so no run could be repeated."""
    tokens = _lexed(source)
    pairs = list(pairwise(tokens))
    return (("operator", "|"), ("name", "random")) in pairs or (("name", "lipsum"), ("operator", "(")) in pairs


def looked_for(source: str) -> tuple[str, ...]:
    """The texts that the template looks for in what it shows ("</think>", "<tool_response>"), longest first.

    They are constants that are compared, or given to a method such as `split`. White space and roles are not among
    them.
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
    """What a string of the template is: it may run over lines, and is escaped as in Python (jinja2's lexer)."""
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape", "replace")


def _lexed(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each token but white space; [] for a source that is no template, which rendering will tell."""
    import jinja2  # here: what divides data into clients needs no templates

    try:
        tokens = jinja2.Environment().lex(source)
        return [(kind, text) for _, kind, text in tokens if kind not in ("whitespace", "data")]
    except jinja2.TemplateSyntaxError:
        return []
