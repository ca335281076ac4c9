"""Elements of all charts: texts, rules, markers, legends, scales and ticks. Sizes are in pixels of a width of 960."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from markupsafe import Markup, escape

from shepherd.report.wording import cells, clean, digits, isolated, shorten

WIDTH = 960
HALF = 470
LABELS = 190  # room for row labels, left
CHARACTER = 7.7  # average width of a lower-case letter at the 12.5px of labels
WIDE, NARROW = frozenset("mwMW@%—…"), frozenset("iljtfrI-.,:;'|!()[] ")

T = TypeVar("T")

# Style -> marker. The style is also the CSS class `c-<style>`, so a style never comes from data.
MARKERS = {
    "base": "bar",
    "local": "diamond",
    "federated": "circle",
    "centralised": "square",
    "plain": "circle",
    "s1": "circle",
    "s2": "square",
    "s3": "diamond",
    "s4": "triangle",
    "s5": "ring",
    "s6": "cross",
    "s7": "bar",
}
SERIES_STYLES = ("s1", "s2", "s3", "s4", "s5", "s6", "s7")


def thin(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` evenly spaced items, including the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def extremes(items: Sequence[T], limit: int) -> tuple[list[T], int | None]:
    """The first and last items, `limit` in total, and the position after which some are left out."""
    if len(items) <= limit:
        return list(items), None
    head = (limit + 1) // 2
    return [*items[:head], *items[len(items) - (limit - head) :]], head - 1


def nice_ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from `low` to `high`; whole numbers when `whole`."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    if whole:
        step = max(1, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while (tick := first * step) <= high + 1e-9 * step:
        ticks.append(round(tick, 12) + 0.0)
        first += 1
    return ticks


def svg(height: float, title: str, description: str, body: Sequence[str], width: int = WIDTH) -> Markup:
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height:g}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{safe(title)}</title><desc>{safe(description)}</desc>{''.join(body)}</svg>"
    )


def empty(title: str, description: str) -> Markup:
    return svg(56, title, description, [text(0, 32, "Nothing was measured for this picture.", "label")])


def safe(text: str) -> str:
    return str(escape(clean(str(text))))


def short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def text(
    x: float, y: float, text: str, kind: str, anchor: str = "start", room: float | None = None, extra: str = ""
) -> str:
    """A text element; `kind` and `anchor` are CSS classes of style.css, `room` is the available width in pixels.

    Names of clients often differ at their ends: a text that does not fit is cut in its middle.
    """
    whole = isolated(" ".join(clean(str(text)).split()))
    shown = shorten(whole, room / CHARACTER - 1, _units, middle=True) if room else whole
    tip = f"<title>{safe(whole)}</title>" if shown != whole else ""
    return f'<text class="{kind} {anchor}" x="{short(x)}" y="{short(y)}"{extra}>{safe(shown)}{tip}</text>'


def extent(text: str) -> float:
    """An upper estimate of a text's width in pixels: fonts differ."""
    return CHARACTER * sum(map(_units, text))


def _units(character: str) -> float:
    if character in WIDE:
        return 1.7
    if character in NARROW:
        return 0.7
    return cells(character) * (1.35 if character.isupper() else 1.1 if character.isdecimal() else 1.0)


def rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{short(x1)}" y1="{short(y1)}" x2="{short(x2)}" y2="{short(y2)}"/>'


def box(x: float, y: float, width: float, height: float, kind: str = "", tip: str = "", extra: str = "") -> str:
    """A rectangle; `tip` is its tooltip."""
    named = f' class="{kind}"' if kind else ""
    end = f"><title>{safe(tip)}</title></rect>" if tip else "/>"
    size = f'width="{short(width)}" height="{short(height)}"'
    return f'<rect{named} x="{short(x)}" y="{short(y)}" {size}{extra}{end}'


def legend(names: dict[str, str], left: float, boxes: bool = False) -> str:
    parts, at = [], left
    for name, style in names.items():
        sign = box(at, 6.5, 11, 11, f"fill c-{style}") if boxes else marker(style, at + 6, 12)
        parts.append(sign + text(at + 18, 16.5, name, "tick", room=200))
        at += 44 + min(200, extent(name))
    return "".join(parts)


def marker(style: str, x: float, y: float, tip: str = "") -> str:
    cx, cy = float(short(x)), float(short(y))
    shape = {
        "circle": lambda: f'<circle cx="{cx:g}" cy="{cy:g}" r="5"',
        "ring": lambda: f'<circle class="open" cx="{cx:g}" cy="{cy:g}" r="4.4"',
        "square": lambda: f'<rect x="{cx - 4.5:g}" y="{cy - 4.5:g}" width="9" height="9"',
        "diamond": lambda: f'<path d="M{cx:g} {cy - 6:g}l6 6l-6 6l-6 -6z"',
        "triangle": lambda: f'<path d="M{cx:g} {cy - 5.5:g}l5.8 10h-11.6z"',
        "cross": lambda: f'<path class="open" d="M{cx - 4:g} {cy - 4:g}l8 8m0 -8l-8 8"',
        "bar": lambda: f'<rect x="{cx - 2:g}" y="{cy - 7:g}" width="4" height="14"',
    }[MARKERS[style]]()
    end = f"><title>{safe(tip)}</title></{shape[1:].split()[0]}>" if tip else "/>"
    return f'<g class="mark c-{style}">{shape}{end}</g>'


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or max(0.05 * abs(high), 0.05)
    return low - pad, high + pad


def tick_texts(ticks: Sequence[float]) -> list[str]:
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) or 1.0)
    places = max(0, next((p for p in range(10) if math.isclose(step, round(step, p), rel_tol=1e-6)), 3))
    return [digits(tick, places) for tick in ticks]
