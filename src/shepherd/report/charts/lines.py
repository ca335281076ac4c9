"""Lines over rounds, named at their right ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from shepherd.report.charts import marks
from shepherd.report.charts.marks import WIDTH, nice_ticks, short, thin
from shepherd.report.wording import digits, number


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
    write: Callable[[float], str] = digits,
) -> Markup:
    """Lines over whole-numbered x (rounds), named at their right ends, over an optional band; `width` or HALF of it."""
    lines = [Line(s.name, s.style, thin(s.points, 300), s.dashed) for s in lines]
    ys = [y for s in lines for _, value in s.points if (y := number(value)) is not None]
    if band:
        band = Band(band.name, band.style, thin(band.points, 300))
        ys += [y for _, *ends in band.points for value in ends if (y := number(value)) is not None]
    if not ys:
        return marks.empty(title, description)
    xs = [x for s in lines for x, _ in s.points]
    # The names at the right get the room they need, up to a third of the picture.
    names = max(marks.extent(s.name) for s in lines) + 12
    left, right, top, bottom = 66, round(min(max(names + 92, 124), width / 3)), 34, height - 56
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = marks.padded(ys)
    x = marks.scale(x_low, x_high, left, width - right)
    y = marks.scale(y_low, y_high, bottom, top)
    ticks = nice_ticks(y_low, y_high)
    body = []
    for tick, text in zip(ticks, marks.tick_texts(ticks), strict=True):
        body.append(marks.rule(left, y(tick), width - right, y(tick), "grid"))
        body.append(marks.text(left - 10, y(tick) + 4, text, "tick", "end"))
    for tick in nice_ticks(x_low, x_high, about=10 if width == WIDTH else 5, whole=True):
        body.append(marks.rule(x(tick), bottom, x(tick), bottom + 5, "axis"))
        body.append(marks.text(x(tick), bottom + 20, f"{tick:g}", "tick", "middle"))
    body.append(marks.rule(left, bottom, width - right, bottom, "axis"))
    body.append(marks.text((left + width - right) / 2, height - 10, x_label, "label", "middle"))
    body.append(marks.text(left - 54, 16, y_label, "label"))
    if band:
        for run in _unbroken([(a, number(b), number(c)) for a, b, c in band.points]):
            upper = [f"{short(x(a))},{short(y(c))}" for a, _, c in run]
            lower = [f"{short(x(a))},{short(y(b))}" for a, b, _ in reversed(run)]
            body.append(f'<polygon class="band c-{band.style}" points="{" ".join(upper + lower)}"/>')
        body.append(marks.box(width - right - 250, 7, 18, 11, f"band c-{band.style}"))
        body.append(marks.text(width - right - 226, 16, band.name, "tick", room=226))
    ends = []
    for s in lines:
        runs = _unbroken([(a, number(b)) for a, b in s.points])
        points = [point for run in runs for point in run]
        for run in runs:
            path = " ".join(f"{short(x(a))},{short(y(b))}" for a, b in run)
            dash = " dashed" if s.dashed else ""
            body.append(f'<polyline class="line{dash} c-{s.style}" points="{path}"/>')
        if not s.dashed:  # markers have room between them; a line that is all markers is hard to follow
            apart = math.ceil(28 * len(points) / (width - left - right))
            for a, b in points[::-1][::apart]:
                body.append(marks.marker(s.style, x(a), y(b), f"{s.name}, {x_label} {a:g}: {write(b)}"))
        if points:
            ends.append((y(points[-1][1]), points[-1][1], s))
    places = spread([place for place, *_ in ends], 19, top, bottom)
    for place, (start, value, s) in zip(places, ends, strict=True):
        edge = width - right
        body.append(f'<path class="leader" d="M{edge + 4} {short(start)}L{edge + 14} {short(place)}"/>')
        mark = marks.rule(edge + 14, place, edge + 29, place, f"line dashed c-{s.style}") if s.dashed else ""
        body.append(mark or marks.marker(s.style, edge + 22, place))
        body.append(marks.text(edge + 33, place + 4.5, s.name, "name", room=right - 90))
        body.append(marks.text(width - 2, place + 4.5, write(value), "value", "end"))
    return marks.svg(height, title, description, body, width)


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


def _unbroken(points: Sequence[tuple]) -> list[list[tuple]]:
    """The points cut at every None into runs without gaps."""
    runs: list[list[tuple]] = [[]]
    for point in points:
        if None in point:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]
