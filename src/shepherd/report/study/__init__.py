"""A study on one page, as Markdown and as a LaTeX table. In: the document of study.json. Out: texts.

`words.py` has its sentences, `tables.py` its tables, `page.py`, `markdown.py` and `latex_table.py` the forms.
"""

from shepherd.report.study.latex_table import latex_table
from shepherd.report.study.markdown import markdown
from shepherd.report.study.page import page

__all__ = ["latex_table", "markdown", "page"]
