"""Texts and numbers on a page: cleaned, shortened, with the digits that are significant."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from shepherd.errors import plural

ABSENT = "n/a"
MINUS = "\N{MINUS SIGN}"
AGAINST_BASE = "loss minus that of the base model"
HELD_OUT_LOSS = "held-out loss (nats per token)"

# Terminal sequences: CSI (colours, cursor), OSC (titles, links; ended by BEL or ST), and two-character escapes.
_TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -~]?|\x9b[0-?]*[ -/]*[@-~]")
# Controls except tab and newline, and the marks that reorder text, so that what is read is what is there.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066\u2067]")
_ISOLATE, _END = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
_PAIRS = re.compile(f"[{_ISOLATE}{_END}]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` without terminal escapes, control characters and direction overrides; lone surrogates become U+FFFD.

    Of the direction marks, only balanced isolates stay (`isolated`)."""
    text = _TERMINAL.sub("", text.replace("\r\n", "\n"))
    text = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub("", text))
    return _paired(text) if _ISOLATE in text or _END in text else text


def _paired(text: str) -> str:
    """`text` without isolates that are not closed on their line, and without ends that close none."""
    kept = list(text)
    opened: list[int] = []
    for position, character in enumerate([*text, "\n"]):
        if character == _ISOLATE:
            opened.append(position)
        elif character == _END and opened:
            opened.pop()
        elif character == _END:
            kept[position] = ""
        elif character == "\n":
            for lone in opened:
                kept[lone] = ""
            opened.clear()
    return "".join(kept)


def isolated(text: str) -> str:
    """A name on one line, safe in any text: a right-to-left name is isolated, as it would reorder what follows."""
    text = _PAIRS.sub("", text)
    backwards = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)
    return f"{_ISOLATE}{text}{_END}" if backwards else text


def clip(text: str, limit: int) -> str:
    """The first `limit` characters, and how many are left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters in the run directory)"


def cells(character: str) -> int:
    """Columns of a character in a terminal: two in wide scripts, none for combining marks and invisible characters."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """The text padded to `width` columns of a terminal, aligned left or `right`."""
    space = " " * (width - sum(map(cells, text)))
    return space + text if right else text + space


def shorten(label: str, width: float, measure: Callable[[str], float] = cells, *, middle: bool = False) -> str:
    """One line of at most `width`, in units of `measure`, with a … where it is cut: at the end or in the `middle`."""
    label = _PAIRS.sub("", " ".join(clean(label).split()))
    sizes = [measure(character) for character in label]
    if sum(sizes) <= width + 1:
        return isolated(label)
    end = bisect_right(list(accumulate(reversed(sizes))), 0.4 * width) if middle else 0
    start = bisect_right(list(accumulate(sizes)), width - sum(sizes[len(label) - end :]))
    return isolated(f"{label[:start].rstrip()}…{label[len(label) - end :].lstrip()}")


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (None, NaN, infinities, texts, booleans)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def digits(value: Any, places: int = 3) -> str:
    """A loss: three decimals, a true minus sign, n/a without a value."""
    value = number(value)
    if value is None:
        return ABSENT
    text = f"{abs(value):,.{places}f}" if abs(value) < 1e6 else f"{abs(value):.2e}"
    return (MINUS if value < 0 and float(text.replace(",", "")) else "") + text


def signed(value: Any, places: int = 3) -> str:
    """A difference, always with its sign; zero has none."""
    text = digits(value, places)
    value = number(value)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.,") else text


def with_error(figure: Mapping[str, Any] | None) -> str:
    """{"value", "stderr"} as 0.615 ± 0.012; without a standard error the value alone."""
    value, stderr = (number((figure or {}).get(key)) for key in ("value", "stderr"))
    return digits(value) if value is None or stderr is None else f"{digits(value)} ± {digits(stderr)}"


def from_to(interval: tuple[float, float] | None) -> str:
    """An interval of differences: `−0.185 to −0.130`."""
    return f"{signed(interval[0])} to {signed(interval[1])}" if interval else ABSENT


def significant(value: Any, figures: int = 3) -> str:
    """`figures` significant figures without exponent up to a million: 13.5, 1,240, 0.0312."""
    value = number(value)
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 <= exponent < 6:
        return f"{value:.{figures - 1}e}".replace("-", MINUS)
    return digits(round(value, figures - 1 - exponent), max(0, figures - 1 - exponent))


def percent(value: Any, places: int = 1) -> str:
    """A share between 0 and 1 as per cent."""
    value = number(value)
    return ABSENT if value is None else f"{digits(100 * value, places)}\N{NO-BREAK SPACE}%"


def count(value: Any) -> str:
    """A whole number with separators; a mean of whole numbers keeps one decimal."""
    value = number(value)
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def size(value: Any) -> str:
    """Bytes in decimal units: 7.37 MB."""
    value = number(value)
    if value is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:,.0f} B" if unit == "B" else f"{significant(value)} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration(value: Any) -> str:
    """Seconds as 40 ms, 3.20 s, 12.3 s, 2 min 05 s or 1 h 02 min."""
    value = number(value)
    if value is None:
        return ABSENT
    if 0 < value < 0.9995:
        return (
            "< 1 ms"
            if value < 0.001
            else f"{significant(1000 * value)} ms"
            if value < 0.00995
            else f"{1000 * value:.0f} ms"
        )
    if value < 59.95:
        return f"{significant(value)} s" if value < 9.95 else f"{value:.1f} s"
    if value < 3599.5:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def listing(names: list[str], limit: int = 8) -> str:
    """a, b, c and 5 more."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def left_out(total: int, limit: int, noun: str, which: str = "") -> str:
    """` 12 clients of 100 left out; which ones.`, or nothing where all fit."""
    if total <= limit:
        return ""
    return f" {plural(total - limit, noun)} of {total:,} left out{'; ' + which if which else ''}."


def plain(value: Any) -> str:
    """A short text for any value of a run directory."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if number(value) is not None:
        return count(value) if float(value).is_integer() else significant(value, 4)
    if isinstance(value, Mapping):
        return listing([f"{k}: {plain(v)}" for k, v in value.items()], 20)
    if isinstance(value, (list, tuple)):
        return listing([plain(v) for v in value], 20)
    return ABSENT if value is None else shorten(str(value), 400)


def sentence(parts: Sequence[str]) -> str:
    """The parts with semicolons between them."""
    return "; ".join(parts) + "." if parts else ""
