"""Line charts over rounds, with names at the right ends."""

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
    """A line through (x, y or None) points; `dashed` for a constant level."""

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
    """Lines over rounds (whole-numbered x), named at their right ends, on an optional band; `width`: WIDTH or HALF."""
    lines = [Line(s.name, s.style, thin(s.points, DRAWN), s.dashed) for s in lines]
    ys = [y for s in lines for _, value in s.points if (y := number(value)) is not None]
    if band:
        band = Band(band.name, band.style, thin(band.points, DRAWN))
        ys += [y for _, *ends in band.points for value in ends if (y := number(value)) is not None]
    if not ys:
        return marks.empty(title, description)
    frame = _frame(lines, ys, width, height)
    body = _axes(frame, x_label, y_label)
    if band:
        body += _band(frame, band)
    for line in lines:
        body += _line(frame, line, x_label, write)
    body += _names(frame, lines, write)
    return marks.svg(height, title, description, body, width)


DRAWN = 300
"""Most points of a line that are drawn."""


@dataclass(frozen=True)
class _Frame:
    """The rectangle of a line chart in pixels, the range of its values, and their scales."""

    width: int
    left: int
    right: int
    top: int
    bottom: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x: Callable[[float], float]
    y: Callable[[float], float]

    @property
    def edge(self) -> int:
        """Where the lines end."""
        return self.width - self.right


def _frame(lines: Sequence[Line], ys: Sequence[float], width: int, height: int) -> _Frame:
    xs = [x for s in lines for x, _ in s.points]
    # The names at the right get the room they need, up to a third of the picture.
    names = max(marks.extent(s.name) for s in lines) + 12
    left, right, top, bottom = 66, round(min(max(names + 92, 124), width / 3)), 34, height - 56
    x_range = min(xs), max(max(xs), min(xs) + 1)
    y_range = marks.padded(ys)
    x, y = marks.scale(*x_range, left, width - right), marks.scale(*y_range, bottom, top)
    return _Frame(width, left, right, top, bottom, x_range, y_range, x, y)


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    body = []
    ticks = nice_ticks(*frame.y_range)
    for tick, text in zip(ticks, marks.tick_texts(ticks), strict=True):
        body.append(marks.rule(frame.left, frame.y(tick), frame.edge, frame.y(tick), "grid"))
        body.append(marks.text(frame.left - 10, frame.y(tick) + 4, text, "tick", "end"))
    for tick in nice_ticks(*frame.x_range, about=10 if frame.width == WIDTH else 5, whole=True):
        body.append(marks.rule(frame.x(tick), frame.bottom, frame.x(tick), frame.bottom + 5, "axis"))
        body.append(marks.text(frame.x(tick), frame.bottom + 20, f"{tick:g}", "tick", "middle"))
    body.append(marks.rule(frame.left, frame.bottom, frame.edge, frame.bottom, "axis"))
    body.append(marks.text((frame.left + frame.edge) / 2, frame.bottom + 46, x_label, "label", "middle"))
    body.append(marks.text(frame.left - 54, 16, y_label, "label"))
    return body


def _band(frame: _Frame, band: Band) -> list[str]:
    body = []
    for run in _unbroken([(x, number(low), number(high)) for x, low, high in band.points]):
        upper = [f"{short(frame.x(x))},{short(frame.y(high))}" for x, _, high in run]
        lower = [f"{short(frame.x(x))},{short(frame.y(low))}" for x, low, _ in reversed(run)]
        body.append(f'<polygon class="band c-{band.style}" points="{" ".join(upper + lower)}"/>')
    body.append(marks.box(frame.edge - 250, 7, 18, 11, f"band c-{band.style}"))
    body.append(marks.text(frame.edge - 226, 16, band.name, "tick", room=226))
    return body


def _line(frame: _Frame, line: Line, x_label: str, write: Callable[[float], str]) -> list[str]:
    body = []
    runs = _unbroken([(x, number(y)) for x, y in line.points])
    for run in runs:
        path = " ".join(f"{short(frame.x(x))},{short(frame.y(y))}" for x, y in run)
        dash = " dashed" if line.dashed else ""
        body.append(f'<polyline class="line{dash} c-{line.style}" points="{path}"/>')
    if not line.dashed:  # markers have room between them; a line that is all markers is hard to follow
        points = [point for run in runs for point in run]
        apart = max(1, math.ceil(28 * len(points) / (frame.edge - frame.left)))
        for x, y in points[::-1][::apart]:
            tip = f"{line.name}, {x_label} {x:g}: {write(y)}"
            body.append(marks.marker(line.style, frame.x(x), frame.y(y), tip))
    return body


def _names(frame: _Frame, lines: Sequence[Line], write: Callable[[float], str]) -> list[str]:
    """Each line's name and last value at its right end, moved apart where they would overlap."""
    body = []
    lasts = [
        (line, next((y for _, raw in line.points[::-1] if (y := number(raw)) is not None), None)) for line in lines
    ]
    ends = [(frame.y(last), last, line) for line, last in lasts if last is not None]
    places = spread([place for place, *_ in ends], 19, frame.top, frame.bottom)
    edge = frame.edge
    for place, (start, value, line) in zip(places, ends, strict=True):
        body.append(f'<path class="leader" d="M{edge + 4} {short(start)}L{edge + 14} {short(place)}"/>')
        mark = marks.rule(edge + 14, place, edge + 29, place, f"line dashed c-{line.style}") if line.dashed else ""
        body.append(mark or marks.marker(line.style, edge + 22, place))
        body.append(marks.text(edge + 33, place + 4.5, line.name, "name", room=frame.right - 90))
        body.append(marks.text(frame.width - 2, place + 4.5, write(value), "value", "end"))
    return body


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places, in their order, moved apart by at least `gap` within low..high, or evenly where there is no room."""
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


def _unbroken(points: Sequence[tuple[float | None, ...]]) -> list[list[tuple[float, ...]]]:
    """The points cut at every None into runs without gaps."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        known = tuple(value for value in point if value is not None)
        if len(known) < len(point):
            runs.append([])
        else:
            runs[-1].append(known)
    return [run for run in runs if run]
