"""Run directories in; one HTML page about a run, or a comparison of several, out.

Reads JSON and TOML only: no torch, no numpy. `load.py` reads a run, `findings.py` says what the numbers mean,
`charts/` draws, `html.py` and `compare.py` write. A new section is a function RunRecord -> Section and its place in
`html.view`. Everything that came from data, a model or a person is cleaned and escaped in page.py.
"""

from __future__ import annotations

from shepherd.report.comparison.page import Comparison, compare
from shepherd.report.html import write_report
from shepherd.report.load import RunRecord, load_run

__all__ = ["Comparison", "RunRecord", "compare", "load_run", "write_report"]
