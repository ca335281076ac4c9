"""Dot plots: rows of markers with intervals on one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from shepherd.report.charts import marks
from shepherd.report.charts.marks import LABELS, WIDTH, nice_ticks
from shepherd.report.wording import digits, number


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
    values = _values(panels)
    if not values or not labels:
        return marks.empty(title, description)
    seen = [s for p in panels for s in p.series if any(number(value) is not None for value in s.values)]
    names: dict[str, str] = {s.name: s.style for s in seen} if legend else {}
    pitch = 34 if len(labels) <= 6 else 28 if len(labels) <= 14 else 20
    top = (30 if names else 6) + (26 if any(p.title for p in panels) else 0)
    offsets = [
        top + pitch * (i + 0.5) + (26 if gap_after is not None and i > gap_after else 0) for i in range(len(labels))
    ]
    body = [marks.legend(names, LABELS)] if names else []
    for i, (offset, label) in enumerate(zip(offsets, labels, strict=True)):
        body.append(marks.text(LABELS - 14, offset + 4.5, label, "name", "end", room=LABELS - 18))
        if i == gap_after:
            body.append(marks.text(LABELS, offset + pitch / 2 + 18, gap_text, "label"))
    notes = 196 if any(p.notes for p in panels) else 0
    between = 34
    each = (WIDTH - LABELS - 18 - notes - between * (len(panels) - 1)) / len(panels)
    bounds = marks.padded([*values, 0.0] if zero else values)
    for position, panel in enumerate(panels):
        left = LABELS + position * (each + between)
        frame = _Frame(left, each, top, offsets[-1] + pitch / 2, marks.scale(*bounds, left, left + each))
        body += _axis(frame, panel.title, nice_ticks(*bounds, about=6 if len(panels) == 1 else 4), x_label)
        if zero:
            body.append(marks.rule(frame.x(0), top, frame.x(0), frame.bottom, "zero"))
        for i, (offset, label) in enumerate(zip(offsets, labels, strict=True)):
            body += _row(frame, panel, i, label, offset, 0.3 * pitch)
    return marks.svg(round(offsets[-1] + pitch / 2 + 52), title, description, body)


@dataclass(frozen=True)
class _Frame:
    """The rectangle of one panel in pixels, and the scale of its values."""

    left: float
    width: float
    top: float
    bottom: float
    x: Callable[[float], float]


def _values(panels: Sequence[Panel]) -> list[float]:
    """All values and ends of intervals that are numbers."""
    series = [s for panel in panels for s in panel.series]
    ends = [end for s in series for interval in s.intervals if interval for end in interval]
    return [v for value in (*(value for s in series for value in s.values), *ends) if (v := number(value)) is not None]


def _axis(frame: _Frame, title: str, ticks: Sequence[float], x_label: str) -> list[str]:
    body = [marks.text(frame.left, frame.top - 12, title, "panel", room=frame.width)] if title else []
    for tick, text in zip(ticks, marks.tick_texts(ticks), strict=True):
        body.append(marks.rule(frame.x(tick), frame.top, frame.x(tick), frame.bottom, "grid"))
        body.append(marks.text(frame.x(tick), frame.bottom + 18, text, "tick", "middle"))
    body.append(marks.rule(frame.left, frame.bottom, frame.left + frame.width, frame.bottom, "axis"))
    body.append(marks.text(frame.left + frame.width / 2, frame.bottom + 42, x_label, "label", "middle"))
    return body


def _row(frame: _Frame, panel: Panel, i: int, label: str, offset: float, reach: float) -> list[str]:
    """The markers and intervals of row `i`, moved apart by at most `reach`."""
    body = []
    values = [number(s.values[i]) for s in panel.series]
    known = [value for value in values if value is not None]
    if len(known) > 1:
        body.append(marks.rule(frame.x(min(known)), offset, frame.x(max(known)), offset, "span"))
    moves = _apart([None if value is None else frame.x(value) for value in values], reach)
    for s, value, move in zip(panel.series, values, moves, strict=True):
        ends, at = s.intervals[i] if s.intervals else None, offset + move
        if ends and None not in map(number, ends):
            body.append(marks.rule(frame.x(ends[0]), at, frame.x(ends[1]), at, f"whisker c-{s.style}"))
        if value is not None:
            body.append(marks.marker(s.style, frame.x(value), at, f"{label}, {s.name}: {digits(value)}"))
    if not known:
        body.append(marks.text(frame.left + 4, offset + 4.5, "n/a", "tick"))
    if panel.notes:
        body.append(marks.text(WIDTH - 2, offset + 4.5, panel.notes[i], "value", "end"))
    return body


def _apart(places: Sequence[float | None], reach: float) -> list[float]:
    """Vertical offsets of a row's markers, at most `reach`, so that none hides another."""
    order = sorted((place, i) for i, place in enumerate(places) if place is not None)
    groups: list[list[int]] = []
    for j, (place, i) in enumerate(order):
        if j and place - order[j - 1][0] < 9:
            groups[-1].append(i)
        else:
            groups.append([i])
    moved = [0.0] * len(places)
    for group in groups:
        step = min(reach, 2 * reach / max(1, len(group) - 1))
        for k, i in enumerate(group):
            moved[i] = (k - (len(group) - 1) / 2) * step
    return moved
