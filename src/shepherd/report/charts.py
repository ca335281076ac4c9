"""Pictures as inline SVG: plain values in, `Markup` out. No scripts, no fonts, no colours of their own.

Colours, light and dark, are CSS classes of templates/style.css; every series also has its own marker, so that no
picture rests on colour alone. Texts are cleaned, shortened to the room there is, and kept whole in a <title>.
A value that is None or not finite leaves a gap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from markupsafe import Markup, escape

from shepherd.report.wording import clean, digits, number, shorten

WIDTH = 960
HALF = 470
LABELS = 190  # room for row labels, left
CHARACTER = 7.3  # average width of a character at the 12.5px of labels

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


@dataclass(frozen=True)
class Line:
    """A line through (x, y or None) points; `dashed` for a level that does not move."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """A filled range: (x, low, high) points."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None, float | None]]


@dataclass(frozen=True)
class Dots:
    """One marker per row of a dot plot, or one bar per group; `intervals` are (low, high) or None per row."""

    name: str
    style: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Panel:
    """One of several dot plots that share their rows and their scale."""

    title: str
    series: Sequence[Dots]
    notes: Sequence[str] = field(default=())


def thin(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


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


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    band: Band | None = None,
    height: int = 400,
    width: int = WIDTH,
) -> Markup:
    """Lines over whole-numbered x (rounds), named at their right ends, over an optional band; `width` or HALF of it."""
    lines = [Line(s.name, s.style, thin(s.points, 300), s.dashed) for s in lines]
    ys = [y for s in lines for _, value in s.points if (y := number(value)) is not None]
    if band:
        band = Band(band.name, band.style, thin(band.points, 300))
        ys += [y for _, *ends in band.points for value in ends if (y := number(value)) is not None]
    if not ys:
        return _empty(title, description)
    xs = [x for s in lines for x, _ in s.points]
    left, right, top, bottom = 66, 186 if width == WIDTH else 124, 34, height - 56
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = _padded(ys)
    x = _scale(x_low, x_high, left, width - right)
    y = _scale(y_low, y_high, bottom, top)
    ticks = nice_ticks(y_low, y_high)
    body = []
    for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
        body.append(_rule(left, y(tick), width - right, y(tick), "grid"))
        body.append(_text(left - 10, y(tick) + 4, text, "tick", "end"))
    for tick in nice_ticks(x_low, x_high, about=10 if width == WIDTH else 5, whole=True):
        body.append(_rule(x(tick), bottom, x(tick), bottom + 5, "axis"))
        body.append(_text(x(tick), bottom + 20, f"{tick:g}", "tick", "middle"))
    body.append(_rule(left, bottom, width - right, bottom, "axis"))
    body.append(_text((left + width - right) / 2, height - 10, x_label, "label", "middle"))
    body.append(_text(left - 54, 16, y_label, "label"))
    if band:
        for run in _unbroken([(a, number(b), number(c)) for a, b, c in band.points]):
            upper = [f"{_n(x(a))},{_n(y(c))}" for a, _, c in run]
            lower = [f"{_n(x(a))},{_n(y(b))}" for a, b, _ in reversed(run)]
            body.append(f'<polygon class="band c-{band.style}" points="{" ".join(upper + lower)}"/>')
        body.append(f'<rect class="band c-{band.style}" x="{width - right - 250}" y="7" width="18" height="11"/>')
        body.append(_text(width - right - 226, 16, band.name, "tick", room=226))
    ends = []
    for s in lines:
        runs = _unbroken([(a, number(b)) for a, b in s.points])
        marks = [point for run in runs for point in run]
        for run in runs:
            path = " ".join(f"{_n(x(a))},{_n(y(b))}" for a, b in run)
            dash = " dashed" if s.dashed else ""
            body.append(f'<polyline class="line{dash} c-{s.style}" points="{path}"/>')
        if not s.dashed and len(marks) <= 60:
            for a, b in marks:
                body.append(_marker(s.style, x(a), y(b), f"{s.name}, {x_label} {a:g}: {digits(b)}"))
        if marks:
            ends.append((y(marks[-1][1]), marks[-1][1], s))
    places = spread([place for place, *_ in ends], 19, top, bottom)
    for place, (start, value, s) in zip(places, ends, strict=True):
        edge = width - right
        body.append(f'<path class="leader" d="M{_n(edge + 4)} {_n(start)}L{_n(edge + 14)} {_n(place)}"/>')
        mark = _rule(edge + 14, place, edge + 29, place, f"line dashed c-{s.style}") if s.dashed else ""
        body.append(mark or _marker(s.style, edge + 22, place))
        body.append(_text(edge + 33, place + 4.5, s.name, "name", room=right - 82))
        body.append(_text(width - 2, place + 4.5, digits(value), "value", "end"))
    return _svg(height, title, description, body, width)


def dot_plot(
    labels: Sequence[str],
    panels: Sequence[Panel],
    *,
    title: str,
    description: str,
    x_label: str,
    zero: bool = False,
    legend: bool = True,
    gap_after: int | None = None,
    gap_text: str = "",
) -> Markup:
    """Rows of markers with optional intervals, in one or more panels on one scale.

    `zero` draws the line of no difference. `gap_after` leaves a gap under that row, where rows are left out.
    A panel's `notes` are written at the right of its rows.
    """
    values = [v for p in panels for s in p.series for value in s.values if (v := number(value)) is not None]
    values += [
        end for p in panels for s in p.series for ends in s.intervals if ends for end in ends if number(end) is not None
    ]
    if not values or not labels:
        return _empty(title, description)
    pitch = 34 if len(labels) <= 6 else 28 if len(labels) <= 14 else 20
    seen = [s for p in panels for s in p.series if any(number(value) is not None for value in s.values)]
    names: dict[str, str] = {s.name: s.style for s in seen} if legend else {}
    titled = any(p.title for p in panels)
    top = (30 if names else 6) + (26 if titled else 0)
    offsets = [
        top + pitch * (i + 0.5) + (26 if gap_after is not None and i > gap_after else 0) for i in range(len(labels))
    ]
    bottom = offsets[-1] + pitch / 2
    height = round(bottom + 52)
    notes = 196 if any(p.notes for p in panels) else 0
    between = 34
    each = (WIDTH - LABELS - 18 - notes - between * (len(panels) - 1)) / len(panels)
    low, high = _padded([*values, 0.0] if zero else values)
    body = [_legend(names, LABELS)] if names else []
    for i, (offset, label) in enumerate(zip(offsets, labels, strict=True)):
        body.append(_text(LABELS - 14, offset + 4.5, label, "name", "end", room=LABELS - 18))
        if i == gap_after:
            body.append(_text(LABELS, offset + pitch / 2 + 18, gap_text, "label"))
    for position, panel in enumerate(panels):
        left = LABELS + position * (each + between)
        x = _scale(low, high, left, left + each)
        if panel.title:
            body.append(_text(left, top - 12, panel.title, "panel", room=each))
        ticks = nice_ticks(low, high, about=6 if len(panels) == 1 else 4)
        for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
            body.append(_rule(x(tick), top, x(tick), bottom, "grid"))
            body.append(_text(x(tick), bottom + 18, text, "tick", "middle"))
        body.append(_rule(left, bottom, left + each, bottom, "axis"))
        body.append(_text(left + each / 2, bottom + 42, x_label, "label", "middle"))
        if zero:
            body.append(_rule(x(0), top, x(0), bottom, "zero"))
        for i, offset in enumerate(offsets):
            here = [v for s in panel.series if (v := number(s.values[i])) is not None]
            if len(here) > 1:
                body.append(_rule(x(min(here)), offset, x(max(here)), offset, "span"))
            for s in panel.series:
                value, ends = number(s.values[i]), s.intervals[i] if s.intervals else None
                if ends and None not in map(number, ends):
                    body.append(_rule(x(ends[0]), offset, x(ends[1]), offset, f"whisker c-{s.style}"))
                if value is not None:
                    body.append(_marker(s.style, x(value), offset, f"{labels[i]}, {s.name}: {digits(value)}"))
            if not here:
                body.append(_text(left + 4, offset + 4.5, "n/a", "tick"))
            if panel.notes:
                body.append(_text(WIDTH - 2, offset + 4.5, panel.notes[i], "value", "end"))
    return _svg(height, title, description, body)


def bar_chart(
    groups: Sequence[str],
    series: Sequence[Dots],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    write: Callable[[float], str] = digits,
    height: int = 280,
) -> Markup:
    """Vertical bars from zero, side by side in each group. At most 150 groups are drawn, evenly spaced."""
    keep = thin(range(len(groups)), 150)
    values = [v for s in series for i in keep if (v := number(s.values[i])) is not None]
    if not values:
        return _empty(title, description)
    left, right, top, bottom = 84, 10, 46, height - 54
    high = max(values) or 1.0
    ticks = nice_ticks(0, high, about=4)
    if ticks[-1] < high:
        ticks.append(ticks[-1] + ticks[1])
    y = _scale(0, ticks[-1], bottom, top)
    pitch = (WIDTH - left - right) / len(keep)
    width = min(34.0, pitch * 0.8 / len(series))
    body = [
        _legend({s.name: s.style for s in series}, left + 200, boxes=True),
        _text(4, 16, y_label, "label", room=260),
    ]
    for tick in ticks:
        body.append(_rule(left, y(tick), WIDTH - right, y(tick), "grid"))
        body.append(_text(left - 10, y(tick) + 4, _round(write(tick)) if tick else "0", "tick", "end"))
    named = set(thin(range(len(keep)), max(2, min(len(keep), 24))))
    for place, i in enumerate(keep):
        middle = left + pitch * (place + 0.5)
        for j, s in enumerate(series):
            value = number(s.values[i])
            if value is None:
                continue
            start = middle + (j - len(series) / 2) * width
            inner = max(0.6, width - 2)
            tip = f"<title>{_safe(f'{x_label} {groups[i]}, {s.name}: {write(value)}')}</title>"
            body.append(
                f'<rect class="fill c-{s.style}" x="{_n(start)}" y="{_n(y(value))}" width="{_n(inner)}" '
                f'height="{_n(bottom - y(value))}">{tip}</rect>'
            )
        if place in named:
            body.append(_text(middle, bottom + 20, groups[i], "tick", "middle", room=max(40, pitch)))
    body.append(_rule(left, bottom, WIDTH - right, bottom, "axis"))
    body.append(_text((left + WIDTH - right) / 2, height - 10, x_label, "label", "middle"))
    return _svg(height, title, description, body)


def stacked_bar(
    parts: Sequence[tuple[str, float | None]], *, title: str, description: str, write: Callable[[float], str]
) -> Markup:
    """One bar cut into parts, with a legend that names each part and its value."""
    known = [(name, value) for name, raw in parts if (value := number(raw)) is not None and value > 0]
    total = sum(value for _, value in known)
    if not total:
        return _empty(title, description)
    body, start, columns = [], 0.0, 3
    for i, (name, value) in enumerate(known):
        width = WIDTH * value / total
        style = SERIES_STYLES[i % len(SERIES_STYLES)]
        tip = f"<title>{_safe(f'{name}: {write(value)}')}</title>"
        body.append(
            f'<rect class="fill c-{style}" x="{_n(start)}" y="2" width="{_n(max(0.8, width - 2))}" height="34">'
            f"{tip}</rect>"
        )
        start += width
        column, row = i % columns, i // columns
        at, line = column * WIDTH / columns, 66 + row * 24
        body.append(f'<rect class="fill c-{style}" x="{_n(at)}" y="{line - 10}" width="11" height="11"/>')
        body.append(
            _text(
                at + 18, line, f"{name}  {write(value)}, {100 * value / total:.0f} %", "name", room=WIDTH / columns - 24
            )
        )
    body.append(
        _text(0, 66 + ((len(known) - 1) // columns) * 24 + 28, "Width of a part: its share of the time", "label")
    )
    return _svg(66 + ((len(known) - 1) // columns) * 24 + 40, title, description, body)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    write: Callable[[float], str] = lambda value: f"{value:,.0f}",
    diverging: bool = False,
    ends: tuple[str, str] = ("", ""),
) -> Markup:
    """A table of coloured cells with their values where they fit.

    Sequential: zero to the largest value. `diverging`: the same distance on both sides of zero; `ends` says what
    the negative and the positive side mean.
    """
    known = [abs(v) for line in values for value in line if (v := number(value)) is not None]
    if not known or not rows or not columns:
        return _empty(title, description)
    most = max(known) or 1.0
    pitch = 30 if len(rows) <= 12 else 22 if len(rows) <= 30 else 15
    longest = max(len(shorten(c, 26)) for c in columns) * CHARACTER
    cell = min(110.0, (WIDTH - LABELS - 84) / len(columns))
    tilted = longest > cell - 4
    top = longest * 0.64 + 18 if tilted else 28
    bottom = top + pitch * len(rows)
    body = [_text(LABELS - 14, top - 9, f"{y_label} ↓ · {x_label} →", "label", "end")]
    for j, column in enumerate(columns):
        middle = LABELS + cell * (j + 0.5)
        if tilted:
            turned = f' transform="rotate(-40 {_n(middle - 2)} {_n(top - 8)})"'
            body.append(_text(middle - 2, top - 8, column, "tick", room=26 * CHARACTER, extra=turned))
        else:
            body.append(_text(middle, top - 9, column, "tick", "middle", room=cell))
    for i, row in enumerate(rows):
        above = top + pitch * i
        body.append(
            _text(LABELS - 14, above + pitch / 2 + 4.5, row, "name" if pitch > 15 else "small", "end", room=LABELS - 18)
        )
        for j, column in enumerate(columns):
            value = number(values[i][j])
            shade = "none" if value is None else _shade(value / most, diverging)
            text = "n/a" if value is None else write(value)
            tip = f"<title>{_safe(f'{row}, {column}: {text}')}</title>"
            body.append(
                f'<g class="cell {shade}"><rect x="{_n(LABELS + cell * j + 1)}" y="{_n(above + 1)}" '
                f'width="{_n(max(1, cell - 2))}" '
                f'height="{pitch - 2}" rx="2">{tip}</rect>'
            )
            if pitch > 15 and cell >= len(text) * CHARACTER + 4:
                body.append(_text(LABELS + cell * (j + 0.5), above + pitch / 2 + 4.5, text, "in", "middle"))
            body.append("</g>")
    shades = [f"d{i}" for i in range(-4, 5)] if diverging else [f"h{i}" for i in range(9)]
    for i, shade in enumerate(shades):
        body.append(
            f'<g class="cell {shade}"><rect x="{LABELS + 22 * i}" y="{_n(bottom + 16)}" width="22" height="12"/></g>'
        )
    scale = (write(-most), ends[0], write(most), ends[1]) if diverging else ("0", "", write(most), "")
    body.append(_text(LABELS - 8, bottom + 26, f"{scale[1]} {scale[0]}".strip(), "tick", "end", room=LABELS))
    body.append(_text(LABELS + 22 * len(shades) + 8, bottom + 26, f"{scale[2]} {scale[3]}".strip(), "tick"))
    return _svg(round(bottom + 40), title, description, body)


STATES = {"trained": "trained", "rejected": "rejected", "missing": "missing", "late": "late", "idle": "not drawn"}


def status_grid(
    rows: Sequence[str],
    columns: Sequence[str],
    states: Sequence[Sequence[str]],
    *,
    title: str,
    description: str,
    x_label: str,
) -> Markup:
    """Who was where: one mark per row and column; a state is a key of STATES and has its own shape."""
    if not rows or not columns:
        return _empty(title, description)
    pitch = 24 if len(rows) <= 30 else 16
    cell = min(44.0, (WIDTH - LABELS - 10) / len(columns))
    top = 54
    bottom = top + pitch * len(rows)
    body, at = [], float(LABELS)
    for state, name in STATES.items():
        body.append(_state(state, at + 7, 12))
        body.append(_text(at + 20, 16.5, name, "tick"))
        at += 40 + len(name) * CHARACTER
    step = max(1, math.ceil(26 / cell))
    for j, column in enumerate(columns):
        if j % step == 0 or (j == len(columns) - 1 and j % step > step / 2):
            body.append(_text(LABELS + cell * (j + 0.5), top - 8, column, "tick", "middle"))
    body.append(_text(LABELS - 14, top - 8, x_label, "label", "end"))
    for i, row in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        body.append(_rule(LABELS, middle, LABELS + cell * len(columns), middle, "grid"))
        body.append(_text(LABELS - 14, middle + 4.5, row, "name" if pitch > 16 else "small", "end", room=LABELS - 18))
        body += [
            _state(state, LABELS + cell * (j + 0.5), middle, min(6.5, cell / 2.4)) for j, state in enumerate(states[i])
        ]
    return _svg(round(bottom + 12), title, description, body)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved apart to at least `gap`, in their order, kept inside low..high as far as there is room."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    moved = list(places)
    for before, here in pairwise(order):
        moved[here] = max(moved[here], moved[before] + gap)
    if order and moved[order[-1]] > high:
        moved[order[-1]] = high
        for here, after in zip(reversed(order[:-1]), reversed(order), strict=False):
            moved[here] = min(moved[here], moved[after] - gap)
    return moved


def _svg(height: float, title: str, description: str, body: Sequence[str], width: int = WIDTH) -> Markup:
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height:g}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{_safe(title)}</title><desc>{_safe(description)}</desc>{''.join(body)}</svg>"
    )


def _empty(title: str, description: str) -> Markup:
    return _svg(56, title, description, [_text(0, 32, "Nothing was measured for this picture.", "label")])


def _safe(text: str) -> str:
    return str(escape(clean(str(text))))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(
    x: float, y: float, text: str, kind: str, anchor: str = "start", room: float | None = None, extra: str = ""
) -> str:
    """`kind` and `anchor` are CSS classes of ours; `room` is the width in pixels that the text may take."""
    whole = " ".join(clean(str(text)).split())
    shown = shorten(whole, room / CHARACTER) if room else whole
    tip = f"<title>{_safe(whole)}</title>" if shown != whole else ""
    return f'<text class="{kind} {anchor}" x="{_n(x)}" y="{_n(y)}"{extra}>{_safe(shown)}{tip}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _legend(names: dict[str, str], left: float, boxes: bool = False) -> str:
    parts, at = [], left
    for name, style in names.items():
        box = f'<rect class="fill c-{style}" x="{_n(at)}" y="6.5" width="11" height="11"/>'
        parts.append((box if boxes else _marker(style, at + 6, 12)) + _text(at + 18, 16.5, name, "tick", room=200))
        at += 44 + min(200, len(name) * CHARACTER)
    return "".join(parts)


def _marker(style: str, x: float, y: float, tip: str = "") -> str:
    cx, cy = float(_n(x)), float(_n(y))
    shape = {
        "circle": lambda: f'<circle cx="{cx:g}" cy="{cy:g}" r="5"',
        "ring": lambda: f'<circle class="open" cx="{cx:g}" cy="{cy:g}" r="4.4"',
        "square": lambda: f'<rect x="{cx - 4.5:g}" y="{cy - 4.5:g}" width="9" height="9"',
        "diamond": lambda: f'<path d="M{cx:g} {cy - 6:g}l6 6l-6 6l-6 -6z"',
        "triangle": lambda: f'<path d="M{cx:g} {cy - 5.5:g}l5.8 10h-11.6z"',
        "cross": lambda: f'<path class="open" d="M{cx - 4:g} {cy - 4:g}l8 8m0 -8l-8 8"',
        "bar": lambda: f'<rect x="{cx - 2:g}" y="{cy - 7:g}" width="4" height="14"',
    }[MARKERS[style]]()
    end = f"><title>{_safe(tip)}</title></{shape[1:].split()[0]}>" if tip else "/>"
    return f'<g class="mark c-{style}">{shape}{end}</g>'


def _state(state: str, x: float, y: float, r: float = 6.5) -> str:
    left, right, above, below = _n(x - r), _n(x + r), _n(y - r), _n(y + r)
    cross = f"M{left} {above}L{right} {below}M{left} {below}L{right} {above}"
    shapes = {
        "trained": f'<rect class="fill c-federated" x="{left}" y="{above}" width="{_n(2 * r)}" height="{_n(2 * r)}"/>',
        "rejected": f'<path class="stroke c-centralised" d="{cross}"/>',
        "missing": f'<circle class="stroke c-base" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r - 1)}"/>',
        "late": f'<path class="stroke c-base" d="M{left} {below}L{right} {below}L{_n(x)} {above}Z"/>',
        "idle": f'<circle class="idle" cx="{_n(x)}" cy="{_n(y)}" r="1.6"/>',
    }
    return shapes[state]


def _shade(share: float, diverging: bool) -> str:
    """A step of the colour scale: h0 (zero) to h8, or d-4 to d4."""
    if diverging:
        return f"d{round(max(-1.0, min(1.0, share)) * 4)}"
    return f"h{0 if share <= 0 else max(1, math.ceil(share * 8 - 1e-9))}"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or max(0.05 * abs(high), 0.05)
    return low - pad, high + pad


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) or 1.0)
    places = max(0, next((p for p in range(10) if math.isclose(step, round(step, p), rel_tol=1e-6)), 3))
    return [digits(tick, places) for tick in ticks]


def _round(text: str) -> str:
    """A tick's text without idle zeros: 6.00 MB is 6 MB."""
    return re.sub(r"\.(\d*?)0+(?=\D|$)", lambda found: f".{found[1]}" if found[1] else "", text)


def _unbroken(points: Sequence[tuple]) -> list[list[tuple]]:
    """The points cut at every None into runs without gaps."""
    runs: list[list[tuple]] = [[]]
    for point in points:
        if None in point:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]
