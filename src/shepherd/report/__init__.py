"""The report room: run directories in; one HTML page about a run, or a comparison of several, out.

It reads JSON and TOML only: no torch, no numpy. `load.py` reads a run, `findings.py` and `outcomes.py` compute what its
numbers and events mean, `sections/`, `comparison/` and `judge/` turn that into text, tables and figures, `charts/`
draws, `latex.py` writes tables for papers, and `page.py` cleans and escapes everything that came from data, a model or
a person.
Add a section as a function RunRecord -> Section in sections/, with its place in `html.view`; an arm in `shepherd/arms/`
is shown as it is registered.
"""

from __future__ import annotations

from shepherd.report.comparison.page import Comparison, compare
from shepherd.report.html import write_report
from shepherd.report.load import RunRecord, load_run

__all__ = ["Comparison", "RunRecord", "compare", "load_run", "write_report"]
