"""Rows of markers with intervals, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
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
    values = [v for p in panels for s in p.series for value in s.values if (v := number(value)) is not None]
    values += [
        end for p in panels for s in p.series for ends in s.intervals if ends for end in ends if number(end) is not None
    ]
    if not values or not labels:
        return marks.empty(title, description)
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
    low, high = marks.padded([*values, 0.0] if zero else values)
    body = [marks.legend(names, LABELS)] if names else []
    for i, (offset, label) in enumerate(zip(offsets, labels, strict=True)):
        body.append(marks.text(LABELS - 14, offset + 4.5, label, "name", "end", room=LABELS - 18))
        if i == gap_after:
            body.append(marks.text(LABELS, offset + pitch / 2 + 18, gap_text, "label"))
    for position, panel in enumerate(panels):
        left = LABELS + position * (each + between)
        x = marks.scale(low, high, left, left + each)
        if panel.title:
            body.append(marks.text(left, top - 12, panel.title, "panel", room=each))
        ticks = nice_ticks(low, high, about=6 if len(panels) == 1 else 4)
        for tick, text in zip(ticks, marks.tick_texts(ticks), strict=True):
            body.append(marks.rule(x(tick), top, x(tick), bottom, "grid"))
            body.append(marks.text(x(tick), bottom + 18, text, "tick", "middle"))
        body.append(marks.rule(left, bottom, left + each, bottom, "axis"))
        body.append(marks.text(left + each / 2, bottom + 42, x_label, "label", "middle"))
        if zero:
            body.append(marks.rule(x(0), top, x(0), bottom, "zero"))
        for i, offset in enumerate(offsets):
            here = [v for s in panel.series if (v := number(s.values[i])) is not None]
            if len(here) > 1:
                body.append(marks.rule(x(min(here)), offset, x(max(here)), offset, "span"))
            known = [number(s.values[i]) for s in panel.series]
            aside = _apart([None if v is None else x(v) for v in known], 0.3 * pitch)
            for s, value, beside in zip(panel.series, known, aside, strict=True):
                ends, at = s.intervals[i] if s.intervals else None, offset + beside
                if ends and None not in map(number, ends):
                    body.append(marks.rule(x(ends[0]), at, x(ends[1]), at, f"whisker c-{s.style}"))
                if value is not None:
                    body.append(marks.marker(s.style, x(value), at, f"{labels[i]}, {s.name}: {digits(value)}"))
            if not here:
                body.append(marks.text(left + 4, offset + 4.5, "n/a", "tick"))
            if panel.notes:
                body.append(marks.text(WIDTH - 2, offset + 4.5, panel.notes[i], "value", "end"))
    return marks.svg(height, title, description, body)


def _apart(places: Sequence[float | None], reach: float) -> list[float]:
    """How far to move each marker of a row up or down, at most `reach`, so that none hides another."""
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
