"""Charts as inline SVG: plain values in, `Markup` out, without scripts, fonts or fixed colours.

Colours, light and dark, are CSS classes of templates/style.css; every series also has a marker, so that no chart
relies on colour alone. Texts are cleaned, shortened to the available width, and kept in full in a <title>.
A value that is None or not finite leaves a gap. Add a chart as a function in a file here, built from `marks.py`.
"""

from __future__ import annotations

from shepherd.report.charts.alone import standalone
from shepherd.report.charts.bars import bar_chart, stacked_bar
from shepherd.report.charts.cells import SITE_STATES, heat_map, status_grid
from shepherd.report.charts.dots import Dots, Panel, dot_plot
from shepherd.report.charts.lines import Band, Line, line_chart, spread
from shepherd.report.charts.marks import HALF, MARKERS, SERIES_STYLES, extremes, nice_ticks, thin

__all__ = [
    "HALF", "MARKERS", "SERIES_STYLES", "SITE_STATES", "Band", "Dots", "Line", "Panel", "bar_chart", "dot_plot",
    "extremes", "heat_map", "line_chart", "nice_ticks", "spread", "stacked_bar", "standalone", "status_grid", "thin",
]  # fmt: skip
