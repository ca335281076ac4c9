"""Charts of cells: heat maps of clients and categories, and the status of clients by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from shepherd.outcomes import OUTCOMES
from shepherd.report.charts import marks
from shepherd.report.charts.marks import LABELS, WIDTH
from shepherd.report.wording import number


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
    """A table of coloured cells, with their values where they fit.

    Sequential: zero to the largest value, by square roots, so that one large cell does not make all others pale.
    `diverging`: a symmetric scale around zero; `ends` are the meanings of its two sides.
    """
    known = [abs(v) for line in values for value in line if (v := number(value)) is not None]
    if not known or not rows or not columns:
        return marks.empty(title, description)
    most = max(known) or 1.0
    pitch = 30 if len(rows) <= 12 else 22 if len(rows) <= 30 else 15
    longest = min(max(map(marks.extent, columns)), 26 * marks.CHARACTER)
    tilted = longest > min(110.0, (WIDTH - LABELS - 10) / len(columns)) - 4
    cell = min(110.0, (WIDTH - LABELS - (0.77 * longest if tilted else 10)) / len(columns))  # 0.77: cos 40°
    top = longest * 0.64 + 18 if tilted else 28
    bottom = top + pitch * len(rows)
    body = [marks.text(LABELS - 14, top - 9, f"{y_label} ↓ · {x_label} →", "label", "end")]
    body += _columns(columns, cell, top, tilted)
    name, room = "name" if pitch > 15 else "small", LABELS - 18
    for i, row in enumerate(rows):
        above = top + pitch * i
        body.append(marks.text(LABELS - 14, above + pitch / 2 + 4.5, row, name, "end", room=room))
        for j, column in enumerate(columns):
            value = number(values[i][j])
            shade = "none" if value is None else _shade(value / most, diverging)
            text = "n/a" if value is None else write(value)
            left, round_corner = LABELS + cell * j, ' rx="2"'
            tip = f"{row}, {column}: {text}"
            cut = marks.box(left + 1, above + 1, max(1, cell - 2), pitch - 2, "", tip, round_corner)
            if pitch > 15 and cell >= marks.extent(text) + 4:
                kind = "in" if value or diverging else "in idle"
                cut += marks.text(left + cell / 2, above + pitch / 2 + 4.5, text, kind, "middle")
            body.append(f'<g class="cell {shade}">{cut}</g>')
    low = f"{ends[0]} {write(-most)}" if diverging else "0"
    high = f"{write(most)} {ends[1] if diverging else '(shades by square root)'}"
    body += _scale(bottom, low.strip(), high.strip(), diverging)
    return marks.svg(round(bottom + 40), title, description, body)


def _columns(columns: Sequence[str], cell: float, top: float, tilted: bool) -> list[str]:
    """The headings of the columns of a heat map."""
    body = []
    for j, column in enumerate(columns):
        middle = LABELS + cell * (j + 0.5)
        if tilted:
            turned = f' transform="rotate(-40 {marks.short(middle - 2)} {marks.short(top - 8)})"'
            body.append(marks.text(middle - 2, top - 8, column, "tick", room=26 * marks.CHARACTER, extra=turned))
        else:
            body.append(marks.text(middle, top - 9, column, "tick", "middle", room=cell))
    return body


def _scale(bottom: float, low: str, high: str, diverging: bool) -> list[str]:
    """The shades of a heat map below it, with the meaning of both ends."""
    shades = [f"d{i}" for i in range(-4, 5)] if diverging else [f"h{i}" for i in range(9)]
    body = [
        f'<g class="cell {shade}">{marks.box(LABELS + 22 * i, bottom + 16, 22, 12)}</g>'
        for i, shade in enumerate(shades)
    ]
    body.append(marks.text(LABELS - 8, bottom + 26, low, "tick", "end", room=LABELS))
    body.append(marks.text(LABELS + 22 * len(shades) + 8, bottom + 26, high, "tick"))
    return body


STATES = {**{outcome: outcome for outcome in OUTCOMES}, "idle": "not sampled"}
"""A client in a round and its name in the legend; each has its own shape."""
SITE_STATES = {**STATES, "absent": "absent", "refused": "refused", "left": "left or removed"}
"""A site in a round; a client of a simulation is never absent."""


def status_grid(
    rows: Sequence[str],
    columns: Sequence[str],
    states: Sequence[Sequence[str]],
    *,
    title: str,
    description: str,
    x_label: str,
    legend: Mapping[str, str] = STATES,
) -> Markup:
    """One mark per client (row) and round (column); a state is a key of the legend and has its own shape."""
    if not rows or not columns:
        return marks.empty(title, description)
    pitch = 24 if len(rows) <= 30 else 16
    cell = min(44.0, (WIDTH - LABELS - 10) / len(columns))
    top = 54
    bottom = top + pitch * len(rows)
    body, at = [], float(LABELS)
    for state, name in legend.items():
        body.append(_state(state, at + 7, 12))
        body.append(marks.text(at + 20, 16.5, name, "tick"))
        at += 40 + marks.extent(name)
    step = max(1, math.ceil(26 / cell))
    for j, column in enumerate(columns):
        if j % step == 0 or (j == len(columns) - 1 and j % step > step / 2):
            body.append(marks.text(LABELS + cell * (j + 0.5), top - 8, column, "tick", "middle"))
    body.append(marks.text(LABELS - 14, top - 8, x_label, "label", "end"))
    for i, row in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        body.append(marks.rule(LABELS, middle, LABELS + cell * len(columns), middle, "grid"))
        name = "name" if pitch > 16 else "small"
        body.append(marks.text(LABELS - 14, middle + 4.5, row, name, "end", room=LABELS - 18))
        size = min(6.5, cell / 2.4)
        body += [_state(state, LABELS + cell * (j + 0.5), middle, size) for j, state in enumerate(states[i])]
    return marks.svg(round(bottom + 12), title, description, body)


def _state(state: str, x: float, y: float, r: float = 6.5) -> str:
    if state == "trained":
        return marks.box(x - r, y - r, 2 * r, 2 * r, "fill c-federated")
    across, down = marks.short(x), marks.short(y)
    left, right, above, below = map(marks.short, (x - r, x + r, y - r, y + r))
    cross = f"M{left} {above}L{right} {below}M{left} {below}L{right} {above}"
    return {
        "rejected": f'<path class="stroke c-centralised" d="{cross}"/>',
        "failed": f'<path class="stroke c-centralised" d="M{left} {above}H{right}V{below}H{left}ZL{right} {below}"/>',
        "lost": f'<circle class="stroke c-base" cx="{across}" cy="{down}" r="{marks.short(r - 1)}"/>',
        "late": f'<path class="stroke c-base" d="M{left} {below}L{right} {below}L{across} {above}Z"/>',
        "absent": f'<path class="stroke c-base" d="M{left} {down}H{right}"/>',
        "refused": f'<path class="stroke c-centralised" d="M{across} {above}L{right} {down}L{across} {below}'
        f'L{left} {down}Z"/>',
        "left": f'<path class="stroke c-base" d="M{left} {above}V{below}M{left} {down}H{right}"/>',
        "idle": f'<circle class="idle" cx="{across}" cy="{down}" r="1.6"/>',
    }[state]


def _shade(share: float, diverging: bool) -> str:
    """A step of the colour scale: h0 (zero) to h8, or d-4 to d4."""
    if diverging:
        return f"d{round(max(-1.0, min(1.0, share)) * 4)}"
    return f"h{0 if share <= 0 else max(1, math.ceil(math.sqrt(share) * 8 - 1e-9))}"
