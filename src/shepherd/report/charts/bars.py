"""Bar charts from zero: grouped by round, or one stacked bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from markupsafe import Markup

from shepherd.report.charts import marks
from shepherd.report.charts.dots import Dots
from shepherd.report.charts.marks import WIDTH, nice_ticks, thin
from shepherd.report.wording import digits, number


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
        return marks.empty(title, description)
    left, right, top, bottom = 84, 10, 46, height - 54
    high = max(values) or 1.0
    ticks = nice_ticks(0, high, about=4)
    if ticks[-1] < high:
        ticks.append(ticks[-1] + ticks[1])
    y = marks.scale(0, ticks[-1], bottom, top)
    pitch = (WIDTH - left - right) / len(keep)
    width = min(34.0, pitch * 0.8 / len(series))
    body = [
        marks.legend({s.name: s.style for s in series}, left + 200, boxes=True),
        marks.text(4, 16, y_label, "label", room=260),
    ]
    for tick in ticks:
        body.append(marks.rule(left, y(tick), WIDTH - right, y(tick), "grid"))
        body.append(marks.text(left - 10, y(tick) + 4, _round(write(tick)) if tick else "0", "tick", "end"))
    named = set(thin(range(len(keep)), max(2, min(len(keep), 24))))
    for place, i in enumerate(keep):
        middle = left + pitch * (place + 0.5)
        for j, s in enumerate(series):
            if (value := number(s.values[i])) is not None:
                start = middle + (j - len(series) / 2) * width
                tip = f"{x_label} {groups[i]}, {s.name}: {write(value)}"
                inner = max(0.6, width - 2)
                body.append(marks.box(start, y(value), inner, bottom - y(value), f"fill c-{s.style}", tip))
        if place in named:
            body.append(marks.text(middle, bottom + 20, groups[i], "tick", "middle", room=max(40, pitch)))
    body.append(marks.rule(left, bottom, WIDTH - right, bottom, "axis"))
    body.append(marks.text((left + WIDTH - right) / 2, height - 10, x_label, "label", "middle"))
    return marks.svg(height, title, description, body)


def stacked_bar(
    parts: Sequence[tuple[str, str, float | None]], *, title: str, description: str, write: Callable[[float], str]
) -> Markup:
    """One bar of (name, style, value) parts, with a legend of names and values."""
    known = [(name, style, value) for name, style, raw in parts if (value := number(raw)) is not None and value > 0]
    total = sum(value for *_, value in known)
    if not total:
        return marks.empty(title, description)
    body, start = [], 0.0
    for i, (name, style, value) in enumerate(known):
        width = WIDTH * value / total
        label = f"{name}: {write(value)}, {100 * value / total:.0f}\N{NO-BREAK SPACE}%"
        body.append(marks.box(start, 2, max(0.8, width - 2), 34, f"fill c-{style}", label))
        start += width
        at, line = i % 2 * WIDTH / 2, 66 + i // 2 * 24
        body.append(marks.box(at, line - 10, 11, 11, f"fill c-{style}"))
        body.append(marks.text(at + 18, line, label, "name", room=WIDTH / 2 - 24))
    last = 66 + (len(known) - 1) // 2 * 24
    body.append(marks.text(0, last + 28, "Width of a part: its share of the time", "label"))
    return marks.svg(last + 40, title, description, body)


def _round(text: str) -> str:
    """A tick's text without trailing zeros: 6.00 MB is 6 MB."""
    return re.sub(r"\.(\d*?)0+(?=\D|$)", lambda found: f".{found[1]}" if found[1] else "", text)
