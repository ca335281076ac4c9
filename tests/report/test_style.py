"""The style of a page: readable in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shepherd.report
from report_runs import ARMS

CSS = (Path(shepherd.report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def themes() -> dict[str, dict[str, str]]:
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in CSS.split("@media screen", 1))
    return {"light": light, "dark": light | dark}


def contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula_gives_the_known_extremes():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_a_contrast_of_at_least_4_5_and_marks_of_at_least_3(theme):
    colours = themes()[theme]
    for text in ("ink", "soft", "accent"):
        for under in ("paper", "sheet"):
            assert contrast(colours[text], colours[under]) >= 4.5, (text, under)
    for mark in (*ARMS, "plain", *(f"s{i}" for i in range(1, 8))):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
    for i in range(9):
        over = colours.get(f"in-h{i}", colours["in-dark" if i >= 7 else "in-light"])
        assert contrast(over, colours[f"h{i}"]) >= 4.5, f"h{i}"
    for i in range(-4, 5):
        over = colours.get(f"in-d{i}", colours["in-dark" if abs(i) == 4 else "in-light"])
        assert contrast(over, colours[f"d{i}"]) >= 4.5, f"d{i}"
