"""Standalone SVG files: with their style, and without CSS variables, which few programs but browsers support."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from shepherd.report.charts.marks import WIDTH

STYLE = Path(__file__).parents[1] / "templates" / "style.css"


def standalone(picture: Markup) -> str:
    """An SVG file of a heat map, in the light colours of a page, on paper."""
    css = STYLE.read_text(encoding="utf-8")
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", css[: css.index("@media")]))
    rules = re.findall(r"\.(?:chart|cell|h\d|d-?\d)\b[^{}]*\{[^}]*\}", css)
    plain = re.sub(r"var\((--[\w-]+)\)", lambda found: values.get(found[1], "none"), "\n".join(rules))
    height = re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0]
    paper = f'<path fill="{values["--paper"]}" d="M0 0h{WIDTH}v{height}h-{WIDTH}z"/>'
    whole = str(picture).replace(" xmlns=", f' width="{WIDTH}" height="{height}" xmlns=', 1)
    return whole.replace("</desc>", f"</desc><style>{plain}</style>{paper}", 1)
